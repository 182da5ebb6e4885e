# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read how large the file systems of a container are, and how full, without waiting for one that never answers.

Only the kernel's own file systems on local disks and in memory are asked. A path that leads over another one, such as NFS or FUSE, is not
walked, and no symbolic link is followed. A container can still put a mount in the way meanwhile: collect.py has this done by a child that
can be killed. Sources: proc_pid_mountinfo(5), openat2(2), statfs(2).
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import (
    MAX_MOUNTS,
    MAX_NUMBER,
    MAX_TEXT,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import Until, decode
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_open_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process

_SIZED = frozenset(("tmpfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"))
# To stat an overlay is to stat the file system of its upper folder. The engine has made the one that is the container's root.
_ROOTS = _SIZED | {"overlay"}
_PASSABLE = _ROOTS | {"proc", "sysfs", "devpts", "devtmpfs", "mqueue", "cgroup", "cgroup2", "ramfs"}
_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)  # proc_pid_fdinfo(5)


def gen_sized(mounts: Iterable[Mount]) -> Iterator[Mount]:
    """Yield those of MOUNTS, the table of one namespace, whose size can be asked for without a walk over a file system that may hang."""
    by_id = {mount.mount_id: mount for mount in mounts}
    passable = {mount_id for mount_id, mount in by_id.items() if mount.filesystem in _PASSABLE}
    for mount in by_id.values():
        if mount.filesystem not in (_ROOTS if mount.mount_point == "/" else _SIZED):
            continue
        seen: set[int] = set()
        above = by_id.get(mount.parent_id)
        # The table lacks what is above the root, and a mount of the namespace's own root can be its own parent.
        while above is not None and above.mount_id not in seen and above.mount_id in passable:
            seen.add(above.mount_id)
            above = by_id.get(above.parent_id)
        if above is None or above.mount_id in seen:
            yield mount


def list_sizes(first: Process, until: Until) -> tuple[list[dict[str, Any]], int]:
    """Return entries for the mounts of FIRST, a container's first process, that have a size, and the number of those left out.

    An entry has path, filesystem, size and free in bytes, files and free_files; None is for no limit. Raises ProcessGone and OSError.
    """
    fd = first.open("mountinfo")
    try:
        mounts = sorted(gen_sized(read_open_mounts(fd)), key=lambda mount: mount.mount_point.count("/"))
    finally:
        os.close(fd)
    root_fd = first.open("root", os.O_PATH | os.O_DIRECTORY)
    entries: list[dict[str, Any]] = []
    left_out = 0
    try:
        for mount in mounts:
            path = os.fsencode(mount.mount_point)
            if len(entries) >= MAX_MOUNTS or len(path) > MAX_TEXT or until.is_over():
                left_out += 1
                continue
            sizes = _read_sizes(root_fd, mount)
            if sizes is not None:
                entries.append({"path": decode(path), "filesystem": mount.filesystem, **sizes})
    finally:
        os.close(root_fd)
    return entries, left_out


def _read_sizes(root_fd: int, mount: Mount) -> dict[str, int | None] | None:
    """Return the sizes of MOUNT below ROOT_FD; None if another mount covers it, or if it is no folder."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
    try:
        fd = syscalls.openat2(root_fd, mount.mount_point, os.O_PATH, resolve)
    except OSError:
        return None
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            match = _MOUNT_ID.search(file.read())
        if match is None or int(match.group(1)) != mount.mount_id or not stat.S_ISDIR(os.fstat(fd).st_mode):
            return None
        found = os.fstatvfs(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    size, files = found.f_blocks * found.f_frsize, found.f_files
    return {
        "size": _bound(size) if size else None,
        "free": _bound(found.f_bavail * found.f_frsize) if size else None,
        "files": _bound(files) if files else None,
        "free_files": _bound(found.f_favail) if files else None,
    }


def _bound(number: int) -> int:
    return min(number, MAX_NUMBER - 1)
