# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a function in the mount namespaces of other processes, and return its results or exceptions.

The function runs in a forked child that can be killed (bounded.py), for it may hang: a container may serve its own /dev from a FUSE
process. Source: setns(2), pid_namespaces(7).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mount_tables import read_table
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import select_lines
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, open_owner


@dataclass(frozen=True)
class MountNamespace:
    """The mount namespace and the root directory of a process, kept alive by descriptors."""

    namespace_fd: int
    root_fd: int

    def stat_owner(self) -> os.stat_result:
        """Return the stat of the user namespace that owns this mount namespace: capabilities in there are valid for it."""
        fd = open_owner(self.namespace_fd)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close both descriptors."""
        os.close(self.namespace_fd)
        os.close(self.root_fd)


def open_mount_namespace(process: Process) -> MountNamespace:
    """Open the mount namespace and the root of PROCESS; raises ProcessGone when PROCESS has ended. The caller has to close it."""
    namespace_fd = process.open("ns/mnt")
    with ExitStack() as undo:
        undo.callback(os.close, namespace_fd)
        root_fd = process.open("root", os.O_PATH | os.O_DIRECTORY)
        undo.pop_all()
    return MountNamespace(namespace_fd, root_fd)


def enter_mount_namespace(namespace: MountNamespace) -> None:
    """Move the calling process into NAMESPACE, and make NAMESPACE's root its root and working directory."""
    syscalls.setns(namespace.namespace_fd, syscalls.CLONE_NEWNS)
    os.fchdir(namespace.root_fd)
    os.chroot(".")


def run_in_mount_namespaces(
    namespaces: Sequence[MountNamespace],
    function: Callable[[int], Any],
    keep: Sequence[int],
    timeout_s: float,
    prepare: Callable[[], None] | None = None,
) -> list[Any]:
    """Call FUNCTION(index) inside each of NAMESPACES, and return for each its result, or the OSError that it raised.

    The calls run in a child. FUNCTION returns values that JSON can hold; KEEP are the descriptors it uses. A call that takes more
    than TIMEOUT_S gives TimeoutError. Every child calls PREPARE once, before it enters a namespace.
    """
    is_prepared = False

    def call(index: int) -> Any:
        nonlocal is_prepared  # each child has its own copy
        if prepare is not None and not is_prepared:
            prepare()
            is_prepared = True
        enter_mount_namespace(namespaces[index])
        return function(index)

    pinned = [fd for namespace in namespaces for fd in (namespace.namespace_fd, namespace.root_fd)]
    return bounded.run(len(namespaces), call, [*keep, *pinned], timeout_s)


def read_mountinfo(namespace_fds: Sequence[int], needles: Sequence[str], timeout_s: float) -> list[list[str] | OSError]:
    """Return, for each mount namespace of NAMESPACE_FDS, the lines of its mountinfo, or the OSError that kept it from being read.

    The lines show the mounts from the root of the namespace. With NEEDLES, only lines that hold one of NEEDLES are returned.
    Each namespace has TIMEOUT_S.
    """
    own_fds: list[int] = []  # each child has its own copy

    def call(index: int) -> list[str]:
        if not own_fds:
            own_fds.append(os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        syscalls.setns(namespace_fds[index], syscalls.CLONE_NEWNS)
        fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own_fds[0])
        try:
            return select_lines(read_table(fd), needles)
        finally:
            os.close(fd)

    return bounded.run(len(namespace_fds), call, namespace_fds, timeout_s)
