# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that cannot be executed, and why.

A search through the folders of PATH is normal: a process that executes a program after all is left out. The functions execvp and
posix_spawnp search by trying to execute; so the tries of one process for one name make one finding. Shells search by stat instead, and end
with exit code 127.

The kernel says ENOENT both for a missing program and for a missing interpreter (of the #! line, or the loader of an ELF file). If a call of the
capture has seen the file, the interpreter is missing. A #! line that ends with a carriage return makes the kernel look for an interpreter with
such a name; it shows in the path where `env` is the interpreter, and else in the file.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Iterator, NamedTuple, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.lives import list_lives
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

EXECS = ("execve", "execveat")
_LOOKS = ("stat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "open", "openat", "openat2", "readlink")
_STATS = ("stat", "newfstatat", "statx", "access", "faccessat", "faccessat2")
_LIMITS = ("EMFILE", "ENFILE", "EAGAIN", "ENOMEM")  # the rule `limits` tells of them
_SEARCH_ERRORS = ("ENOENT", "ENOTDIR", "EACCES")
_SHELLS = frozenset(["sh", "dash", "bash", "ash", "busybox", "ksh", "mksh", "zsh"])
_NOT_FOUND = 127  # a shell's exit code for a command that it does not find
_CANNOT_RUN = (126, 127, 2)
_MIN_FOLDERS = 3
_REASONS = {
    "ENOEXEC": "it is of another architecture, or a script without a #! line",
    "EACCES": "it is no executable file (mode x, or a mount with noexec), or a folder of its path is closed",
    "EPERM": "the kernel does not permit it",
    "ELIBBAD": "its interpreter (the ELF loader) is damaged or of another architecture",
    "ETXTBSY": "the file is open for writing",
    "E2BIG": "its arguments and environment are too long",
    "ELOOP": "too many symbolic links, or interpreters of interpreters",
    "EIO": "reading the file failed",
    "ENOTDIR": "a part of its path is no folder",
    "ENAMETOOLONG": "its path is too long",
    "EINVAL": "its ELF file is not valid",
    "EISDIR": "its interpreter is a folder",
}
_SEVERITY, _SEVERITY_SEARCHED = 90, 60
_NO_PATH = "a program (its path is not recorded)"


class _Fault(NamedTuple):
    """Words that the calls of one finding share."""

    program: str
    name: str  # of the program that was to run, or its path
    error: str
    folders: int  # in which it was searched; 1 where the path was given


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program and path that it could not execute, with the reason."""
    tries: dict[int, list[Cell]] = defaultdict(list)
    done: dict[int, list[Cell]] = defaultdict(list)
    for cell in capture.cells:
        if cell.call in EXECS and not cell.outcome.unfinished and cell.outcome.error not in _LIMITS:
            (tries if cell.outcome.error else done)[cell.who.pid].append(cell)
    seen = {cell.object for cell in capture.cells if _has_seen(cell)}
    codes = {process.who.pid: process.status for process in list_lives(capture) if process is not None}
    found: dict[_Fault, list[Cell]] = defaultdict(list)
    for pid, cells in tries.items():
        failed = [cell for cell in cells if not any(success.last_ns >= cell.last_ns for success in done[pid])]
        for fault, rows in _gen_faults(failed):
            is_script = fault.error == "ENOEXEC" and fault.program in _SHELLS and codes.get(pid) not in _CANNOT_RUN
            if not is_script:  # a shell runs such a file itself
                found[fault] += rows
    for fault, rows in found.items():
        yield _make_finding(capture, fault, rows, is_seen=rows[0].object in seen)
    yield from _gen_not_found(capture, codes)


def _has_seen(cell: Cell) -> bool:
    return cell.call in _LOOKS and cell.outcome.error is None and cell.object is not None


def _gen_faults(cells: Sequence[Cell]) -> Iterator[tuple[_Fault, list[Cell]]]:
    """Yield the faults in CELLS, failed tries of one process to execute, each with its cells."""
    by_name: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_name[cell.who.program, _find_name(cell)].append(cell)
    for (program, name), same in by_name.items():
        paths = sorted({cell.object.text for cell in same if cell.object})
        if len(paths) >= _MIN_FOLDERS and all(cell.outcome.error in _SEARCH_ERRORS for cell in same):
            # A file without permission is what the search has found.
            denied = [cell for cell in same if cell.outcome.error == "EACCES"]
            if not denied:
                yield _Fault(program, name, "ENOENT", len(paths)), same
            single = denied
        else:
            single = same
        for cell in single:
            text = cell.object.text if cell.object else _NO_PATH
            yield _Fault(program, text, cell.outcome.error or "", 1), [cell]


def _find_name(cell: Cell) -> str:
    return cell.object.text.rpartition("/")[2] if cell.object else _NO_PATH


def _make_finding(capture: Capture, fault: _Fault, rows: Sequence[Cell], *, is_seen: bool) -> Finding:
    thing = Thing("program", fault.name)
    words, confidence = {}, "certain"
    # Without paths, a search through PATH looks like this, too.
    is_search = fault.folders > 1 or (fault.name == _NO_PATH and fault.error in _SEARCH_ERRORS)
    if fault.name.endswith("\r"):
        template = "{program} cannot run {name}: the #! line of its script ends with a carriage return (\\r), as files of Windows do"
        words["name"] = fault.name[:-1]
    elif fault.folders > 1:
        template = "{program} cannot run {object}: it is in none of the {folders} folders of PATH"
        words["folders"] = str(fault.folders)
    elif fault.error == "ENOENT" and is_seen:
        template = "{program} cannot run {object}: the file is there, its interpreter (#! line or ELF loader) is not"
        confidence = "likely"
    elif fault.error == "ENOENT":
        template = "{program} cannot run {object}: no such file, or its interpreter (#! line or ELF loader) is missing"
    else:
        template = "{program} cannot run {object}: {reason} ({error})"
        words["reason"] = _REASONS.get(fault.error, "the kernel refuses it")
    return capture.make_finding(
        rows,
        rule="programs",
        template=template,
        severity=_SEVERITY_SEARCHED if is_search else _SEVERITY,
        program=fault.program,
        call="execve",
        error=fault.error,
        object=thing,
        words=words,
        confidence=confidence,
        count=len({row.who.pid for row in rows}) if is_search else sum(row.count for row in rows),
        **({"missing": "the path of the program"} if fault.name == _NO_PATH and not capture.loss else {}),
        next=_choose_command(capture, fault),
    )


def _choose_command(capture: Capture, fault: _Fault) -> str:
    if fault.name == _NO_PATH:
        return trace_again(capture.place, paths="true")
    if fault.folders > 1 or not fault.name.startswith("/"):
        return trace_again(capture.place, profile="startup")
    if fault.error in ("ENOEXEC", "ENOENT", "ELIBBAD", "EINVAL"):
        return run_in(capture.place, "od", "-c", "-N", "128", fault.name)  # shows #!, \r and the ELF machine
    return run_in(capture.place, "ls", "-ld", fault.name)


def _gen_not_found(capture: Capture, codes: dict[int, int | None]) -> Iterator[Finding]:
    """Yield a finding for each command that shells searched by stat, did not find, and then ended with exit code 127."""
    found: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    by_name: dict[tuple[int, str], list[Cell]] = defaultdict(list)
    for cell in capture.cells:
        if (
            cell.who.program in _SHELLS
            and cell.call in _STATS
            and cell.object
            and codes.get(cell.who.pid) == _NOT_FOUND
        ):
            by_name[cell.who.pid, _find_name(cell)].append(cell)
    for (_pid, name), cells in by_name.items():
        folders = {cell.object for cell in cells if cell.object and cell.object.text.rpartition("/")[0].endswith("bin")}
        if len(folders) >= _MIN_FOLDERS and all(cell.outcome.error in _SEARCH_ERRORS for cell in cells):
            found[cells[0].who.program, name] += cells
    for (program, name), cells in found.items():
        pids = {cell.who.pid for cell in cells}
        yield capture.make_finding(
            cells,
            rule="programs",
            template="{program} cannot run {object}: it is in none of the {folders} folders of PATH (exit code 127)",
            severity=_SEVERITY_SEARCHED,
            program=program,
            object=Thing("program", name),
            words={"folders": str(len({cell.object for cell in cells}))},
            count=len(pids),
            confidence="likely",
            next=trace_again(capture.place, profile="startup"),
        )


RULE = Rule(name="programs", title="programs that cannot be executed, and why", find=find)
