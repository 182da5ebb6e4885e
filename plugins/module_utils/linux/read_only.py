# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A read-only view of the caller's files, for programs that will stand where strangers can reach what they have mapped.

Whoever may trace a process reaches its program and libraries through /proc/PID/exe and /proc/PID/map_files, by the mounts that the
process has them from. Those are read-only in a mount namespace of its own. Sources: mount_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import contextmanager
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls

# Options of a mount that a remount has to repeat, else they would be gone (mount(2)).
_KEPT = {
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
}
# Covered by another mount, not to be entered, or on a server that is gone: nothing that is started comes from there.
_UNREACHABLE = (errno.ENOENT, errno.EINVAL, errno.EACCES, errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EHOSTDOWN)


@contextmanager
def enter_read_only_view() -> Iterator[None]:
    """Have the calling process see all file systems but /proc read-only while the context lasts; what it starts meanwhile goes on so.

    The host's unmounts reach the view, so that it keeps no file system of a host with shared mounts busy. The caller must be single-threaded.
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
            # To enter a mount namespace leads to its root.
            os.fchdir(root_fd)
            os.chroot(".")
            os.fchdir(folder_fd)
    finally:
        for fd in (own_fd, root_fd, folder_fd):
            os.close(fd)


def make_read_only() -> None:
    """Make all mounts of the caller's mount namespace read-only, but for that of /proc."""
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
    """Do what make_read_only does, mount by mount and by their paths. Covered mounts, which no path leads to, stay as they are."""
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
