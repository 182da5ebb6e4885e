# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of somebody who may be hostile: looked at before they are opened, and opened only where they are regular.

To open a device or a pipe does something (a driver's open, a wait for a writer). So a path is first held as a place (O_PATH), which
opens nothing, and that very place is opened then, whatever its name has become meanwhile. Both may hang on a file system that
never answers: call it in a child that can be killed (bounded.py). Sources: open(2), openat2(2), proc(5).
"""

from __future__ import annotations

import os
import stat

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

TIMEOUT_S = 10.0  # for one container's files, which are small or read in parts
_KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
}


class StrangeFile(FleetError):
    """There is no regular file; the text says what there is instead and does not name it."""


def open_regular(root_fd: int, path: str) -> int:
    """A descriptor to read PATH by, found as if ROOT_FD were the root; links of /proc are not followed.

    Raises StrangeFile where it is no regular file, and OSError.
    """
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    place_fd = syscalls.openat2(root_fd, path, os.O_PATH, resolve)
    try:
        mode = os.fstat(place_fd).st_mode
        if not stat.S_ISREG(mode):
            raise StrangeFile(f"it is no regular file but {_KINDS.get(stat.S_IFMT(mode), 'something else')}")
        # Another one's lease must not keep us waiting.
        return os.open(f"/proc/self/fd/{place_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        os.close(place_fd)


def read_regular(root_fd: int, path: str, max_bytes: int) -> bytes:
    """The first MAX_BYTES of it at most. What has no size, such as a file of /proc, is not read."""
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
