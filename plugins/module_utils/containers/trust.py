# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trust in paths of the host: root alone, one user, or several users can change what is there.

Paths are walked by descriptors.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError

MAX_BYTES = 16 << 20  # that are read from one user, or from one file of an engine
_MAX_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(ContainerError):
    """A path that is not believed, since others than root, or than a single user, can change what is there."""


class Unreadable(Exception):
    """A file that is refused here; the text says why."""


def find_owner(path: str) -> int:
    """Return the user who can change what is at PATH (absolute); 0 for root alone.

    Everything below a folder or a link of a user is that user's and is not looked at. Raises OSError where nothing is at PATH,
    and Untrusted where a group or everybody can change it.
    """
    with _open_walked(path) as (_fd, owner):
        return owner


def read_file(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of the regular file at PATH (absolute), which root alone can change.

    Raises OSError, Untrusted where others can change it, and Unreadable where it is no regular file or has more than MAX_BYTES.
    """
    with _open_walked(path) as (fd, owner):
        if owner != 0:
            raise Untrusted(f"user {owner} can change {path}")
        # An O_PATH descriptor cannot be read: the file is opened anew, with a check of its mode, by a name that the kernel made.
        return read_regular(fd, f"/proc/self/fd/{fd}", max_bytes, follow=True)


def read_regular(fd: int, name: str, max_bytes: int, *, follow: bool = False) -> bytes:
    """Return the bytes of the regular file NAME below the folder FD, whoever made it; nothing else than a regular file is opened.

    FOLLOW allows a link, for names that the kernel made. Raises OSError, and Unreadable where it is no regular file or has more than MAX_BYTES.
    """
    if not stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=follow).st_mode):
        raise Unreadable("no regular file")
    opened = os.open(name, _READ & ~os.O_NOFOLLOW if follow else _READ, dir_fd=fd)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise Unreadable("no regular file")
        parts: list[bytes] = []
        left = max_bytes + 1
        while left > 0:
            part = os.read(opened, min(left, 1 << 20))
            if not part:
                return b"".join(parts)
            parts.append(part)
            left -= len(part)
        raise Unreadable(f"more than {max_bytes} bytes")
    finally:
        os.close(opened)


@contextmanager
def _open_walked(path: str) -> Iterator[tuple[int, int]]:
    """Yield a descriptor of what is at PATH, and its owner; at the first part that a user owns the walk ends, and that part is given."""
    fd = os.open("/", _LOOK)
    try:
        parts = [part for part in reversed(path.split("/")) if part]
        links = 0
        while parts:
            part = parts.pop()
            found = os.open(part, _LOOK, dir_fd=fd)
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode) and status.st_uid == 0:
                target = os.readlink("", dir_fd=found)
                os.close(found)
                links += 1
                if links > _MAX_LINKS:
                    raise Untrusted(f"{path} is behind too many links")
                if target.startswith("/"):
                    os.close(fd)
                    fd = os.open("/", _LOOK)
                parts += [name for name in reversed(target.split("/")) if name]
                continue
            os.close(fd)
            fd = found
            if status.st_uid != 0:
                yield fd, status.st_uid
                return
            _check_rights(path, part, status, is_last=not parts)
        yield fd, 0
    finally:
        os.close(fd)


def _check_rights(path: str, part: str, status: os.stat_result, *, is_last: bool) -> None:
    """Raise Untrusted where a group or everybody can replace PATH, or put something into it, by way of its PART with STATUS."""
    # Write access to a socket lets a process talk to the server, and no more.
    if not status.st_mode & _WRITABLE or stat.S_ISSOCK(status.st_mode):
        return
    # In a sticky folder others cannot remove or rename root's entries.
    if status.st_mode & stat.S_ISVTX and stat.S_ISDIR(status.st_mode) and not is_last:
        return
    raise Untrusted(
        f"{path} is not believed: its part {part!r} can be changed by others than root (mode {stat.S_IMODE(status.st_mode):04o})"
    )
