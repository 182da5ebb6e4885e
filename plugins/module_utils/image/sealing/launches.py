# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that get their settings as arguments, by a launcher in their place."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.image.launcher import make_launcher
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.scripts import NO_AUDITORS
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    State,
    gen_own_programs,
    holds,
    write_text,
)

_LAUNCHED = "libexec/crashcart"
_VIMRC = """\
" Read by the image's vim instead of all that the container has.
set nocompatible
set backspace=indent,eol,start
set nomodeline
set viminfo=
set runtimepath={runtime}
"""


@dataclass(frozen=True)
class _Launch:
    """Which programs get ARGUMENTS ({prefix}), and whether they are called by their place in the image whatever they are called.

    A program that does not hold NEEDED is too old for them.
    """

    names: re.Pattern[str]
    arguments: tuple[str, ...]
    is_named: bool = False
    needed: bytes = b""


_LAUNCHES = (
    # Neither the current folder nor what is at home; and by its name Python finds its library.
    _Launch(re.compile(r"python3(\.\d+)?"), ("-P", "-s"), is_named=True),
    _Launch(
        re.compile(r"gdb"),
        (
            "-nx",
            *("-data-directory", "{prefix}/share/gdb"),
            *("-iex", "set auto-load safe-path {prefix}/share/gdb/auto-load"),
            *("-iex", "set auto-load scripts-directory {prefix}/share/gdb/auto-load"),
            *("-iex", "set libthread-db-search-path $sdir"),
            # To read files of a process in another mount namespace it would enter that, which takes CAP_SYS_ADMIN. They are here, too.
            *("-iex", "set sysroot /"),
        ),
        is_named=True,
    ),
    _Launch(re.compile(r"curl"), ("-q",)),
    _Launch(re.compile(r"capsh"), ("--shell={prefix}/bin/bash",), needed=b"--shell="),
    _Launch(
        re.compile(r"vim(\.(tiny|basic|nox|gtk3|motif))?"),
        ("-u", "{prefix}/etc/crashcart.vimrc", "--noplugin", "-i", "NONE"),
    ),
)


def launch_programs(state: State) -> None:
    for place in list(gen_own_programs(state.tree)):
        launch = next((one for one in _LAUNCHES if one.names.fullmatch(posixpath.basename(place))), None)
        if launch is not None:
            _launch(state, place, launch)
    _launch_loader(state)


def _launch_loader(state: State) -> None:
    """Put a launcher into the place of the link by which people call glibc's loader; where there can be none, the link goes.

    The kernel and ldd call the loader by its place.
    """
    path = os.path.join(state.tree, "bin/ld.so")
    if not (os.path.islink(path) and os.path.isfile(path)):
        return
    aim = os.path.relpath(os.path.realpath(path), os.path.realpath(state.tree))
    program = make_launcher(_read_machine(path), f"{state.prefix}/{aim}", None, NO_AUDITORS)
    os.unlink(path)
    if program is not None:
        _write_program(path, program)


def _launch(state: State, place: str, launch: _Launch) -> None:
    """Put a launcher into the place of the program at PLACE, where that is one for a machine that launchers are known for."""
    path = os.path.join(state.tree, place)
    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return
    version = re.fullmatch(r"python3\.(\d+)", posixpath.basename(place))
    if version and int(version[1]) < 11:
        state.complain(place, "it takes modules from the current folder: only Python 3.11 and later can be told not to")
        return
    aim = f"{_LAUNCHED}/{place.removeprefix('bin/')}"
    program = _make_launcher(state, place, aim, launch)
    if program is None:
        return
    os.makedirs(os.path.dirname(os.path.join(state.tree, aim)), exist_ok=True)
    os.rename(path, os.path.join(state.tree, aim))
    _write_program(path, program)
    if "crashcart.vimrc" in " ".join(launch.arguments):
        write_text(os.path.join(state.tree, "etc/crashcart.vimrc"), _VIMRC.format(runtime=_find_runtime(state)))


def _make_launcher(state: State, place: str, aim: str, launch: _Launch) -> bytes | None:
    """A launcher for the program that is at PLACE and will be at AIM; None where there can be none, which STATE gets."""
    path = os.path.join(state.tree, place)
    if not holds(path, launch.needed):
        state.complain(place, f"it does not hold the text {launch.needed.decode()!r} as expected")
        return None
    arguments = [one.format(prefix=state.prefix) for one in launch.arguments]
    program = make_launcher(
        _read_machine(path),
        f"{state.prefix}/{aim}",
        f"{state.prefix}/{place}" if launch.is_named else None,
        arguments,
    )
    if program is None:
        state.complain(place, f"it needs {' '.join(arguments)}, and there is no launcher for its machine")
    return program


def _read_machine(path: str) -> int:
    """The machine (e_machine) of the little-endian ELF file PATH."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(20)[18:], "little")


def _write_program(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
    os.chmod(path, 0o755)


def _find_runtime(state: State) -> str:
    """Where vim's files are in the image; where they would be, if there are none."""
    found = sorted(glob.glob("share/vim/vim[0-9]*", root_dir=state.tree))
    return f"{state.prefix}/{found[0] if found else 'share/vim'}"
