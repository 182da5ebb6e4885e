# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the collection's own folders and files, with modes that do not depend on root's umask."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN, STATE

PRIVATE = 0o700
PUBLIC = 0o755
# The collection's own folders on a host. STATE is public: it holds the store, and captures that a login user fetches.
_TOPS = {RUN: PRIVATE, STATE: PUBLIC}
_ATTEMPTS = 100


def make_folder(path: str, mode: int = PRIVATE) -> None:
    """Make the collection's folder PATH with exactly MODE, or give MODE to the folder that is there.

    The folders above PATH are made likewise as far as they are the collection's own; RUN and STATE have fixed modes.
    Raises FleetError when one of them is a link, is no folder, or belongs to another user: its owner could exchange all files in it.
    """
    top = next((folder for folder in _TOPS if path == folder or path.startswith(folder + "/")), path)
    names = [name for name in path[len(top) :].split("/") if name]
    folders = [os.path.join(top, *names[:count]) for count in range(len(names) + 1)]
    for _attempt in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # a cleanup has just removed one of the folders
            make_missing(os.path.dirname(top) or "/", PUBLIC)
            for folder in folders:
                _make_one(folder, _TOPS.get(folder, mode))
            return
    raise FleetError(
        f"{path} cannot be made: another process removes it again and again; end that process, and try again"
    )


def _make_one(folder: str, mode: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(folder, PRIVATE)
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FleetError(f"{folder} is no folder but a link or a file, and not of ours: remove it") from error
        raise
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise FleetError(
                f"{folder} belongs to user {found.st_uid}, who could exchange what is in there: look at it, and remove it"
            )
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def make_missing(path: str, mode: int = PRIVATE) -> list[str]:
    """Make the folder PATH, and missing folders above, with exactly MODE, and return those that were made, the topmost first.

    Folders that are there stay as they are.
    """
    if os.path.isdir(path):
        return []
    parent = os.path.dirname(path)
    made = make_missing(parent, mode) if parent and parent != path else []
    try:
        os.mkdir(path, PRIVATE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return made
    os.chmod(path, mode)
    return [*made, path]


def open_private(path: str, flags: int) -> int:
    """Open PATH with FLAGS, and return the descriptor: an opener for open().

    A new file is readable and writable by its owner only. Raises OSError ELOOP when PATH is a symbolic link.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
