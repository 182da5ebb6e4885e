# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a function that may hang in a child that can be killed, and return its results, exceptions or descriptors.

A file system that a container serves (by FUSE) may never answer. So a forked child reads the container's files. The child holds only
the descriptors it needs, imports nothing, and sends its results to the parent as lines of JSON. One child makes many calls in turn.
The parent kills a child that hangs, and a new child makes the remaining calls.
"""

from __future__ import annotations

import array
import errno
import gc
import json
import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

_MAX_REAP_S = 1.0
_MAX_DESCRIPTORS = 16  # in one read, which returns the descriptors of one message
_PART = 65536


@dataclass(frozen=True)
class Held:
    """A result that comes with open descriptors."""

    value: Any  # what JSON can hold
    fds: tuple[int, ...]  # in the parent, the caller has to close them


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in KEEP. A child has to call this before it touches anything of a container."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the descriptor by which the folder was listed


def run(
    count: int,
    function: Callable[[int], Any],
    keep: Sequence[int],
    timeout_s: float,
    *,
    gives_descriptors: bool = False,
) -> list[Any]:
    """Call FUNCTION(index) in a child for each index below COUNT, and return for each its result, or the OSError that it raised.

    FUNCTION returns a value that JSON can hold or, with GIVES_DESCRIPTORS, a Held, whose descriptors the caller has to close.
    KEEP are the descriptors that FUNCTION uses. A call that takes more than TIMEOUT_S gives TimeoutError.
    """
    outcomes: list[Any] = []
    while len(outcomes) < count:
        first = len(outcomes)
        reader, writer = _open_channel(gives_descriptors)
        pid = os.fork()
        if pid == 0:
            _serve(range(first, count), function, writer, {writer, *keep}, gives_descriptors)
        os.close(writer)
        try:
            outcomes += _Collector(reader, gives_descriptors).collect(count - first, timeout_s)
        finally:
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            _reap(pid, min(timeout_s, _MAX_REAP_S))
    return outcomes


def _open_channel(gives_descriptors: bool) -> tuple[int, int]:
    if not gives_descriptors:
        return os.pipe2(os.O_CLOEXEC)
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _reap(pid: int, timeout_s: float) -> None:
    """Wait up to TIMEOUT_S for the killed child PID: a request to a hostile file system can delay even SIGKILL."""
    deadline = time.monotonic() + timeout_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.0005)


def _serve(
    indexes: Sequence[int], function: Callable[[int], Any], writer: int, keep: set[int], gives_descriptors: bool
) -> NoReturn:
    status = 1
    try:
        gc.disable()
        syscalls.set_parent_death_signal(signal.SIGKILL)
        close_all_but(keep)
        for index in indexes:
            try:
                result = function(index)
                reply = (
                    {"held": result.value, "count": len(result.fds)} if isinstance(result, Held) else {"value": result}
                )
            except OSError as error:
                result, reply = None, {"errno": error.errno, "error": str(error.strerror)}
            line = json.dumps(reply).encode("ascii") + b"\n"
            if gives_descriptors and isinstance(result, Held):
                for fd in result.fds:
                    _send_descriptor(writer, fd)
                    os.close(fd)
            _write(writer, line)
        status = 0
    finally:
        os._exit(status)


def _send_descriptor(writer: int, fd: int) -> None:
    """Send FD with a blank, before the reply that it belongs to: when the reply is complete, the parent has the descriptor."""
    with socket.socket(fileno=os.dup(writer)) as channel:
        channel.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Collector:
    """The parent's end of the channel to one child, which collects the child's replies from descriptor READER."""

    def __init__(self, reader: int, gives_descriptors: bool) -> None:
        self._reader = reader
        self._gives_descriptors = gives_descriptors
        self._fds: deque[int] = deque()

    def collect(self, count: int, timeout_s: float) -> list[Any]:
        """Return the child's next COUNT outcomes, or fewer when it hangs or ends: the last one is then a TimeoutError."""
        outcomes: list[Any] = []
        with ExitStack() as stack:
            stack.callback(self._close)
            with ExitStack() as undo:
                undo.callback(self._take_back, outcomes)
                self._collect(outcomes, count, timeout_s)
                undo.pop_all()
        return outcomes

    def _take_back(self, outcomes: list[Any]) -> None:
        """Queue the descriptors of OUTCOMES, which no caller will get, to be closed."""
        self._fds.extend(fd for outcome in outcomes if isinstance(outcome, Held) for fd in outcome.fds)

    def _close(self) -> None:
        """Close the descriptors that belong to no reply, such as those of a child that was killed before it sent the reply."""
        for fd in self._fds:
            os.close(fd)

    def _collect(self, outcomes: list[Any], count: int, timeout_s: float) -> None:
        buffer = b""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()  # select(2) takes no descriptor above 1023, and some hundred containers need more
        poll.register(self._reader, select.POLLIN)
        while len(outcomes) < count:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            part = self._read() if ready else b""
            if not part:
                reason = "the helper process ended without an answer" if ready else f"it took more than {timeout_s:g} s"
                outcomes.append(TimeoutError(110, reason))
                return
            *lines, buffer = (buffer + part).split(b"\n")
            outcomes += map(self._parse, lines)
            if lines:
                deadline = time.monotonic() + timeout_s

    def _read(self) -> bytes:
        if not self._gives_descriptors:
            return os.read(self._reader, _PART)
        with socket.socket(fileno=os.dup(self._reader)) as channel:
            size = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
            part, messages, _flags, _address = channel.recvmsg(_PART, size, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in messages:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
                self._fds.extend(fds)
        return part

    def _parse(self, line: bytes) -> Any:
        reply = json.loads(line)
        if "held" in reply:
            if len(self._fds) < reply["count"]:  # the kernel drops descriptors above this process's limit
                return OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return Held(reply["held"], tuple(self._fds.popleft() for _fd in range(reply["count"])))
        return reply["value"] if "value" in reply else OSError(reply["errno"], reply["error"])
