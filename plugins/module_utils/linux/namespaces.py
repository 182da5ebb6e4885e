# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a function in other processes' mount namespaces and get its results or exceptions back.

The function runs in a forked child that holds only what it needs, imports nothing, and talks to its
parent in lines of JSON. One child serves many namespaces in turn; one that hangs (a container may
serve its own /dev from a FUSE process) is killed and the next namespace gets a new child.
Source: setns(2), pid_namespaces(7).
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process


@dataclass(frozen=True)
class MountNamespace:
    """A process's mount namespace and root directory, as descriptors that pin both."""

    namespace_fd: int
    root_fd: int

    def close(self) -> None:
        """Let go of both."""
        os.close(self.namespace_fd)
        os.close(self.root_fd)


def open_mount_namespace(process: Process) -> MountNamespace:
    """The mount namespace of PROCESS; raises ProcessGone when it has ended."""
    namespace_fd = process.open("ns/mnt")
    try:
        root_fd = process.open("root", os.O_PATH | os.O_DIRECTORY)
    except BaseException:
        os.close(namespace_fd)
        raise
    return MountNamespace(namespace_fd, root_fd)


def enter_mount_namespace(namespace: MountNamespace) -> None:
    """Put the calling process into NAMESPACE, with its root as root directory."""
    syscalls.setns(namespace.namespace_fd, syscalls.CLONE_NEWNS)
    os.fchdir(namespace.root_fd)
    os.chroot(".")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not in KEEP; call it before entering a namespace that is not trusted."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # the descriptor of the listing itself


def run_in_mount_namespaces(
    namespaces: Sequence[MountNamespace],
    function: Callable[[int], Any],
    keep: Sequence[int],
    timeout_s: float,
    prepare: Callable[[], None] | None = None,
) -> list[Any]:
    """FUNCTION(index) run inside each of NAMESPACES; its result, or the OSError it ended with, by index.

    FUNCTION returns what JSON can hold. KEEP are the descriptors it uses. Each call has TIMEOUT_S. A child calls PREPARE
    before it enters the first one.
    """
    outcomes: list[Any] = []
    while len(outcomes) < len(namespaces):
        first = len(outcomes)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            _serve(namespaces, function, first, writer, {writer, *keep}, prepare)
        os.close(writer)
        try:
            outcomes += _collect(reader, len(namespaces) - first, timeout_s)
        finally:
            os.close(reader)
            os.kill(pid, signal.SIGKILL)
            _reap(pid, timeout_s)
    return outcomes


def _reap(pid: int, timeout_s: float) -> None:
    """Wait for the killed child PID, but not for ever: in a request to a hostile file system even SIGKILL can wait."""
    deadline = time.monotonic() + timeout_s
    while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.0005)


def _serve(
    namespaces: Sequence[MountNamespace],
    function: Callable[[int], Any],
    first: int,
    writer: int,
    keep: set[int],
    prepare: Callable[[], None] | None,
) -> NoReturn:
    status = 1
    try:
        gc.disable()
        syscalls.set_parent_death_signal(signal.SIGKILL)
        for namespace in namespaces[first:]:
            keep |= {namespace.namespace_fd, namespace.root_fd}
        close_all_but(keep)
        for index in range(first, len(namespaces)):
            try:
                if prepare is not None and index == first:
                    prepare()
                enter_mount_namespace(namespaces[index])
                reply = {"value": function(index)}
            except OSError as error:
                reply = {"errno": error.errno, "error": str(error.strerror)}
            os.write(writer, json.dumps(reply).encode("ascii") + b"\n")
        status = 0
    finally:
        os._exit(status)


def _collect(reader: int, count: int, timeout_s: float) -> list[Any]:
    """Replies of one child: COUNT of them, or fewer of which the last says why it stopped."""
    outcomes: list[Any] = []
    buffer = b""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()  # select(2) takes no descriptor above 1023, and some hundred containers need that many
    poll.register(reader, select.POLLIN)
    while len(outcomes) < count:
        ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        part = os.read(reader, 65536) if ready else b""
        if not part:
            reason = "the helper ended without a word" if ready else f"it took more than {timeout_s:g} s"
            return [*outcomes, TimeoutError(110, reason)]
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            outcomes.append(reply["value"] if "value" in reply else OSError(reply["errno"], reply["error"]))
        if lines:
            deadline = time.monotonic() + timeout_s
    return outcomes
