# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open files that may be hostile, such as a container's, only if they are regular files.

Opening a device or a pipe has effects: it calls a driver, or waits for a writer. So a path is first opened by O_PATH, which has no
effect. If that descriptor is of a regular file, the same file is opened through it, whatever its name has become meanwhile.
Both steps may hang on a file system that never answers: call them in a child that can be killed (bounded.py).
Sources: open(2), openat2(2), proc(5).
"""

from __future__ import annotations

import os
import stat

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

TIMEOUT_S = 10.0  # for the files of one container, which are small or read in parts
_KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


class StrangeFile(FleetError):
    """The path leads to something other than a regular file; the text says to what, without the path."""


def open_regular(root_fd: int, path: str) -> int:
    """Open the regular file PATH for reading, resolved as if ROOT_FD were the root, and return the descriptor.

    Raises StrangeFile when it is no regular file; OSError when it cannot be opened, and for magic links (those of /proc).
    """
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    place_fd = syscalls.openat2(root_fd, path, os.O_PATH, resolve)
    try:
        mode = os.fstat(place_fd).st_mode
        if not stat.S_ISREG(mode):
            raise StrangeFile(f"it is no regular file but {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
        # O_NONBLOCK: the lease of another process must not keep us waiting.
        return os.open(f"/proc/self/fd/{place_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(place_fd)


def read_regular(root_fd: int, path: str, max_bytes: int) -> bytes:
    """Return the first MAX_BYTES, or fewer, of the regular file PATH, resolved as if ROOT_FD were the root.

    Files that report the size 0, such as those of /proc, give b"". Raises StrangeFile and OSError, as open_regular does.
    """
    fd = open_regular(root_fd, path)
    try:
        left = min(max_bytes, os.fstat(fd).st_size)
        parts = []
        while left > 0:
            part = os.read(fd, left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)
