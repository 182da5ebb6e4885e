# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a function in other processes' mount namespaces and get its results or exceptions back.

The function runs in a forked child that can be killed (bounded.py): a container may serve its own /dev from a FUSE process.
Source: setns(2), pid_namespaces(7).
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
    """A process's mount namespace and root directory, as descriptors that pin both."""

    namespace_fd: int
    root_fd: int

    def stat_owner(self) -> os.stat_result:
        """The user namespace that it belongs to: what its owner may do, whoever has capabilities in there may."""
        fd = open_owner(self.namespace_fd)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go of both."""
        os.close(self.namespace_fd)
        os.close(self.root_fd)


def open_mount_namespace(process: Process) -> MountNamespace:
    """The mount namespace of PROCESS; raises ProcessGone when it has ended."""
    namespace_fd = process.open("ns/mnt")
    with ExitStack() as undo:
        undo.callback(os.close, namespace_fd)
        root_fd = process.open("root", os.O_PATH | os.O_DIRECTORY)
        undo.pop_all()
    return MountNamespace(namespace_fd, root_fd)


def enter_mount_namespace(namespace: MountNamespace) -> None:
    """Put the calling process into NAMESPACE, with its root as root directory."""
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
    """FUNCTION(index) run inside each of NAMESPACES; its result, or the OSError it ended with, by index.

    FUNCTION returns what JSON can hold. KEEP are the descriptors it uses. Each call has TIMEOUT_S. A child calls PREPARE
    before it enters the first one.
    """
    is_prepared = False

    def call(index: int) -> Any:
        nonlocal is_prepared  # of this child; another one has its own
        if prepare is not None and not is_prepared:
            prepare()
            is_prepared = True
        enter_mount_namespace(namespaces[index])
        return function(index)

    pinned = [fd for one in namespaces for fd in (one.namespace_fd, one.root_fd)]
    return bounded.run(len(namespaces), call, [*keep, *pinned], timeout_s)


def read_mountinfo(namespace_fds: Sequence[int], needles: Sequence[str], timeout_s: float) -> list[list[str] | OSError]:
    """The lines of mountinfo as seen from the root of each mount namespace of NAMESPACE_FDS, or the OSError by which it cannot be read.

    Of NEEDLES, where there are any, each line holds one. Each look has TIMEOUT_S.
    """
    own_fds: list[int] = []  # of the child

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
