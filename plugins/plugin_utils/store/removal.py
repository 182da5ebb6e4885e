# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove the files of captures from a store, and note that in its catalogue."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import Catalogue, list_files

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_captures(
    catalogue: Catalogue, reasons: Mapping[str, str], now_ns: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Remove the files of the captures in REASONS, path → why, which is noted already, and note at NOW_NS that they are removed.

    Returns those that were removed, with why, and path → a sentence for each file that could not be. The trace goes first, so that a
    reader never meets one without its manifest. No link leads out of the store. Empty folders of containers and hosts go, too.
    """
    removed: dict[str, str] = {}
    problems: dict[str, str] = {}
    store = os.open(catalogue.store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, why in reasons.items():
            problem = _remove(store, path)
            if problem is None or not _is_there(store, path):
                removed[path] = why
            if problem is not None:
                problems[path] = escape(
                    f"{os.path.join(catalogue.store, path)}: {problem}; let this user remove it, or remove it yourself"
                )
        for folder in dict.fromkeys(os.path.dirname(path) for path in removed):
            _remove_empty(store, folder)
    finally:
        os.close(store)
    with catalogue.transaction():
        catalogue.cancel_removal([path for path in reasons if path not in removed])
        catalogue.note_removed(removed, now_ns)
    return removed, problems


def _remove(store: int, path: str) -> str | None:
    """Remove the files of the capture at PATH below the folder STORE, a descriptor; return why one cannot be removed, or None."""
    try:
        with _open_folder(store, os.path.dirname(path)) as folder:
            for file in map(os.path.basename, list_files(path)):
                with suppress(FileNotFoundError):  # another process may remove it, too
                    if not stat.S_ISREG(os.stat(file, dir_fd=folder, follow_symlinks=False).st_mode):
                        return f"{file} is no regular file"
                    os.unlink(file, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be removed: {error.strerror or error}"
    return None


def _is_there(store: int, path: str) -> bool:
    try:
        with _open_folder(store, os.path.dirname(path)) as folder:
            os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def _open_folder(store: int, path: str) -> Iterator[int]:
    """Yield a descriptor of the folder PATH below the folder STORE; raise OSError if a part of PATH is a link, or no folder."""
    names = [name for name in path.split(os.sep) if name]
    if os.pardir in names:  # the catalogue is a file that somebody may have written
        raise OSError(errno.EINVAL, "it is outside the store", path)
    folder = os.dup(store)
    try:
        for name in names:
            inner = os.open(name, _FOLDER, dir_fd=folder)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _remove_empty(store: int, path: str) -> None:
    """Remove the folder PATH below the folder STORE, and those above it, as far as they are empty."""
    while path:
        above, name = os.path.split(path)
        try:
            with _open_folder(store, above) as folder:
                os.rmdir(name, dir_fd=folder)
        except OSError:  # most often it is not empty
            return
        path = above
