# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process between a module and its commands in containers: it starts the commands and ensures that none of their processes is left.

It is a small program of its own, as forking the module, with all of Ansible and an engine's SDK in it, takes several times as long.
It stays on the host. It kills the processes that a command has left when the command has ended, when the module asks, when the module is
gone, and when the container's first process has ended.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import command
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import SUPERVISOR_TITLE

_KILL_S = 0.01  # between two rounds of killing
_GIVE_UP_S = 10.0  # after the module has gone: a process in a frozen control group dies only when it is thawed
_PATIENCE_ROUNDS = 50
_MAX_FDS = 64
_MAX_REPORT_BYTES = 1 << 16
_KILLED = "the command was killed with its supervisor: the container ended, or somebody in it did that"


@dataclass
class _Session:
    """A command that runs.

    PID: the process that was forked for the command. NAMESPACE: its private mount namespace once it is ready, '' before.
    """

    pid: int
    channel: int
    report: int
    first_process: int
    text: bytes = b""
    namespace: str = ""
    error: str = ""
    rc: int | None = None
    is_reaped: bool = False
    is_ending: bool = False
    rounds: int = 0  # of killing before the command was ready


def serve(control_fd: int) -> None:
    """Start a command for each message from CONTROL_FD until it is closed and the commands have ended, or cannot be ended.

    A message is JSON: the names of the descriptors that come with it.
    """
    gc.disable()
    control: socket.socket | None = socket.socket(fileno=control_fd)
    processes.set_title(SUPERVISOR_TITLE)
    sessions: list[_Session] = []
    woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    for fd in (woken, control_fd):
        poll.register(fd, select.POLLIN)
    deadline = None
    while control is not None or sessions:
        is_killing = any(session.is_ending for session in sessions)
        ready = {fd for fd, _event in poll.poll(_KILL_S * 1000 if is_killing else None)}
        if control is not None and control_fd in ready:
            given = _receive_order(control)
            if given is not None:
                sessions += _start_and_close(given, poll)
            else:
                poll.unregister(control_fd)
                control, deadline = None, time.monotonic() + _GIVE_UP_S
                os.dup2(1, 2)  # the reader of the module's stderr must not wait for this process
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        for session in sessions:
            if session.report in ready:
                _read_report(session, poll)
            if session.first_process in ready and not session.is_ending:
                session.error = session.error or _KILLED
            if deadline is not None or session.channel in ready or session.first_process in ready:
                _begin_to_end(session, poll)
        _reap(sessions, poll)
        _kill_rests(sessions, poll)
        for session in [session for session in sessions if session.is_reaped and not session.namespace]:
            _finish(session, poll)
            sessions.remove(session)
        if deadline is not None and time.monotonic() > deadline:
            return


def _begin_to_end(session: _Session, poll: select.poll) -> None:
    if not session.is_ending:
        session.is_ending = True
        poll.unregister(session.channel)
        poll.unregister(session.first_process)


