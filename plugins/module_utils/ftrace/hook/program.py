# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that a container runtime runs when it starts a container: it has the container traced before its first instruction.

    start-hook create PROFILE                as an OCI hook (createRuntime), with the container's state on stdin
    start-hook created PROFILE ID PIDFILE    by a runtime's wrapper, between create and start
    start-hook begin PROFILE FD              by itself: begins the trace that all containers of PROFILE share; FD is its lock

A hook that fails keeps its container from starting. So this program ends with 0 whatever happens, and within WAIT_S; what went wrong is
noted. It imports what it needs only when it needs it, because each start of a container waits for it. Usually the trace runs already, and
the hook has only to tell the recorder of the container.
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
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import (
    HOOK_FOLDER,
    HOOK_RULE_PREFIX,
    RECORDER_SOCKET,
    RECORDER_UNKNOWN,
)

WAIT_S = 2.0  # no container waits longer for its trace
_PAUSE_S = 0.01
_MAX_STATE_BYTES = 1 << 20  # of the state of a container
_MAX_REPLY_BYTES = 1 << 16


class _NotTraced(Exception):
    """An error whose text says why the container is not traced."""


def main() -> NoReturn:
    """Run as the program's command line says, and end this process with 0."""
    words = sys.argv[1:]
    command, profile = [*words, "", ""][:2]
    container = ""
    try:
        if command == "begin":
            from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import begin

            begin.begin(profile)
        else:
            signal.signal(signal.SIGALRM, _give_up)
            signal.setitimer(signal.ITIMER_REAL, WAIT_S)
            if command == "create":
                state = _read_state()
                container, pid = str(state["id"]), int(state["pid"])
            else:
                container = words[2]
                with open(words[3], encoding="ascii") as file:
                    pid = int(file.read())
            _announce(profile, container, pid)
    except BaseException as error:  # pylint: disable=broad-exception-caught # the container starts whatever happens here
        with suppress(BaseException):
            signal.setitimer(signal.ITIMER_REAL, 0)
            notes.tell(profile, container, _explain(error))
    os._exit(0)  # without the clean-up of modules, which could fail, too


def _give_up(_number: int, _frame: Any) -> NoReturn:
    raise _NotTraced(f"its trace was not on within {WAIT_S:.0f} s, so the container has started without")


def _explain(error: BaseException) -> str:
    return str(error) if isinstance(error, _NotTraced) else f"{type(error).__name__}: {error}"


def _read_state() -> dict[str, Any]:
    """Return the state of the container that the runtime has written to stdin."""
    text = b""
    while len(text) < _MAX_STATE_BYTES:
        piece = os.read(0, 1 << 16)
        if not piece:
            break
        text += piece
    try:
        state = json.loads(text)
        if {"id", "pid"} <= set(state):
            return dict(state)
    except (ValueError, TypeError):
        pass
    raise _NotTraced("what the runtime has written to stdin is not the state of a container: it has no id and pid")


def _announce(profile: str, container: str, pid: int) -> None:
    """Have CONTAINER with the first process PID traced by PROFILE; raises _NotTraced or OSError if it is not."""
    request = json.dumps({"do": "start", "name": HOOK_RULE_PREFIX + profile, "id": container, "pid": pid}).encode(
        "utf-8"
    )
    while True:
        reply = _ask(request)
        if reply is not None and "ok" in reply:
            return
        if reply is not None and reply.get("error") != RECORDER_UNKNOWN:
            raise _NotTraced(str(reply.get("error")))
        _have_begun(profile)
        time.sleep(_PAUSE_S)


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
    notes.make_folder()
    fd = os.open(f"{HOOK_FOLDER}/lock-{profile}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        why = notes.find_refusal(profile)
        if why is not None:
            raise _NotTraced(why)
        import subprocess

        subprocess.Popen(  # pylint: disable=consider-using-with # it goes on by itself
            [sys.executable, "-I", "-S", "-X", "utf8", sys.argv[0], "begin", profile, str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LANG": "C"},
            pass_fds=[fd],
            start_new_session=True,
        )
    except BlockingIOError:
        pass  # somebody begins it
    finally:
        os.close(fd)
