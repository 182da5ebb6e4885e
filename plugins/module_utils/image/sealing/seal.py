# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the programs of a tree load code, and what decides on code, from the image alone: the container they run in is hostile.

However a program is started (`docker exec` gives none of the image's variables), what it looks for is compiled into it. So it is
the files that are changed:

- Every dynamic ELF file gets DF_1_NODEFLIB: glibc's loader does not search its built-in folders, which are the container's.
- Paths that are compiled in are led to short links in the image's root, or to nowhere. A string of a program is never made longer.
- Python, gdb, curl and vim get their settings as arguments, by a launcher in their place (see launcher).
- A few lines of Python's library are edited.

What cannot be sealed is named, and an image that has such a thing does not count as sealed.

Sources: ld.so(8), nsswitch.conf(5), gconv in the glibc manual; dynlink.c of musl; bash(1), gdb(1), vim(1), curl(1), python(1).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.elf_files import seal_elf, write_musl_paths
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.launches import launch_programs
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.scripts import edit_scripts, end_searches
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    PYTHON,
    State,
    gen_own_programs,
    gen_programs,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.texts import write_links

# The file of the image that says that it is sealed.
MARK = "etc/crashcart.sealed"


# What is interpreted by a program that looks for its library where it was compiled for, or that reads a file of the user's at each start.
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
    """Seal the relocated TREE, which will be at PREFIX; what cannot be, as path and reason: none where all of it is.

    ABSOLUTE are places of files that need libraries by whole paths.
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
    """Name the programs that are known to load code of the container, and that nothing is done about."""
    for place in gen_own_programs(state.tree):
        for pattern, reason in _OPEN.items():
            if re.fullmatch(pattern, posixpath.basename(place)):
                state.complain(place, reason)


def _find_embedded_pythons(state: State) -> None:
    """Name the programs with Python in them that are not known to tell it where its library is."""
    for place, _status in gen_programs(state.tree):
        name = posixpath.basename(place)
        if name == "gdb" or PYTHON.fullmatch(name) or "/python3" in place:
            continue
        with open(os.path.join(state.tree, place), "rb") as file:
            if re.search(rb"\0libpython3\.[^\0/]*\.so", file.read()):
                state.complain(place, "it may look for Python's library where PATH leads, which is into the container")