def _receive_order(control: socket.socket) -> dict[str, int] | None:
    """Return descriptors by their names; None when no more orders will come."""
    fds = array.array("i")
    message, ancillary, _flags, _address = control.recvmsg(
        4096, socket.CMSG_SPACE(_MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    if not message:
        return None
    for _level, _type, data in ancillary:
        fds.frombytes(data)
    return dict(zip(json.loads(message), fds))


def _start_and_close(given: dict[str, int], poll: select.poll) -> list[_Session]:
    """Start the command of GIVEN, watch it, and close the descriptors that it needed; return no session when it could not be started."""
    session = _start(given)
    kept = {session.channel, session.first_process} if session else set()
    for fd in set(given.values()) - kept:
        os.close(fd)
    if session is None:
        return []
    for fd in (session.report, session.channel, session.first_process):
        poll.register(fd, select.POLLIN)
    return [session]


def _start(given: dict[str, int]) -> _Session | None:
    """Fork for the command of GIVEN; on failure tell the channel the reason and return None."""
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            command.run({**given, command.REPORT: writer})
        os.close(writer)
        os.set_blocking(reader, False)
        return _Session(pid, given[command.CHANNEL], reader, given[command.FIRST_PROCESS])
    except OSError as error:
        command.tell(given[command.CHANNEL], {"error": f"the host cannot start it: {error}"})
        return None


def _read_report(session: _Session, poll: select.poll) -> None:
    """Read messages of the command's processes; the container may have taken these over, so little is believed."""
    if session.report < 0:
        return
    part = b""
    with suppress(BlockingIOError):
        part = os.read(session.report, 4096)
        session.text += part
    if not part or len(session.text) > _MAX_REPORT_BYTES:
        _close_report(session, poll)
    *lines, rest = session.text.split(b"\n")
    session.text = rest
    for line in lines:
        try:
            message = json.loads(line)
            session.error = session.error or str(message.get("error", ""))
            if "ended" in message:
                _begin_to_end(session, poll)
            if "ready" in message and not session.namespace:
                session.namespace = os.readlink(f"/proc/{session.pid}/ns/mnt")
                command.tell(session.channel, {"ready": True})
        except (ValueError, AttributeError, OSError, RecursionError):
            continue  # not a message of ours, or the process has ended meanwhile


def _close_report(session: _Session, poll: select.poll) -> None:
    if session.report >= 0:
        poll.unregister(session.report)
        os.close(session.report)
        session.report = -1


def _reap(sessions: list[_Session], poll: select.poll) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for session in sessions:
            if session.pid == pid:
                _read_report(session, poll)
                _begin_to_end(session, poll)
                session.is_reaped = True
                if os.WIFSIGNALED(status):
                    session.error = session.error or _KILLED
                else:
                    session.rc = os.WEXITSTATUS(status)
                    session.namespace = ""  # the reaper has waited for all others


def _kill_rests(sessions: list[_Session], poll: select.poll) -> None:
    """Kill the processes that ending sessions have left: all below the reaper, or all in the private mount namespace when the reaper is gone."""
    ending = [session for session in sessions if session.is_ending and (session.namespace or not session.is_reaped)]
    if not ending:
        return
    pids = processes.read_pids()
    parents = {pid: processes.read_parent(pid) for pid in pids}
    for session in ending:
        if session.is_reaped:
            if not _kill_all_in(session.namespace, pids):
                session.namespace = ""
            continue
        reapers = {session.pid, *(pid for pid in pids if parents[pid] == session.pid)}
        for pid in reapers:
            _signal(pid, parents.get(pid, 0), signal.SIGCONT)  # the container's root may have stopped it
        below = set(reapers)
        for pid in sorted(pids, key=lambda number: _find_depth(number, parents)):
            if parents[pid] in below and pid not in reapers:
                below.add(pid)
                _signal(pid, parents[pid], signal.SIGKILL)
        if not session.namespace:
            # The command is not ready. Before it begins it checks that its report is still read, so closing the report ends it.
            # The reaper must not be killed first, or the command's zombie would be left to the container. A reaper without
            # a child may wait for something that never comes: after some rounds the first process is killed.
            _close_report(session, poll)
            session.rounds += 1
            if below == reapers and session.rounds > _PATIENCE_ROUNDS:
                os.kill(session.pid, signal.SIGKILL)


def _find_depth(pid: int, parents: dict[int, int]) -> int:
    depth = 0
    while pid in parents and depth < len(parents):
        pid = parents[pid]
        depth += 1
    return depth


def _signal(pid: int, parent: int, number: int) -> None:
    """Send NUMBER to PID if PARENT is still its parent."""
    with suppress(processes.ProcessGone), processes.Process(pid) as process:
        if processes.read_parent(pid) == parent:
            process.kill(number)


def _kill_all_in(namespace: str, pids: list[int]) -> bool:
    """Kill those of PIDS that are in the mount NAMESPACE; return True if any were."""
    found = False
    for pid in pids:
        with suppress(processes.ProcessGone, PermissionError), processes.Process(pid) as process:
            if process.namespace("mnt") == namespace:
                process.kill(signal.SIGKILL)
                found = True
    return found


def _finish(session: _Session, poll: select.poll) -> None:
    """Tell the module how the command ended, and close the session's descriptors."""
    if session.error:
        command.tell(session.channel, {"error": session.error})
    else:
        command.tell(session.channel, {"rc": session.rc})
    _close_report(session, poll)
    os.close(session.channel)
    os.close(session.first_process)
