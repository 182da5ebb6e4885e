# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder that keeps compiled code between reports. Whoever can write there runs code as the user who reports."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, make_missing

COLLECTION = Path(os.path.realpath(__file__)).parents[2]
"""The collection's folder, without symbolic links."""
_NAME = "crashcart.fleet"
_PREFIX = "numba-"
_MIN_FREE = 64 << 20  # bytes: numba does not get over a full file system
_MAX_AGE_S = 30 * 86400.0


@contextmanager
def open_cache() -> Iterator[str]:
    """Yield the path of the folder for compiled code.

    It is in $XDG_CACHE_HOME, or in ~/.cache. Where the folder there cannot be written, or is not this user's alone, yield one that is removed
    at the end.
    """
    try:
        folder = _prepare(os.path.join(_find_home(), _NAME), _PREFIX + name_version())
    except (FleetError, OSError):
        with tempfile.TemporaryDirectory(prefix="crashcart-compiled-", ignore_cleanup_errors=True) as temporary:
            yield temporary
        return
    yield folder


def has_code(folder: str) -> bool:
    """Return True if FOLDER holds compiled code."""
    return any(Path(folder).rglob("*.nbi"))


def name_version() -> str:
    """Return the part of the folder's name that changes with the compiled code: our version, Python's, numba's, and our sources."""
    digest = hashlib.sha256()
    for path in sorted((COLLECTION / "plugins/module_utils/analysis/compiled").glob("*.py")):
        digest.update(b"%s\0%s\0" % (path.name.encode(), path.read_bytes()))
    try:
        digest.update(metadata.version("numba").encode())
    except metadata.PackageNotFoundError:
        pass
    return f"{_read_version()}-{sys.implementation.cache_tag}-{digest.hexdigest()[:12]}"


def _read_version() -> str:
    """Return the collection's version: of an installed one from its MANIFEST.json, of a checkout from galaxy.yml."""
    try:
        version = json.loads((COLLECTION / "MANIFEST.json").read_text(encoding="utf-8"))["collection_info"]["version"]
    except FileNotFoundError:
        found = re.search(r"^version: *(\S+)", (COLLECTION / "galaxy.yml").read_text(encoding="utf-8"), re.MULTILINE)
        version = found[1] if found else "0"
    return re.sub(r"[^\w.+-]", "_", str(version))[:40]


def _find_home() -> str:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # By the XDG specification, a relative path is invalid and does not count.
    return given if os.path.isabs(given) else os.path.join(os.path.expanduser("~"), ".cache")


def _prepare(top: str, name: str) -> str:
    """Return the path of folder NAME in the folder TOP, made if it is missing.

    Raises FleetError or OSError where it cannot be used, or where another user might exchange it.
    """
    make_missing(os.path.dirname(top))
    _check_way(os.path.dirname(top))
    make_folder(top)
    folder = os.path.join(top, name)
    is_new = not os.path.lexists(folder)
    make_folder(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < _MIN_FREE:
        raise FleetError(f"{folder} has less than 64 MiB left: remove something there")
    if is_new:
        _remove_old(top, name)
    return folder


def _check_way(path: str) -> None:
    """Raise FleetError where a user other than root could exchange a folder or a link on the way to PATH, which is absolute."""
    ours = (0, os.geteuid())
    for way in (path, os.path.realpath(path)):
        parts = Path(way).parts
        for count in range(1, len(parts) + 1):
            place = os.path.join(*parts[:count])
            found = os.lstat(place)
            is_shared = bool(found.st_mode & stat.S_IWOTH) or (
                bool(found.st_mode & stat.S_IWGRP) and found.st_gid not in (0, os.getegid())
            )
            is_link = stat.S_ISLNK(found.st_mode)
            if found.st_uid not in ours or (is_shared and not is_link and not found.st_mode & stat.S_ISVTX):
                raise FleetError(f"{place} is not this user's alone: keep the cache elsewhere, by XDG_CACHE_HOME")


def _remove_old(top: str, name: str) -> None:
    """Remove the folders in TOP, other than NAME, to which nothing was added for 30 days: those of earlier versions."""
    for entry in os.scandir(top):
        is_other = entry.name.startswith(_PREFIX) and entry.name != name and entry.is_dir(follow_symlinks=False)
        if is_other and time.time() - entry.stat(follow_symlinks=False).st_mtime > _MAX_AGE_S:
            shutil.rmtree(entry.path, ignore_errors=True)
