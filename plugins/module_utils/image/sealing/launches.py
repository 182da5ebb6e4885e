# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put launchers into the place of programs that take safe settings as arguments."""

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
    """The arguments that programs of some name get from their launcher."""

    names: re.Pattern[str]  # of the programs
    arguments: tuple[str, ...]  # {prefix} stands for the image's
    is_named: bool = False  # argv[0] becomes the program's place in the image
    needed: bytes = b""  # a program that does not hold this text is too old for the arguments


_LAUNCHES = (
    # Python takes modules neither from the current folder nor from home. It finds its library by argv[0].
    _Launch(re.compile(r"python3(\.\d+)?"), ("-P", "-s"), is_named=True),
    _Launch(
        re.compile(r"gdb"),
        (
            "-nx",
            *("-data-directory", "{prefix}/share/gdb"),
            *("-iex", "set auto-load safe-path {prefix}/share/gdb/auto-load"),
            *("-iex", "set auto-load scripts-directory {prefix}/share/gdb/auto-load"),
            *("-iex", "set libthread-db-search-path $sdir"),
            # gdb would enter another mount namespace to read a process' files, which takes CAP_SYS_ADMIN. The files are also here.
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
    """Put launchers into the place of the programs that need arguments, and complain to STATE where that is not possible."""
    for place in list(gen_own_programs(state.tree)):
        name = posixpath.basename(place)
        launch = next((launch for launch in _LAUNCHES if launch.names.fullmatch(name)), None)
        if launch is not None:
            _launch(state, place, launch)
    _launch_loader(state)


def _launch_loader(state: State) -> None:
    """Replace bin/ld.so, the link by which users call glibc's loader, by a launcher, or remove it where none is possible.

    The kernel and ldd call the loader by its own path.
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
    """Put a launcher into the place of the ELF program at PLACE, where one for its machine is possible."""
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
    """Return a launcher for the program at PLACE, which will be at AIM, or complain to STATE and return None."""
    path = os.path.join(state.tree, place)
    if not holds(path, launch.needed):
        state.complain(place, f"it does not hold the text {launch.needed.decode()!r} as expected")
        return None
    arguments = [argument.format(prefix=state.prefix) for argument in launch.arguments]
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
    """Return the machine (e_machine) of the little-endian ELF file PATH."""
    with open(path, "rb") as file:
        return int.from_bytes(file.read(20)[18:], "little")


def _write_program(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
    os.chmod(path, 0o755)


def _find_runtime(state: State) -> str:
    """Return the path of vim's runtime files, or a path below share/vim where the image has none."""
    found = sorted(glob.glob("share/vim/vim[0-9]*", root_dir=state.tree))
    return f"{state.prefix}/{found[0] if found else 'share/vim'}"
