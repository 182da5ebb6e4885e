# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read and patch the ELF files of a tree, so that each finds its loader and its libraries there.

Programs get the tree's own loader as interpreter and the tree's library folders as RPATH (not RUNPATH: RPATH also serves
the libraries of libraries, and goes before a foreign LD_LIBRARY_PATH). Nothing is executed, so any architecture will do.
"""

from __future__ import annotations

import glob
import os
import posixpath
import subprocess
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from ansible_collections.crashcart.fleet.plugins.module_utils.image.tree import fold

ELFTOOLS_IMPORT_ERROR: str | None = None
try:
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
except ImportError:
    ELFTOOLS_IMPORT_ERROR = traceback.format_exc()

# Debian's names by e_machine.
_ARCHITECTURES = {3: "i386", 40: "armhf", 62: "amd64", 183: "arm64", 243: "riscv64"}
# The reason ends like this where a file names a library by an absolute path, which leads into the target.
BY_WHOLE_PATH = "by its whole path"
_STANDARD_FOLDERS = ("lib", "lib64", "local/lib", "local/lib64")


@dataclass(frozen=True)
class Elf:
    """A dynamic ELF file in a tree."""

    place: str  # its path in the tree
    machine: str  # e_machine by pyelftools' name
    interpreter: str  # its loader; "" for a library
    needed: tuple[str, ...]  # DT_NEEDED
    run_path: tuple[
        str, ...
    ]  # its own library folders: as the file has them, or, once it is patched, as places in the tree

    @property
    def family(self) -> str:
        """The C library that the file is made for: glibc or musl, or "" where the file does not say, and either will do."""
        if "ld-musl" in self.interpreter or any(
            name.startswith("libc.musl") or name == "libc.so" for name in self.needed
        ):
            return "musl"
        if self.interpreter or any(name == "libc.so.6" or name.startswith("ld-linux") for name in self.needed):
            return "glibc"
        return ""


def read_elf(tree: str, place: str) -> Elf | None:
    """Return the ELF file at PLACE, or None for objects, static programs and damaged files."""
    with open(os.path.join(tree, place), "rb") as file:
        try:
            elf = ELFFile(file)
            if elf.header.e_type not in ("ET_EXEC", "ET_DYN"):
                return None
            interpreter, needed, run_path = "", [], ""
            is_dynamic = False
            for segment in elf.iter_segments():
                if segment.header.p_type == "PT_INTERP":
                    interpreter = segment.get_interp_name()
                elif isinstance(segment, DynamicSegment):
                    is_dynamic = True
                    for tag in segment.iter_tags():
                        if tag.entry.d_tag == "DT_NEEDED":
                            needed.append(tag.needed)
                        elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                            run_path = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
            if not is_dynamic and not interpreter:
                return None
            return Elf(place, elf.header.e_machine, interpreter, tuple(needed), tuple(run_path.split(":")))
        except (ELFError, UnicodeError, AssertionError, AttributeError, KeyError, OverflowError, ValueError):
            # pyelftools raises most of these for files that only begin like ELF files.
            return None


def find_architecture(head: bytes) -> str:
    """Return Debian's name for the machine of an ELF file, read from HEAD, its first 20 bytes."""
    order: Literal["little", "big"] = "big" if head[5:6] == b"\2" else "little"
    number = int.from_bytes(head[18:20], order)
    return _ARCHITECTURES.get(number, f"machine {number}")


def find_library_folders(tree: str, elves: list[Elf]) -> list[str]:
    """Return the places of the folders with libraries that a loader of the tree would search.

    These are the usual folders, those of its architectures, and those in its ld.so.conf.
    """
    folders = {posixpath.dirname(elf.place) for elf in elves if ".so" in posixpath.basename(elf.place)}
    wanted = set(_STANDARD_FOLDERS) | set(_read_loader_configuration(tree))
    chosen = {
        folder
        for folder in folders
        if folder in wanted or (posixpath.dirname(folder) == "lib" and "-linux-" in posixpath.basename(folder))
    }
    # The multi-architecture folders go first: their libraries are the packages' own.
    return sorted(chosen, key=lambda folder: ("-linux-" not in folder, folder))


def sort_folders(folders: list[str], elves: list[Elf], family: str) -> list[str]:
    """Return FOLDERS with those that hold libraries for the C library FAMILY first; folders for the other one only are left out."""
    if not family:
        return folders
    families: dict[str, set[str]] = {}
    for elf in elves:
        families.setdefault(posixpath.dirname(elf.place), set()).add(elf.family)
    usable = [folder for folder in folders if not families.get(folder) or families[folder] & {family, ""}]
    return sorted(usable, key=lambda folder: family not in families.get(folder, ()))


