# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Scripts and Python's library: the lines that lead into the container."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.image.sealing.state import (
    NOWHERE,
    PROGRAM_FOLDERS,
    PYTHON,
    State,
    gen_own_programs,
    gen_programs,
    holds,
)

# A shell that Python's library starts by the C library is the container's, but by subprocess the image's.
_SYSTEM = (r"\bos\.system\(", "__import__('subprocess').call(shell=True, args=")
_CURRENT = "look for modules in the current folder"
_BESIDE = "look for modules beside a script"
_SETTINGS = "read settings at home"
_PROGRAMS = "start programs of the container"
# Files by pattern, what stands in them, what is to stand there ({prefix}), and what Python may do where that is not found: then the image
# is not sealed.
_EDITS: tuple[tuple[str, str, str, str], ...] = (
    ("{lib}/site.py", r"^ENABLE_USER_SITE = None$", "ENABLE_USER_SITE = False", "look for modules at home"),
    # What looks for modules in the current folder, or beside a script, whatever Python was told.
    ("{lib}/pydoc.py", r"\brevised_path\.insert\(0, os\.getcwd\(\)\)", "pass", _CURRENT),
    ("{lib}/timeit.py", r"\bsys\.path\.insert\(0, os\.curdir\)", "pass", _CURRENT),
    ("{lib}/idlelib/pyshell.py", r"\bsys\.path\.insert\(0, dir\)", "pass", _CURRENT),
    ("{lib}/profile.py", r"\bsys\.path\.insert\(0, os\.path\.dirname\(progname\)\)", "pass", _BESIDE),
    ("{lib}/cProfile.py", r"\bsys\.path\.insert\(0, os\.path\.dirname\(progname\)\)", "pass", _BESIDE),
    ("{lib}/trace.py", r"\bsys\.path\[0\] = os\.path\.dirname\(opts\.progname\)", "pass", _BESIDE),
    ("{lib}/pdb.py", r"\bsys\.path\[0\] = os\.path\.dirname\((mainpyfile|self(\._target)?)\)", "pass", _BESIDE),
    ("{lib}/pdb.py", r"\breadrc=True\b", "readrc=False", _SETTINGS),
    ("{lib}/tkinter/__init__.py", r"\bself\.readprofile\(baseName, className\)", "pass", _SETTINGS),
    ("{lib}/subprocess.py", r"(?<=[ (])'/bin/sh'", "'{prefix}/bin/sh'", _PROGRAMS),
    ("{lib}/ctypes/util.py", r"'/sbin/ldconfig'", "'{prefix}/sbin/ldconfig'", _PROGRAMS),
    ("{lib}/uuid.py", r"\bpath_dirs\.extend\(\['/sbin', '/usr/sbin'\]\)", "pass", _PROGRAMS),
    # Not in each version.
    ("{lib}/pydoc.py", *_SYSTEM, ""),
    ("{lib}/_pyrepl/pager.py", *_SYSTEM, ""),
    ("{lib}/pipes.py", *_SYSTEM, ""),
    ("{lib}/mailcap.py", *_SYSTEM, ""),
)
# glibc's loader runs code of auditors that a file names (DT_AUDIT, DT_DEPAUDIT) also where it lists what the file needs. It takes so many
# lists of auditors (DL_NNS), and ends when there is one more; a list may name none.
NO_AUDITORS = 16 * ("--audit", ":")
_AUDITORS_END = b"Too many audit modules requested"
# A program at home that lesspipe starts.
_FILTER = r"(~|\$\w+|\$\{\w+\})/\.?lessfilter\b"
_MAX_LINE = 4096
# Where a script of a shell looks before PATH or after it, and how it calls a program by its place; where a Python program has its own
# modules, as Debian's py3compile: /usr is folded into the image's root.
_FOLDERS_BESIDE_PATH = r"(?<=\bPATH=)\"?(?:(?:/[\w/]+:)+\$PATH|\$PATH(?::/[\w/]+)+)\"?(?=[;\s]|$)"
_PROGRAM_BY_PLACE = r"(?<![\w.}/$-])/(?:usr/)?s?bin/([\w.+-]+)"
_ADDED_FOLDER = r"(?<=^sys\.path\.insert\([01], ['\"])/usr/"
# Python looks for its library in the folders above its program, up to the root, and takes the first one that has an archive of it (since
# 3.11, before all else) or os.py; in the same way it looks for modules in machine code.
_EMPTY_ARCHIVE = b"PK\5\6" + bytes(18)


