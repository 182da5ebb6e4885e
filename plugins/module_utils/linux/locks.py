# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks between processes of one host. The kernel releases a lock when its holder ends (flock(2))."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder

_RETRY_S = 0.005


class LockTimeout(Exception):
    """Another process held the lock until the time was up."""


@contextmanager
def lock(path: str, timeout_s: float, *, may_make_folder: bool = True) -> Iterator[int]:
    """Hold the exclusive lock of the file PATH while the context lasts, and yield the file's descriptor.

    A missing file is made, and so is its folder (mode 0700). With MAY_MAKE_FOLDER false, a missing folder raises FileNotFoundError.
    Raises LockTimeout when another process holds the lock for TIMEOUT_S.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        if may_make_folder:
            make_folder(os.path.dirname(path))
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            if may_make_folder:
                continue  # a cleanup has just removed the folder
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
    """Return True if PATH still names the locked file FD: a cleanup may have removed the file while we waited."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def tell_holder(fd: int) -> None:
    """Write this process's pid into the locked file FD, for find_holder."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode("ascii"), 0)


def find_holder(path: str) -> int | None:
    """Return the pid of the process that holds the lock PATH; 0 while the holder has not written its pid (tell_holder).

    Returns None when no process holds the lock, or when the caller may not open the file.
    """
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