def _read_loader_configuration(tree: str) -> list[str]:
    folder = os.path.join(tree, "etc/ld.so.conf.d")
    names = [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
    places = []
    for path in [os.path.join(tree, "etc/ld.so.conf"), *names]:
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                places += [fold(line.strip()) for line in file if line.startswith("/")]
    return places


def place_run_path(elf: Elf) -> tuple[str, ...]:
    """Return ELF's own library folders as places in the tree. Relative ones would lead into the target and are dropped."""
    places = []
    for part in elf.run_path:
        for origin in ("$ORIGIN", "${ORIGIN}"):
            if part == origin or part.startswith(origin + "/"):
                # The tree counts as the root, so that no `..` leads above it.
                part = "/" + posixpath.dirname(elf.place) + part[len(origin) :]  # noqa: PLW2901
        if part.startswith("/") and "$" not in part:
            places.append(fold(part))
    return tuple(dict.fromkeys(places))


def link_alternatives(tree: str, elves: list[Elf], folders: list[str]) -> None:
    """Link libraries that are needed and lie one folder too deep into the folder above, as maintainer scripts would.

    Several Debian packages have a libblas.so.3, for example, each in a folder of its own.
    """
    for name in sorted({name for elf in elves for name in elf.needed if "/" not in name}):
        if any(os.path.lexists(os.path.join(tree, folder, name)) for folder in folders):
            continue
        for folder in folders:
            places = sorted(glob.glob(f"{glob.escape(folder)}/*/{glob.escape(name)}", root_dir=tree))
            if places:
                os.symlink(posixpath.relpath(places[0], folder), os.path.join(tree, folder, name))
                break


def patch(tree: str, prefix: str, elves: list[Elf], folders: list[str]) -> tuple[list[Elf], list[dict[str, str]]]:
    """Patch ELVES to work at PREFIX and to search FOLDERS of the tree for libraries.

    Return ELVES with their new interpreters and folders, and the path and the reason of each that patchelf cannot patch.
    """
    by_family = {family: sort_folders(folders, elves, family) for family in ("glibc", "musl", "")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(lambda elf: _patch_one(tree, prefix, elf, by_family[elf.family]), elves))
    problems = [
        {"path": elf.place, "reason": f"patchelf cannot patch it: {text}"}
        for elf, (_patched, text) in zip(elves, outcomes)
        if text
    ]
    return [patched for patched, _text in outcomes], problems


def _patch_one(tree: str, prefix: str, elf: Elf, folders: list[str]) -> tuple[Elf, str]:
    """Return ELF as it is after patching, and "" or the reason why patchelf cannot patch it."""
    own = place_run_path(elf)
    if not elf.interpreter and not any(elf.run_path):
        # The RPATH of the program that loads a library serves this library and those that it needs.
        return replace(elf, run_path=()), ""
    run_path = tuple(dict.fromkeys([*own, *folders]))
    command = ["patchelf", "--force-rpath", "--set-rpath", ":".join(f"{prefix}/{place}" for place in run_path)]
    interpreter = elf.interpreter and fold(elf.interpreter)
    if interpreter:
        command += ["--set-interpreter", f"{prefix}/{interpreter}"]
    path = os.path.join(tree, elf.place)
    done = subprocess.run([*command, path], capture_output=True, text=True, errors="replace", check=False)
    patched = replace(elf, interpreter=interpreter, run_path=run_path)
    return patched, (done.stderr.strip() or "no reason given") if done.returncode != 0 else ""


def list_problems(tree: str, elves: list[Elf], folders: list[str]) -> list[dict[str, str]]:
    """Return the path and the reason of each need of patched ELVES that the tree does not meet."""
    by_place = {elf.place: elf for elf in elves}
    by_family = {family: sort_folders(folders, elves, family) for family in ("glibc", "musl", "")}
    found: dict[tuple[str, str, str], Elf | None] = {}
    # A loader is in the process before any library that needs it.
    loaders = {posixpath.basename(elf.interpreter) for elf in elves if elf.interpreter}

    def find(place: str, machine: str, family: str) -> Elf | None:
        key = (place, machine, family)
        if key not in found:
            # The tree's links are relative, so they lead here where they will lead in the container.
            real = os.path.relpath(os.path.realpath(os.path.join(tree, place)), os.path.realpath(tree))
            library = by_place.get(real)
            fits = library is not None and library.machine == machine and {library.family, family} != {"glibc", "musl"}
            found[key] = library if fits else None
        return found[key]

    def find_needed(elf: Elf, run_path: tuple[str, ...]) -> tuple[list[Elf], list[str]]:
        """Return the libraries that ELF names and that are in the tree, and the names of those that are not."""
        there, missing = [], []
        for name in elf.needed:
            places = [f"{folder}/{name}" for folder in (*run_path, *by_family[elf.family])]
            libraries = (find(place, elf.machine, elf.family) for place in places)
            library = next((library for library in libraries if library), None)
            if library is not None:
                there.append(library)
            elif "/" not in name and name not in loaders:
                missing.append(name)
        return there, missing

    def find_missing_below(program: Elf) -> list[str]:
        """Return a reason for each library that a library of PROGRAM lacks, directly or not; PROGRAM's RPATH serves all of them."""
        reasons = []
        seen = {program.place}
        waiting = [program]
        while waiting:
            elf = waiting.pop()
            there, missing = find_needed(elf, (*elf.run_path, *program.run_path))
            if elf is not program:
                reasons += [f"the library {name}, which {elf.place} needs, is not in the image" for name in missing]
            waiting += [library for library in there if library.place not in seen]
            seen |= {library.place for library in there}
        return reasons

    problems = []
    for elf in elves:
        reasons = [f"it needs the library {name} {BY_WHOLE_PATH}" for name in elf.needed if "/" in name]
        if elf.interpreter and not os.path.isfile(os.path.join(tree, elf.interpreter)):
            reasons.append(f"its loader {elf.interpreter} is not in the image")
        reasons += [f"the library {name} is not in the image" for name in find_needed(elf, elf.run_path)[1]]
        if elf.interpreter:
            reasons += find_missing_below(elf)
        problems += [{"path": elf.place, "reason": reason} for reason in reasons]
    return problems