def edit_scripts(state: State) -> None:
    """Edit the few lines of Python's library, of ldd and of other scripts that lead into the container."""
    for library in _list_python_libraries(state.tree):
        for pattern, old, new, danger in _EDITS:
            place = pattern.format(lib=library)
            path = os.path.join(state.tree, place)
            count = _edit(path, old, new.format(prefix=state.prefix))
            if danger and not count and os.path.isfile(path):
                state.complain(place, f"it does not hold the line that lets Python {danger}")
    _edit_ldd(state)
    for name in ("lesspipe", "lesspipe.sh"):
        _edit(os.path.join(state.tree, "bin", name), _FILTER, f"{NOWHERE}/lessfilter")
    for place in gen_own_programs(state.tree):
        with open(os.path.join(state.tree, place), "rb") as file:
            interpreter = re.match(rb"#![^\n]*/(python3|\w*sh)\b", file.readline(_MAX_LINE))
        if interpreter and interpreter[1] == b"python3":
            _edit(os.path.join(state.tree, place), _ADDED_FOLDER, f"{state.prefix}/")
        elif interpreter:
            _edit(os.path.join(state.tree, place), _FOLDERS_BESIDE_PATH, "$PATH")
            _edit(os.path.join(state.tree, place), _PROGRAM_BY_PLACE, lambda found: _find_program(state, found))


def _find_program(state: State, found: re.Match[str]) -> str:
    """The image's own program of the name that is FOUND by its usual place; that place where the image has none."""
    places = (f"{folder}/{found[1]}" for folder in PROGRAM_FOLDERS)
    own = next((one for one in places if os.path.lexists(os.path.join(state.tree, one))), None)
    return found[0] if own is None else f"{state.prefix}/{own}"


def _edit_ldd(state: State) -> None:
    """Let ldd ask the image's loaders, and these load no auditors that a program names."""
    path = os.path.join(state.tree, "bin/ldd")
    loaders = sorted(glob.glob("lib*/ld-linux*.so.*", root_dir=state.tree))
    places = " ".join(f"{state.prefix}/{one}" for one in loaders)
    if not _edit(path, r"^RTLDLIST=.*$", f'RTLDLIST="{places}"'):
        _edit(path, r"(?<![\w/])/lib/(?=ld-musl-)", f"{state.prefix}/lib/")  # musl's knows no auditors
        return
    if not _edit(path, r'(?<=^      try_trace "\$RTLD" )(?="\$file")', f"{' '.join(NO_AUDITORS)} "):
        state.complain("bin/ldd", "it does not hold the line by which it starts the loader as expected")
    for one in (os.path.join(state.tree, one) for one in loaders):
        if os.path.isfile(one) and not holds(one, _AUDITORS_END):
            state.complain("bin/ldd", "it runs code that a file names: only glibc 2.32 and later can be told not to")


def _edit(path: str, old: str, new: str | Callable[[re.Match[str]], str]) -> int:
    """Replace what fits OLD in the file PATH by NEW, or by what NEW makes of it; how often."""
    if not os.path.isfile(path) or os.path.islink(path):
        return 0
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        text = file.read()
    changed, count = re.subn(old, new if callable(new) else lambda _match: new, text, flags=re.MULTILINE)
    if count:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(changed)
    return count


def _list_python_libraries(tree: str) -> list[str]:
    """Places of the folders that hold the library of a Python."""
    found = (glob.glob(f"{top}lib*/python3.*/", root_dir=tree) for top in ("", "local/"))
    return sorted(
        place.rstrip("/")
        for places in found
        for place in places
        if os.path.isfile(os.path.join(tree, place, "site.py"))
    )


def end_searches(state: State) -> None:
    """See to it that Python's searches upwards end in the image; complain of a Python whose library is not there."""
    libraries = _list_python_libraries(state.tree)
    for library in libraries:
        archive = os.path.join(state.tree, re.sub(r"/python3\.(\d+)$", r"/python3\1.zip", library))
        if not os.path.lexists(archive):
            with open(archive, "wb") as file:
                file.write(_EMPTY_ARCHIVE)
        os.makedirs(os.path.join(state.tree, library, "lib-dynload"), exist_ok=True)
    for place, _status in gen_programs(state.tree):
        name = posixpath.basename(place)
        version = PYTHON.fullmatch(name)
        if version is None or name == "libpython3.so":
            continue
        # As the folder above is one of what it looks through, or for its library that of whoever loads it.
        top = "local/" if place.startswith("local/") else ""
        if not any(re.fullmatch(rf"({top})?lib[^/]*/python3\.{version[2]}", one) for one in libraries):
            state.complain(place, "it looks for the rest of its library in the container's folders: the image has none")
