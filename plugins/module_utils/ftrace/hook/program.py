# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that a container runtime runs when it starts a container: it has the container traced before its first instruction.

    start-hook create PROFILE                as an OCI hook (createRuntime), with the container's state on stdin
    start-hook created PROFILE ID PIDFILE    by a runtime's wrapper, between create and start
    start-hook begin PROFILE                 by itself: begins the trace that all containers of PROFILE share, and holds its lock meanwhile
    start-hook try                           says TRIED, where this host lets it run

A hook that fails keeps its container from starting. So this program ends with 0 whatever happens, and soon; what went wrong is noted.
quick.py does what a usual start takes, and runs this where no trace is on, or where something is wrong.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.names import (
    HOOK_FOLDER,
    HOOK_RULE_PREFIX,
    RECORDER_SOCKET,
    RECORDER_UNKNOWN,
)

TRIED = b"tried\n"
_TELL_S = 0.5
_PAUSE_S = 0.01
_MAX_REPLY_BYTES = 1 << 16


class _NotTraced(Exception):
    """An error whose text says why the container is not traced."""


def run(words: Sequence[str], state: bytes, reply: bytes, deadline: float) -> None:
    """Do what WORDS, the program's command line, say until DEADLINE (by time.monotonic()); what goes wrong is noted.

    STATE is the container's state, as far as it is known, and REPLY what the recorder has answered; empty if nothing.
    """
    command, profile, container = [*words, "", "", ""][:3]
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # crun starts hooks with all signals blocked
        if command == "try":
            os.write(1, TRIED)
            return
        if command == "begin":
            from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import begin

            begin.begin(profile)
            return
        signal.signal(signal.SIGALRM, _give_up)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, deadline - time.monotonic()))
        container, pid = _parse_state(state)
        _announce(profile, container, pid, json.loads(reply) if reply else None)
    except Exception as error:  # pylint: disable=broad-exception-caught # the container starts whatever happens here
        with suppress(Exception):
            signal.setitimer(signal.ITIMER_REAL, _TELL_S)  # a disk that hangs holds nobody up
            notes.tell(profile, container, _explain(error))


def _give_up(_number: int, _frame: Any) -> NoReturn:
    raise _NotTraced("its trace was not on within 2 s, so the container has started without")


def _explain(error: BaseException) -> str:
    return str(error) if isinstance(error, _NotTraced) else f"{type(error).__name__}: {error}"


def _parse_state(text: bytes) -> tuple[str, int]:
    """Return the id of a container and the pid of its first process by TEXT, its state; raises _NotTraced if that does not tell them."""
    try:
        state = json.loads(text)
        return str(state["id"]), int(state["pid"])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise _NotTraced("what the runtime says is not the state of a container: it has no id and pid") from error


def _announce(profile: str, container: str, pid: int, reply: dict[str, Any] | None) -> None:
    """Have CONTAINER with the first process PID traced by PROFILE; raises _NotTraced or OSError if it is not.

    REPLY is what the recorder has answered already; None for nothing.
    """
    state = {"id": container, "pid": pid}
    request = json.dumps({"do": "start", "name": HOOK_RULE_PREFIX + profile, "state": state}).encode("utf-8")
    while reply is None or "ok" not in reply:
        if reply is not None and reply.get("error") != RECORDER_UNKNOWN:
            raise _NotTraced(str(reply.get("error")))
        _have_begun(profile)
        time.sleep(_PAUSE_S)
        reply = _ask(request)


def _ask(request: bytes) -> dict[str, Any] | None:
    """Return what the recorder answers to REQUEST; None if no recorder is there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(RECORDER_SOCKET)
            connection.sendall(request)
            reply = connection.recv(_MAX_REPLY_BYTES)
            return dict(json.loads(reply)) if reply else None
        except (FileNotFoundError, ConnectionError):
            return None


def _have_begun(profile: str) -> None:
    """Have another process begin the trace of PROFILE, unless one does so already; raises _NotTraced where that has just failed.

    That process goes on where this one gives up, so that the next start finds the trace.
    """
    make_folder(HOOK_FOLDER)
    fd = open_private(f"{HOOK_FOLDER}/lock-{profile}", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        why = notes.find_refusal(profile)
        if why is not None:
            raise _NotTraced(why)
        import subprocess

        subprocess.Popen(  # pylint: disable=consider-using-with # it goes on by itself
            [sys.executable, "-I", "-S", "-X", "utf8", sys.argv[0], "begin", profile],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LANG": "C"},
            pass_fds=[fd],  # the lock is held until that process ends
            start_new_session=True,
        )
    except BlockingIOError:
        pass  # somebody begins it
    finally:
        os.close(fd)
