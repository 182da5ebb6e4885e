# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a function that may hang in a child that can be killed, and get its results, exceptions or descriptors back.

What a container serves (a FUSE mount of its own) may never answer. So its files are looked at by a forked child that holds only
what it needs, imports nothing, and talks to its parent in lines of JSON. One child does many things in turn; one that hangs is
killed, and the next thing gets a new child.
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
_MAX_DESCRIPTORS = 16  # in one read; the kernel gives those of one message
_PART = 65536


@dataclass(frozen=True)
class Held:
    """A result VALUE that comes with the open descriptors FDS."""

    value: Any
    fds: tuple[int, ...]


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in KEEP; call it before anything of a container is touched."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the descriptor of the listing itself


def run(
    count: int,
    function: Callable[[int], Any],
    keep: Sequence[int],
    timeout_s: float,
    *,
    gives_descriptors: bool = False,
) -> list[Any]:
    """FUNCTION(index) for each index below COUNT, in a child; its result, or the OSError it ended with, by index.

    FUNCTION returns what JSON can hold or, with GIVES_DESCRIPTORS, a Held of that, whose descriptors the caller has to close. KEEP
    are the descriptors it uses. Each call has TIMEOUT_S.
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
    """Wait for the killed child PID, but not for ever: in a request to a hostile file system even SIGKILL can wait."""
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
    """Send FD before its reply, with a blank: it is at hand when the reply's last byte is."""
    with socket.socket(fileno=os.dup(writer)) as channel:
        channel.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


class _Collector:
    """What comes from one child through descriptor READER."""

    def __init__(self, reader: int, gives_descriptors: bool) -> None:
        self._reader = reader
        self._gives_descriptors = gives_descriptors
        self._fds: deque[int] = deque()

    def collect(self, count: int, timeout_s: float) -> list[Any]:
        """COUNT replies, or fewer, of which the last says why the child stopped."""
        outcomes: list[Any] = []
        with ExitStack() as stack:
            stack.callback(self._close)
            with ExitStack() as undo:
                undo.callback(self._take_back, outcomes)
                self._collect(outcomes, count, timeout_s)
                undo.pop_all()
        return outcomes

    def _take_back(self, outcomes: list[Any]) -> None:
        """Have the descriptors of OUTCOMES, which nobody will get, closed."""
        self._fds.extend(fd for one in outcomes if isinstance(one, Held) for fd in one.fds)

    def _close(self) -> None:
        """Close the descriptors of a child that was killed before it said what they are."""
        for fd in self._fds:
            os.close(fd)

    def _collect(self, outcomes: list[Any], count: int, timeout_s: float) -> None:
        buffer = b""
        deadline = time.monotonic() + timeout_s
        poll = select.poll()  # select(2) takes no descriptor above 1023, and some hundred containers need that many
        poll.register(self._reader, select.POLLIN)
        while len(outcomes) < count:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            part = self._read() if ready else b""
            if not part:
                reason = "the helper ended without a word" if ready else f"it took more than {timeout_s:g} s"
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
            if len(self._fds) < reply["count"]:  # the kernel drops what there is no room for
                return OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return Held(reply["held"], tuple(self._fds.popleft() for _fd in range(reply["count"])))
        return reply["value"] if "value" in reply else OSError(reply["errno"], reply["error"])
