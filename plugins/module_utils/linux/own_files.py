# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders and files of ours, with modes that are set here and never inherited: root's umask may be anything."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN, STATE

PRIVATE = 0o700
PUBLIC = 0o755
# The places of a host that are ours alone. The store, and captures that a login user fetches, are below the second one.
_TOPS = {RUN: PRIVATE, STATE: PUBLIC}
_ATTEMPTS = 100


def make_folder(path: str, mode: int = PRIVATE) -> None:
    """Make the folder PATH, of ours, with exactly MODE; one that is there is given that.

    Also those above it, as far as they are ours. Raises FleetError where one is a link, no folder, or somebody else's: who owns
    it could exchange all that is in there.
    """
    top = next((one for one in _TOPS if path == one or path.startswith(one + "/")), path)
    names = [name for name in path[len(top) :].split("/") if name]
    folders = [os.path.join(top, *names[:count]) for count in range(len(names) + 1)]
    for _attempt in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # a cleanup took one just now
            make_missing(os.path.dirname(top) or "/", PUBLIC)
            for folder in folders:
                _make_one(folder, _TOPS.get(folder, mode))
            return
    raise FleetError(f"{path} cannot be made: somebody removes it again and again")


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


def make_missing(path: str, mode: int = PRIVATE) -> None:
    """Make the folder PATH, and those above it, with exactly MODE where they are missing; what is there stays as it is."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent and parent != path:
        make_missing(parent, mode)
    try:
        os.mkdir(path, PRIVATE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return
    os.chmod(path, mode)


def open_private(path: str, flags: int) -> int:
    """An opener for open(): a file that it makes is for its owner only, and no link is followed to one."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
