# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private view of a container's files with a tool image in it, which the container's own processes never see.

In a private copy of its mount namespace a small tmpfs covers the folder that the image goes into (/dev), with everything
that stood there bound into it again, and the image beside. It is gone with the last process that stands in it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    enter_mount_namespace,
)

SCRATCH_SUFFIX = "-scratch"  # after an image's prefix: where a folder for what a command needs besides is seen


def enter_private_copy(
    namespace: MountNamespace | None, mount_fd: int, prefix: str, scratch_fd: int | None = None
) -> None:
    """Stand in a private copy of NAMESPACE with the image of MOUNT_FD at PREFIX, and the mount SCRATCH_FD beside it.

    NAMESPACE None is the one that the caller is in.
    """
    if namespace is not None:
        enter_mount_namespace(namespace)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount_make_private("/")
    parent, name = os.path.split(prefix)
    # Whoever may trace this process reaches what it has open.
    with ExitStack() as stack:
        root_fd = _hold(stack, os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        parent_fd = _hold(stack, mounts.open_beneath(root_fd, parent, os.O_RDONLY | os.O_DIRECTORY))
        cover_fd = _hold(stack, mounts.mount_create("tmpfs", None, syscalls.MOUNT_ATTR_NOSUID, mode="0755", size="16m"))
        syscalls.move_mount(cover_fd, parent_fd)
        for entry in os.listdir(parent_fd):
            if entry not in (name, name + SCRATCH_SUFFIX):
                _bind_again(parent_fd, entry, cover_fd)
        _mount_in(cover_fd, name, mount_fd)
        if scratch_fd is not None:
            _mount_in(cover_fd, name + SCRATCH_SUFFIX, scratch_fd)
            # It is a piece of the host's /run, and shares its mount events with it until told not to.
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            os.fchdir(_hold(stack, os.open(name + SCRATCH_SUFFIX, flags, dir_fd=cover_fd)))
            syscalls.mount_make_private(".")
            os.chdir("/")


def _hold(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _mount_in(cover_fd: int, name: str, mount_fd: int) -> None:
    os.mkdir(name, 0o755, dir_fd=cover_fd)
    folder_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=cover_fd)
    syscalls.move_mount(mount_fd, folder_fd)
    os.close(folder_fd)


def _bind_again(parent_fd: int, entry: str, cover_fd: int) -> None:
    """Show ENTRY of the covered folder in the tmpfs that covers it."""
    try:
        mode = os.stat(entry, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(entry, dir_fd=parent_fd), entry, dir_fd=cover_fd)
            return
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
        tree_fd = syscalls.open_tree(parent_fd, entry, flags)
    except FileNotFoundError:
        return  # the container removed it meanwhile
    if stat.S_ISDIR(mode):
        os.mkdir(entry, 0o755, dir_fd=cover_fd)
    else:
        os.close(os.open(entry, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=cover_fd))
    try:
        place_fd = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cover_fd)
        syscalls.move_mount(tree_fd, place_fd)
        os.close(place_fd)
    except OSError as error:
        if error.errno != errno.ENOTDIR:  # a file became a folder meanwhile: leave it out
            raise
    os.close(tree_fd)
