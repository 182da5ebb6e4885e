# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state that the steps of sealing share, and their walks over the files of a tree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

# The same folders as in relocate.
PROGRAM_FOLDERS = ("local/bin", "local/sbin", "bin", "sbin")
# No process has this number, so nobody can make this path where /proc is the kernel's.
NOWHERE = "/proc/0"
PYTHON = re.compile(r"(libpython|python)3\.(\d+)(\.so.*|\.dylib)?")


@dataclass(frozen=True)
class Link:
    """A link in the image's root. Where none of its places is there the link is missing, and paths to it lead to nowhere."""

    name: str
    places: tuple[str, ...] = ()  # patterns; the link leads to the first match


@dataclass
class State:
    """The state of sealing one tree."""

    tree: str
    prefix: str  # the path that the tree will be at
    unsealed: dict[tuple[str, str], None]  # place and reason of each file that cannot be sealed
    links: dict[str, Link]  # links that changed strings lead to, by name
    musl: set[str]  # paths of musl's loaders

    def complain(self, place: str, reason: str) -> None:
        """Note that the file at PLACE cannot be sealed, and the REASON."""
        self.unsealed[place, reason] = None


def gen_programs(tree: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the place and the status of each ELF file in TREE, once for a file with several names."""
    seen = set()
    for folder, folders, names in os.walk(tree):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if os.path.islink(path) or status.st_ino in seen or not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
            seen.add(status.st_ino)
            yield os.path.relpath(path, tree), status


def gen_own_programs(tree: str) -> Iterator[str]:
    """Yield the places of all files in TREE's folders of programs, without symlinks."""
    for folder in PROGRAM_FOLDERS:
        path = os.path.join(tree, folder)
        for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
            if os.path.isfile(os.path.join(path, name)) and not os.path.islink(os.path.join(path, name)):
                yield f"{folder}/{name}"


def write_text(path: str, text: str, mode: int = 0o644) -> None:
    """Write TEXT to a new file PATH with MODE, in the place of an old one, and make its folders where they are missing."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def holds(path: str, text: bytes) -> bool:
    """Return True if the file PATH contains TEXT."""
    with open(path, "rb") as file:
        return text in file.read()
