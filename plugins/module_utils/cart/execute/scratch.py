# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection's folder for temporary files: a tmpfs with bounds of its own that only the connection's commands see.

A container may write more there than the host has room for, or nest folders deeper than anybody can walk. So the files are on no
file system of the host, and unmounting removes them without a look at them.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import PRIVATE, make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN

FOLDER = os.path.join(RUN, "scratch")
MAX_BYTES = 512 << 20
_MAX_FILES = 65536
_SOURCE = "crashcart-scratch"  # marks our mounts
_FILES = "files"  # below a folder for root only: the command's user must not change that folder's time or lock
_FORGOTTEN_S = 3600.0  # after which a folder that no command uses counts as forgotten


def open_scratch(name: str, uid: int, gid: int, max_bytes: int = MAX_BYTES) -> int:
    """Return a detached mount of connection NAME's folder, which UID and GID own; the folder is made where it is missing.

    The connection counts as in use until this process ends. Folders of forgotten connections are removed.
    """
    folder = os.path.join(FOLDER, name)
    files = os.path.join(folder, _FILES)
    make_folder(FOLDER)
    make_folder(folder)
    os.utime(folder)
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH)  # until this process ends
    with suppress(FileExistsError):
        os.mkdir(files, PRIVATE)
    if os.lstat(files).st_dev == os.lstat(folder).st_dev:
        _mount(files, uid, gid, max_bytes)
    remove_forgotten()
    return syscalls.open_tree(-1, files, syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW)


def _mount(path: str, uid: int, gid: int, max_bytes: int) -> None:
    options = {"size": str(max_bytes), "nr_inodes": str(_MAX_FILES), "mode": "0700", "uid": str(uid), "gid": str(gid)}
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in {"source": _SOURCE, **options}.items():
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        mount_fd = syscalls.fsmount(context, syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV)
    finally:
        os.close(context)
    try:
        place_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            syscalls.move_mount(mount_fd, place_fd)
        finally:
            os.close(place_fd)
    finally:
        os.close(mount_fd)
    syscalls.mount_make_private(path)


def remove(name: str) -> None:
    """Remove connection NAME's folder; on an error the rest stays for a later cleanup, so that no task fails because of it."""
    if not name:
        return
    folder = os.path.join(FOLDER, name)
    files = os.path.join(folder, _FILES)
    with suppress(OSError):
        while True:  # until nothing is mounted there
            syscalls.umount2(files, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
    for empty in (files, folder):
        with suppress(OSError):
            os.rmdir(empty)


def remove_forgotten() -> None:
    """Remove the folders of connections whose controller was killed, which nothing else removes."""
    for name in os.listdir(FOLDER):
        with suppress(OSError):  # in use, or gone
            fd = os.open(os.path.join(FOLDER, name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(fd).st_mtime > _FORGOTTEN_S:
                    remove(name)
            finally:
                os.close(fd)


def list_mounts() -> list[str]:
    """Return the mount points of connections' folders on the host, of those in use and of forgotten ones."""
    return [mount.mount_point for mount in mounts.read_mounts("self", _SOURCE) if mount.source == _SOURCE]
