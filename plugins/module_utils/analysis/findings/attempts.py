# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge whether a program found in the end what it did not find at first, and whether it minds.

A search tries one place after the other, so most of its tries fail: a shell's PATH, ld.so's folders, locales, Python's and Node's modules.
"""

from __future__ import annotations

import os.path
import re
from typing import Collection, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import NEVER
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import CHECKS, EXECS, PATH_CALLS

SEARCHES = frozenset({"ENOENT", "ENOTDIR", "ENXIO", "ELOOP", "ENODEV", "EISDIR", "EEXIST"})
_FINDERS = frozenset(name for name, verb in PATH_CALLS.items() if verb in ("open", "find", "execute"))
_CHANGERS = frozenset(
    name
    for name, verb in PATH_CALLS.items()
    if verb in ("remove", "rename", "make the folder", "link", "make the node")
)
_KNOWN = re.compile(
    r"""
    (?:/proc|/sys|/selinux)(?:/.*)?\Z
    | .*<[\w. -]+>\Z  # what Python calls code that is in no file
    | .*/selinux/config\Z
    | (?:/etc|/run(?:/host)?|/usr/local/lib|/usr/lib|/lib)/userdb(?:/.*)?\Z
    | /etc/(?:ld\.so\.(?:preload|nohwcap|cache)|ld-musl-\S*\.path|localtime|locale\.alias|gai\.conf|host\.conf|nsswitch\.conf|resolv\.conf
        |services|protocols|networks|aliases|krb5\.conf|inputrc|terminfo/.*|default/locale|environment|mailcap|mime\.types
        |papersize|shells|gss/mech\.d.*|os-release|lsb-release|machine-id|gcrypt/.*|gnutls/.*|ssl/openssl\.cnf|pki/.*|crypto-policies/.*)\Z
    | (?:/var)?/run/(?:nscd/.*|systemd/.*|utmp|dbus/.*|log|user/.*)\Z
    | /var/(?:log/(?:wtmp|btmp|lastlog)|lib/dbus/machine-id|db/nscd/.*)\Z
    | /dev/(?:tty|log|hugepages|shm|console)\Z
    | .*/(?:locale|i18n|locale-langpack|terminfo|zoneinfo|nls|hwcaps|glibc-hwcaps)/.*
    | .*/(?:locale-archive|gconv-modules(?:\.cache|\.d)?|haswell|tls|x86_64|avx512_1|pyvenv\.cfg|pybuilddir\.txt|python\d*\._pth|python\d+\.zip
        |package\.json|node_modules|__pycache__|sitecustomize\.\w+|usercustomize\.\w+|orig-prefix\.txt)\Z
    | .*/(?:node_modules|__pycache__|dist-info|site-packages|\.git|gconv)/.*
    | .*/\.(?:\w*rc|netrc|profile|bash_profile|bash_logout|inputrc|pgpass|pg_service\.conf|terminfo|hushlogin|gnupg|local|config|cache|nanorc
        |\w*_history|digrc|my\.cnf|mylogin\.cnf|hgignore|npmrc|env|ssh)(?:/.*)?\Z
    | .*\.(?:mo|pyc|pmc|htaccess)\Z
    """,
    re.VERBOSE | re.DOTALL,
)
_PYTHON = re.compile(r"(?:/__init__)?(?:\.abi3|\.cpython-[\w-]+)?\.(?:py|pyc|so)\Z|module\.so\Z")
_LIBRARY = re.compile(r".*\.so(?:\.[\d.]+)?\Z", re.DOTALL)
_NOT_LOADED = 127  # the status with which ld.so ends a program that lacks a library
_NODE = re.compile(r"(?:/index)?\.(?:js|json|node|mjs|cjs)\Z")
_NO_FAILURES = (0, 130, 143)  # the last two are of programs that were told to end, by SIGINT or SIGTERM
_TAIL_NS = 200_000_000  # between a failure and the end of the process that it may have ended
_MIN_TRIES = 3  # of one process, to say that it asks again and again
_MIN_SPAN_NS = 1_000_000_000


class Attempts:
    """Paths and names that the programs of CAPTURE found."""

    def __init__(self, capture: Capture) -> None:
        self._processes = capture.processes
        self._found: dict[str, int] = {}  # path → when it was last found
        self._changed: set[str] = set()  # paths that came or went in the capture
        self._names: dict[tuple[int | str, str], int] = {}  # process or program, and name → when it was last found
        self._stems: set[tuple[str, str, str]] = set()  # program, language and name of modules
        self._opened: dict[
            tuple[int, str], int
        ] = {}  # process and call, of those without an object → when the last one succeeded
        for cell in capture.cells:
            if cell.outcome.error or cell.outcome.unfinished:
                continue
            if cell.object is None:
                key = cell.who.pid, _name_family(cell.call)
                self._opened[key] = max(cell.last_ns, self._opened.get(key, cell.last_ns))
            elif cell.object.kind == "path":
                self._note(cell, cell.object.text)

    def _note(self, cell: Cell, path: str) -> None:
        if cell.call in _CHANGERS:
            self._changed.update(path.split(" -> "))
        if cell.call not in _FINDERS:
            return
        self._found[path] = max(cell.last_ns, self._found.get(path, cell.last_ns))
        name = os.path.basename(path)
        for scope in (cell.who.pid, cell.who.program):
            self._names[scope, name] = max(cell.last_ns, self._names.get((scope, name), cell.last_ns))
        for kind, stem in _gen_stems(path):
            self._stems.add((cell.who.program, kind, stem))

    def is_search(self, cell: Cell) -> bool:
        """Return True if the path that CELL did not find is one of several tries, is optional, or came or went meanwhile."""
        if cell.object is None:
            return self.find_last(cell) > cell.last_ns
        path = cell.object.text
        if _LIBRARY.match(path):
            return self.find_end(cell) != _NOT_LOADED or (cell.who.pid, os.path.basename(path)) in self._names
        if _KNOWN.match(path) or path in self._changed or self._found.get(path, NEVER) >= cell.last_ns:
            return True
        name = os.path.basename(path)
        if any(self._names.get((scope, name), NEVER) >= cell.first_ns for scope in (cell.who.pid, cell.who.program)):
            return path not in self._found
        return path not in self._found and any(
            (cell.who.program, kind, stem) in self._stems for kind, stem in _gen_stems(path)
        )

    def find_last(self, cell: Cell) -> int:
        """Return when the process of CELL last succeeded in such a call without an object; NEVER if it did not."""
        return self._opened.get((cell.who.pid, _name_family(cell.call)), NEVER)

    def is_found_later(self, cell: Cell) -> bool:
        """Return True if the object of CELL was opened or found after its last failure."""
        return cell.object is not None and self._found.get(cell.object.text, NEVER) > cell.last_ns

    def find_end(self, cell: Cell) -> int | None:
        """Return the status with which the program of CELL ended soon after the last failure; None if it did not, or without an error."""
        status = self._find_status(cell)
        if status is None or status in _NO_FAILURES:
            return None
        return status if self._processes[cell.who.pid].program == cell.who.program else None

    def _find_status(self, cell: Cell) -> int | None:
        """Return the status with which the process of CELL ended itself soon after the last failure; None if it did not."""
        process = self._processes.get(cell.who.pid)
        is_soon = process is not None and 0 <= process.end_ns - cell.last_ns < _TAIL_NS
        return process.status if process is not None and is_soon else None

    def has_ended_it(self, cell: Cell) -> bool:
        """Return True if the program of CELL ended by itself with an error soon after the last failure."""
        return self.find_end(cell) is not None

    def has_ended_well(self, cell: Cell) -> bool:
        """Return True if the program of CELL ended by itself without an error soon after the last failure."""
        return self._find_status(cell) == 0

    def list_minded(self, cells: Sequence[Cell], explained: Collection[int]) -> list[Cell]:
        """Return those of CELLS, paths that were not found, which their programs cannot do without: they ended, or ask again and again.

        EXPLAINED are processes with a worse failure, which explains their end.
        """
        last: dict[int, Cell] = {}
        for cell in cells:
            if cell.who.pid not in explained and self.has_ended_it(cell):
                # What could not be opened rather than what was only looked for; the last one of several.
                last[cell.who.pid] = max(last.get(cell.who.pid, cell), cell, key=_rank_cause)
        causes = set(map(id, last.values()))
        return [cell for cell in cells if id(cell) in causes or self.is_asked_again(cell)]

    def is_asked_again(self, cell: Cell) -> bool:
        """Return True if a process fails to open the file of CELL all the time, and has not ended without an error."""
        is_often = cell.count >= _MIN_TRIES and cell.last_ns - cell.first_ns >= _MIN_SPAN_NS
        return is_often and self.goes_on(cell) and cell.call not in CHECKS

    def goes_on(self, cell: Cell) -> bool:
        """Return True if the process of CELL has not ended by itself in the capture."""
        process = self._processes.get(cell.who.pid)
        return process is None or process.status is None


def _rank_cause(cell: Cell) -> tuple[bool, int]:
    return cell.call not in CHECKS, cell.last_ns


def _name_family(call: str) -> str:
    return "execute" if call in EXECS else PATH_CALLS.get(call, call)


def _gen_stems(path: str) -> Iterator[tuple[str, str]]:
    """Yield language and name of the module that PATH may hold: Python looks in many folders, Node adds endings to one path."""
    match = _PYTHON.search(path)
    if match:
        yield "python", os.path.basename(path[: match.start()])
    match = _NODE.search(path)
    if match or "." not in os.path.basename(path):
        yield "node", path[: match.start()] if match else path
