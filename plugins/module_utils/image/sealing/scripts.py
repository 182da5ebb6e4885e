# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edit the lines of scripts and of Python's library that lead into the container."""

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

# os.system starts the container's shell by the C library. subprocess starts the image's.
_SYSTEM = (r"\bos\.system\(", "__import__('subprocess').call(shell=True, args=")
_CURRENT = "look for modules in the current folder"
_BESIDE = "look for modules beside a script"
_SETTINGS = "read settings at home"
_PROGRAMS = "start programs of the container"
# File; pattern of a text in it; its replacement; what Python may do where the file lacks the text, so that the image is not sealed.
_EDITS: tuple[tuple[str, str, str, str], ...] = (
    ("{lib}/site.py", r"^ENABLE_USER_SITE = None$", "ENABLE_USER_SITE = False", "look for modules at home"),
    # These look for modules in the current folder or beside a script, whatever Python's options are.
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
    # Not every version of Python has these.
    ("{lib}/pydoc.py", *_SYSTEM, ""),
    ("{lib}/_pyrepl/pager.py", *_SYSTEM, ""),
    ("{lib}/pipes.py", *_SYSTEM, ""),
    ("{lib}/mailcap.py", *_SYSTEM, ""),
)
# glibc's loader runs code of the auditors that a file names (DT_AUDIT, DT_DEPAUDIT) even when it only lists the file's libraries. It accepts
# this many lists of auditors (DL_NNS), and ends when the file adds one more. A list may be empty.
NO_AUDITORS = 16 * ("--audit", ":")
_AUDITORS_END = b"Too many audit modules requested"
# lesspipe starts this program from a user's home.
_FILTER = r"(~|\$\w+|\$\{\w+\})/\.?lessfilter\b"
_MAX_LINE = 4096
# Shell scripts may add folders to PATH and call programs by absolute paths. Python programs, such as Debian's py3compile, may add a folder of
# their own modules below /usr, which is folded into the image's root.
_FOLDERS_BESIDE_PATH = r"(?<=\bPATH=)\"?(?:(?:/[\w/]+:)+\$PATH|\$PATH(?::/[\w/]+)+)\"?(?=[;\s]|$)"
_PROGRAM_BY_PLACE = r"(?<![\w.}/$-])/(?:usr/)?s?bin/([\w.+-]+)"
_ADDED_FOLDER = r"(?<=^sys\.path\.insert\([01], ['\"])/usr/"
# Python searches the folders above its program, up to the root, for its library. It takes the first folder that has an archive of the library
# (since 3.11, before all else) or os.py. It searches for modules in machine code (lib-dynload) in the same way.
_EMPTY_ARCHIVE = b"PK\5\6" + bytes(18)


def edit_scripts(state: State) -> None:
    """Edit the lines of Python's library, of ldd and of other scripts that lead into the container.

    Complain to STATE of each file that lacks an expected line.
    """
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
    """Return the path of the image's own program for the path FOUND, or that path where the image has no such program."""
    places = (f"{folder}/{found[1]}" for folder in PROGRAM_FOLDERS)
    own = next((place for place in places if os.path.lexists(os.path.join(state.tree, place))), None)
    return found[0] if own is None else f"{state.prefix}/{own}"


def _edit_ldd(state: State) -> None:
    """Let ldd call the image's loaders, in a way that they load no auditors that a file names."""
    path = os.path.join(state.tree, "bin/ldd")
    loaders = sorted(glob.glob("lib*/ld-linux*.so.*", root_dir=state.tree))
    places = " ".join(f"{state.prefix}/{loader}" for loader in loaders)
    if not _edit(path, r"^RTLDLIST=.*$", f'RTLDLIST="{places}"'):
        _edit(path, r"(?<![\w/])/lib/(?=ld-musl-)", f"{state.prefix}/lib/")  # musl's loader has no auditors
        return
    if not _edit(path, r'(?<=^      try_trace "\$RTLD" )(?="\$file")', f"{' '.join(NO_AUDITORS)} "):
        state.complain("bin/ldd", "it does not hold the line by which it starts the loader as expected")
    for loader in (os.path.join(state.tree, place) for place in loaders):
        if os.path.isfile(loader) and not holds(loader, _AUDITORS_END):
            state.complain("bin/ldd", "it runs code that a file names: only glibc 2.32 and later can be told not to")


def _edit(path: str, old: str, new: str | Callable[[re.Match[str]], str]) -> int:
    """Replace each match of OLD in the file PATH by NEW, or by the result of NEW, and return the number of replacements."""
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
    """Return the places of the folders that hold the library of a Python, sorted."""
    found = (glob.glob(f"{top}lib*/python3.*/", root_dir=tree) for top in ("", "local/"))
    return sorted(
        place.rstrip("/")
        for places in found
        for place in places
        if os.path.isfile(os.path.join(tree, place, "site.py"))
    )


def end_searches(state: State) -> None:
    """Make Python's searches of the folders above its program end in the image, and complain to STATE of a Python without a library."""
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
        # A Python in local/ searches local/ and the root. A libpython searches the folders above the program that has loaded it.
        top = "local/" if place.startswith("local/") else ""
        if not any(re.fullmatch(rf"({top})?lib[^/]*/python3\.{version[2]}", library) for library in libraries):
            state.complain(place, "it looks for the rest of its library in the container's folders: the image has none")
