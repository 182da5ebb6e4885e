# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ELF files of a tree: what each needs, where it is made to look for it, and whether it is there.

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
# How the reason ends that a file is a problem since it needs a library of the target.
BY_WHOLE_PATH = "by its whole path"
_STANDARD_FOLDERS = ("lib", "lib64", "local/lib", "local/lib64")


@dataclass(frozen=True)
class Elf:
    """A dynamic ELF file at PLACE in a tree. RUN_PATH holds its own folders, as the file says it or as places in the tree."""

    place: str
    machine: str
    interpreter: str
    needed: tuple[str, ...]
    run_path: tuple[str, ...]

    @property
    def family(self) -> str:
        """Which C library it is made for: glibc or musl; "" where it does not say, and any will do."""
        if "ld-musl" in self.interpreter or any(
            name.startswith("libc.musl") or name == "libc.so" for name in self.needed
        ):
            return "musl"
        if self.interpreter or any(name == "libc.so.6" or name.startswith("ld-linux") for name in self.needed):
            return "glibc"
        return ""


def read_elf(tree: str, place: str) -> Elf | None:
    """The ELF file at PLACE; None for objects, static programs and broken files."""
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
            # The library raises most of these for files that only begin like one.
            return None


def find_architecture(head: bytes) -> str:
    """Debian's name for the machine that an ELF file is for, by its first 20 bytes."""
    order: Literal["little", "big"] = "big" if head[5:6] == b"\2" else "little"
    number = int.from_bytes(head[18:20], order)
    return _ARCHITECTURES.get(number, f"machine {number}")


def find_library_folders(tree: str, elves: list[Elf]) -> list[str]:
    """Places of the folders that a loader of the tree would search: the usual ones, those of its architectures, ld.so.conf's."""
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
    """FOLDERS with those first that hold libraries for the C library FAMILY, without those that hold only the other's."""
    if not family:
        return folders
    families: dict[str, set[str]] = {}
    for elf in elves:
        families.setdefault(posixpath.dirname(elf.place), set()).add(elf.family)
    usable = [one for one in folders if not families.get(one) or families[one] & {family, ""}]
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
    """ELF's own folders as places in the tree. What is relative would lead into the target, and is dropped."""
    places = []
    for part in elf.run_path:
        for origin in ("$ORIGIN", "${ORIGIN}"):
            if part == origin or part.startswith(origin + "/"):
                # As if the tree were the root: nothing leads above it.
                part = "/" + posixpath.dirname(elf.place) + part[len(origin) :]  # noqa: PLW2901
        if part.startswith("/") and "$" not in part:
            places.append(fold(part))
    return tuple(dict.fromkeys(places))


def link_alternatives(tree: str, elves: list[Elf], folders: list[str]) -> None:
    """Link libraries that are needed and stand one folder too deep into the folder above, as maintainer scripts would:
    Debian has several packages with a libblas.so.3, each in a folder of its own."""
    for name in sorted({name for elf in elves for name in elf.needed if "/" not in name}):
        if any(os.path.lexists(os.path.join(tree, folder, name)) for folder in folders):
            continue
        for folder in folders:
            places = sorted(glob.glob(f"{glob.escape(folder)}/*/{glob.escape(name)}", root_dir=tree))
            if places:
                os.symlink(posixpath.relpath(places[0], folder), os.path.join(tree, folder, name))
                break


def patch(tree: str, prefix: str, elves: list[Elf], folders: list[str]) -> tuple[list[Elf], list[dict[str, str]]]:
    """Make ELVES work at PREFIX, with FOLDERS of the tree searched for libraries; how they are then, and which cannot be patched."""
    by_family = {family: sort_folders(folders, elves, family) for family in ("glibc", "musl", "")}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = list(pool.map(lambda elf: _patch_one(tree, prefix, elf, by_family[elf.family]), elves))
    problems = [
        {"path": elf.place, "reason": f"patchelf cannot patch it: {text}"}
        for elf, text in zip(elves, (two for _one, two in outcomes))
        if text
    ]
    return [elf for elf, text in outcomes], problems


def _patch_one(tree: str, prefix: str, elf: Elf, folders: list[str]) -> tuple[Elf, str]:
    """ELF after it was patched, and why it could not be, where it could not."""
    own = place_run_path(elf)
    if not elf.interpreter and not any(elf.run_path):
        # A library is found, and finds its own, by the RPATH of the program that loads it.
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
    """What patched ELVES need and would not find in the tree, as path and reason."""
    by_place = {elf.place: elf for elf in elves}
    by_family = {family: sort_folders(folders, elves, family) for family in ("glibc", "musl", "")}
    found: dict[tuple[str, str, str], Elf | None] = {}
    # Who loads libraries is there before any of them.
    loaders = {posixpath.basename(elf.interpreter) for elf in elves if elf.interpreter}

    def find(place: str, machine: str, family: str) -> Elf | None:
        key = (place, machine, family)
        if key not in found:
            # Links were made relative, so they are followed as in the container.
            real = os.path.relpath(os.path.realpath(os.path.join(tree, place)), os.path.realpath(tree))
            library = by_place.get(real)
            fits = library is not None and library.machine == machine and {library.family, family} != {"glibc", "musl"}
            found[key] = library if fits else None
        return found[key]

    def find_needed(elf: Elf, run_path: tuple[str, ...]) -> tuple[list[Elf], list[str]]:
        """The libraries that ELF names, and those of them that are not in the tree."""
        there, missing = [], []
        for name in elf.needed:
            places = [f"{folder}/{name}" for folder in (*run_path, *by_family[elf.family])]
            library = next((one for one in (find(place, elf.machine, elf.family) for place in places) if one), None)
            if library is not None:
                there.append(library)
            elif "/" not in name and name not in loaders:
                missing.append(name)
        return there, missing

    def find_missing_below(program: Elf) -> list[str]:
        """What libraries of PROGRAM, and theirs, need and do not find; its own RPATH serves them all."""
        reasons = []
        seen = {program.place}
        waiting = [program]
        while waiting:
            elf = waiting.pop()
            there, missing = find_needed(elf, (*elf.run_path, *program.run_path))
            if elf is not program:
                reasons += [f"the library {name}, which {elf.place} needs, is not in the image" for name in missing]
            waiting += [one for one in there if one.place not in seen]
            seen |= {one.place for one in there}
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
