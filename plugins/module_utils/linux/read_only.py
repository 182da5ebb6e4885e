# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A read-only view of the host's files, for helper processes that a container's processes may be able to trace.

A process that may trace another one reaches its program and libraries through /proc/PID/exe and /proc/PID/map_files. The kernel
grants it the mounts by which the traced process opened them. In the mount namespace made here, these mounts are read-only, so a
container cannot write to the host's files. Sources: mount_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls

# Options that a remount has to repeat: the kernel clears those that are not given (mount(2)).
_KEPT = {
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
# The mount is covered by another one, may not be entered, or is on a server that is gone: no program can be started from it.
_UNREACHABLE = (errno.ENOENT, errno.EINVAL, errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EHOSTDOWN)


@contextmanager
def enter_read_only_view() -> Iterator[None]:
    """Show the calling process all file systems but /proc read-only while the context lasts.

    Processes that are started meanwhile keep this view. Unmounts on a host with shared mounts reach the view, so it keeps no file
    system busy. The caller must be single-threaded. Raises OSError when the file system of Python stays writable.
    """
    own_fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    folder_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        try:
            syscalls.mount_make_slave("/")
            make_read_only()
            if not os.statvfs(sys.executable).f_flag & os.ST_RDONLY:
                raise OSError(errno.EPERM, f"the file system of {sys.executable} cannot be seen read-only")
            yield
        finally:
            syscalls.setns(own_fd, syscalls.CLONE_NEWNS)
            # setns has set the root and the working directory to the root of the mount namespace.
            os.fchdir(root_fd)
            os.chroot(".")
            os.fchdir(folder_fd)
    finally:
        for fd in (own_fd, root_fd, folder_fd):
            os.close(fd)


def make_read_only() -> None:
    """Make all mounts of the caller's mount namespace read-only, except the mount of /proc."""
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(root_fd, give=syscalls.MOUNT_ATTR_RDONLY, recursive=True)
        syscalls.mount_setattr(proc_fd, take=syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        remount_read_only()  # before Linux 5.12
    finally:
        os.close(root_fd)
        os.close(proc_fd)


def remount_read_only() -> None:
    """Remount each mount of the caller's mount namespace read-only, except /proc, for kernels without mount_setattr (before Linux 5.12).

    Mounts that are covered by others stay as they are, for no path leads to them.
    """
    for mount in mounts.read_mounts():
        options = mount.options.split(",")
        if mount.mount_point == "/proc" or "ro" in options:
            continue
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
        for name in options:
            flags |= _KEPT.get(name, 0)
        try:
            syscalls.mount("none", mount.mount_point, "none", flags)
        except OSError as error:
            if error.errno not in _UNREACHABLE:
                raise
