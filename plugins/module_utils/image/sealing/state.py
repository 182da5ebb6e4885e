# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found and done while a tree is sealed, and the files that all steps look through."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

# Folders of programs as relocate has them.
PROGRAM_FOLDERS = ("local/bin", "local/sbin", "bin", "sbin")
# What nobody can make where /proc is the kernel's: no process has this number.
NOWHERE = "/proc/0"
PYTHON = re.compile(r"(libpython|python)3\.(\d+)(\.so.*|\.dylib)?")


@dataclass(frozen=True)
class Link:
    """A link NAME in the image's root to the first of PLACES (patterns) that is there; without one the name leads to nothing."""

    name: str
    places: tuple[str, ...] = ()


@dataclass
class State:
    """What is found and done while a tree is sealed."""

    tree: str
    prefix: str
    unsealed: dict[tuple[str, str], None]
    links: dict[str, Link]
    musl: set[str]

    def complain(self, place: str, reason: str) -> None:
        self.unsealed[place, reason] = None


def gen_programs(tree: str) -> Iterator[tuple[str, os.stat_result]]:
    """All ELF files, each once whatever its names."""
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
    """Places of all files in the folders of programs, without links."""
    for folder in PROGRAM_FOLDERS:
        path = os.path.join(tree, folder)
        for name in sorted(os.listdir(path)) if os.path.isdir(path) else ():
            if os.path.isfile(os.path.join(path, name)) and not os.path.islink(os.path.join(path, name)):
                yield f"{folder}/{name}"


def write_text(path: str, text: str, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)


def holds(path: str, text: bytes) -> bool:
    with open(path, "rb") as file:
        return text in file.read()
