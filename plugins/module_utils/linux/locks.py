# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks between processes of one host, which the kernel drops with their holder (flock(2))."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder

_RETRY_S = 0.005


class LockTimeout(Exception):
    """Somebody else held the lock for the whole time."""


@contextmanager
def lock(path: str, timeout_s: float, *, may_make_folder: bool = True) -> Iterator[int]:
    """Hold the exclusive lock of file PATH, made when missing; gives the file's descriptor.

    Its directory is made, too (mode 0700), unless MAY_MAKE_FOLDER is false: then FileNotFoundError says that it is missing.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if may_make_folder:
            make_folder(os.path.dirname(path))
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if may_make_folder:
                continue  # a cleanup took the directory just now
            raise
        try:
            _wait(fd, path, deadline)
            if _is_still(fd, path):
                yield fd
                return
        finally:
            os.close(fd)


def _wait(fd: int, path: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LockTimeout(
                    f"another process holds {path}; see who with 'lslocks', and try again when it is done"
                ) from None
            time.sleep(_RETRY_S)


def _is_still(fd: int, path: str) -> bool:
    """Whether PATH still names the locked file: a cleanup may have removed it while we waited."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def tell_holder(fd: int) -> None:
    """Write into the locked file FD that this process holds it, for find_holder."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)


def find_holder(path: str) -> int | None:
    """The pid that the holder of the lock PATH has told, 0 where it has not yet; None when nobody holds it, or when the caller may
    not see it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.read(fd, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
