# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write and remove files that stay on a host, some of them in folders of others, so that removal leaves these as they were."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import PUBLIC, make_missing
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOST_PROGRAMS, HOST_SETTINGS

_MEMORY_NAME = "before.json"
_MEMORY = f"{HOST_SETTINGS}/{_MEMORY_NAME}"


@dataclass(frozen=True)
class File:
    """A file that stays on a host: its PATH, CONTENT and MODE.

    END is how it ends, where that tells as much as the whole content; empty where it does not.
    """

    path: str
    content: bytes
    mode: int = 0o644
    end: bytes = b""


def read(path: str) -> bytes | None:
    """Return the content of the file PATH; None if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_there(file: File) -> bool:
    """Return True if FILE is on the host as it is to be."""
    found = read(file.path)
    if found is None or os.stat(file.path).st_mode & 0o7777 != file.mode:
        return False
    return found.endswith(file.end) if file.end else found == file.content


def write(file: File) -> None:
    """Write FILE, whole or not at all, and note the folders that had to be made for it; raises OSError."""
    _make_folder(file.path)
    replace(file)


def link(path: str, target: str) -> None:
    """Make the link PATH to TARGET, and note the folders that had to be made for it; raises OSError."""
    _make_folder(path)
    temporary = _name_temporary(path)
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    os.rename(temporary, path)


def _make_folder(path: str) -> None:
    made = make_missing(os.path.dirname(path), PUBLIC)
    if made:
        remember(folders=[*recall().get("folders", []), *made])


def _name_temporary(path: str) -> str:
    folder, name = os.path.split(path)
    # No engine and no systemd reads it: it ends with nothing that they know.
    return os.path.join(folder, f".{name}.crashcart")


def replace(file: File) -> None:
    """Write FILE, whose folder is there, whole or not at all; raises OSError."""
    temporary = _name_temporary(file.path)
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    with ExitStack() as undo:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        undo.callback(os.unlink, temporary)
        with open(fd, "wb") as opened:
            opened.write(file.content)
            opened.flush()
            os.fchmod(fd, file.mode)
            with suppress(FileNotFoundError):
                before = os.stat(file.path)
                os.fchown(fd, before.st_uid, before.st_gid)
            os.fsync(fd)
        os.rename(temporary, file.path)
        undo.pop_all()


def is_left(path: str) -> bool:
    """Return True if the file PATH is there, or what a process that was killed has left of one."""
    return any(map(os.path.lexists, (path, _name_temporary(path))))


def remove(path: str) -> None:
    """Remove the file PATH, and what a process that was killed while it wrote it has left, as far as they are there."""
    for one in (path, _name_temporary(path)):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(one)


def remove_folders() -> None:
    """Remove the folders that were made for our files and are empty; forget what was before, unless files of ours are left."""
    folders = {*recall().get("folders", []), HOST_SETTINGS, HOST_PROGRAMS}
    memory = {_MEMORY_NAME, os.path.basename(_name_temporary(_MEMORY))}
    if not any(set(_list(folder)) - memory for folder in (HOST_SETTINGS, HOST_PROGRAMS)):
        remove(_MEMORY)
    for folder in sorted(folders, key=len, reverse=True):
        with suppress(OSError):
            os.rmdir(folder)


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def has_memory() -> bool:
    """Return True if something is known of how the host was before."""
    return is_left(_MEMORY)


def recall() -> dict[str, Any]:
    """Return what is known of how the host was before: folders that were made for our files, and what remember() was given."""
    with suppress(OSError, ValueError, TypeError), open(_MEMORY, encoding="ascii") as file:
        return dict(json.load(file))
    return {}


def remember(**more: Any) -> None:
    """Note MORE of how the host was before, for recall()."""
    made = make_missing(HOST_SETTINGS, PUBLIC)
    known = {**recall(), **more}
    known["folders"] = list(dict.fromkeys([*known.get("folders", []), *made]))
    replace(File(_MEMORY, json.dumps(known).encode("ascii"), 0o600))
