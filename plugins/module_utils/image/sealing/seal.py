# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Seal a tree: its programs load code, and settings that name code, from the image alone, since a container may be hostile.

Environment variables are not enough, since `docker exec` passes none of the image's. The paths that programs search are compiled
into them. So the builder changes the files:

- Every dynamic ELF file gets DF_1_NODEFLIB: glibc's loader does not search its built-in folders, which are the container's.
- Compiled-in paths lead to short links in the image's root, or to nowhere. A string of a program never becomes longer.
- Python, gdb, curl and vim get their settings as arguments from a launcher in their place (see launcher).
- A few lines of Python's library are edited.

The manifest names each file that cannot be sealed. An image with such a file does not count as sealed.

Sources: ld.so(8), nsswitch.conf(5), gconv in the glibc manual; dynlink.c of musl; bash(1), gdb(1), vim(1), curl(1), python(1).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.elf_loader import seal_elf, write_musl_paths
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.launches import launch_programs
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.scripts import edit_scripts, end_searches
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    PYTHON,
    State,
    gen_own_programs,
    gen_programs,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.texts import write_links

# An image with this file is sealed.
MARK = "etc/crashcart.sealed"


# These programs look for a library at a compiled-in path or read a user's file at each start, and the builder does nothing about that.
# Pattern of names → reason.
_OPEN = {
    r"perl5?[0-9.]*": "it takes its modules from the container where it gets no PERL5LIB",
    r"ruby[0-9.]*": "it takes its library from the container where it gets no RUBYLIB",
    r"(tclsh|wish)[0-9.]*": "it takes its library from the container where it gets no TCL_LIBRARY",
    r"(php|lua|luajit|node|nodejs|guile|java|erl|Rscript|julia|ghc|ocaml)[0-9.-]*": "it takes modules from the container",
    r"(zsh|ksh|mksh|fish|tcsh|csh|nu|elvish|xonsh)[0-9]*": "it reads start-up files of the container",
    r"(git|ssh|scp|sftp|tmux|screen|lldb|emacs|mc|psql|mysql|mariadb|sqlite3|gpg|man|mutt|nano)[0-9.-]*": (
        "it reads settings of the container, which can hold commands"
    ),
    r"(nmap|ncat|tshark|wireshark)": "it takes scripts and modules from the container",
    r"(dpkg|apt|apt-get|apt-cache)": "it starts programs and hooks that settings of the container name",
    r"u?mount": "it starts the helpers /sbin/mount.TYPE of the container",
}


def seal(tree: str, prefix: str, absolute: Sequence[str] = ()) -> list[dict[str, str]]:
    """Seal the relocated TREE, which will be at PREFIX, and return the path and the reason of each file that cannot be sealed.

    ABSOLUTE holds the places of files that need libraries by absolute paths.
    """
    state = State(tree, prefix, {}, {}, set())
    for place in absolute:
        state.complain(place, "it needs a library by its whole path, which is the container's")
    for place, status in gen_programs(tree):
        with open(os.path.join(tree, place), "rb") as file:
            before = file.read()
        after = seal_elf(state, place, before)
        if after != before:
            with open(os.path.join(tree, place), "r+b") as file:
                file.write(after)
            os.utime(os.path.join(tree, place), ns=(status.st_atime_ns, status.st_mtime_ns))
    write_links(state)
    write_musl_paths(state)
    edit_scripts(state)
    end_searches(state)
    launch_programs(state)
    _find_open_programs(state)
    _find_embedded_pythons(state)
    return [{"path": place, "reason": reason} for place, reason in sorted(state.unsealed)]


def _find_open_programs(state: State) -> None:
    """Complain of the programs that are known to load code of the container."""
    for place in gen_own_programs(state.tree):
        for pattern, reason in _OPEN.items():
            if re.fullmatch(pattern, posixpath.basename(place)):
                state.complain(place, reason)


def _find_embedded_pythons(state: State) -> None:
    """Complain of the programs that embed Python and are not known to tell it the place of its library."""
    for place, _status in gen_programs(state.tree):
        name = posixpath.basename(place)
        if name == "gdb" or PYTHON.fullmatch(name) or "/python3" in place:
            continue
        with open(os.path.join(state.tree, place), "rb") as file:
            if re.search(rb"\0libpython3\.[^\0/]*\.so", file.read()):
                state.complain(place, "it may look for Python's library where PATH leads, which is into the container")
