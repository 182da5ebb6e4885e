# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that failed on an object, by error and object, whoever made them.

Left out are errors that are answers (causes.py), searches that find in the end and files that programs do without (attempts.py), and what
other rules tell: limits, connections, denied calls, programs that cannot be executed.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import SEARCHES, Attempts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import (
    Capture,
    Cell,
    LongCall,
    group,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import (
    PATH_CALLS,
    TRANSFERS,
    find_rule,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import (
    Finding,
    Number,
    Place,
    Thing,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_REASONS = {
    "ENOENT": "no such file",
    "ENOTDIR": "a part of the path is no folder",
    "EACCES": "permission denied",
    "EPERM": "not permitted",
    "EIO": "input or output error",
    "EROFS": "the file system is read-only",
    "EEXIST": "it exists already",
    "EISDIR": "it is a folder",
    "ELOOP": "too many symbolic links",
    "ENXIO": "no such device, or nobody reads it",
    "ENODEV": "no such device",
    "EBUSY": "it is in use",
    "ETXTBSY": "it is being executed",
    "ENAMETOOLONG": "the name is too long",
    "ESTALE": "the server does not know the file any more",
    "EADDRINUSE": "the address is in use",
    "EADDRNOTAVAIL": "no such local address",
    "EDEADLK": "it would never end",
    "EMSGSIZE": "the message is too long",
}
_SEVERE = {"EIO": 80, "ESTALE": 80, "EADDRINUSE": 80, "EADDRNOTAVAIL": 80, "EROFS": 60, "EUCLEAN": 90, "EREMOTEIO": 80}
_SERIOUS = frozenset({"EACCES", "EPERM", "EIO", "EROFS", "ESTALE", "EUCLEAN", "EADDRINUSE"})
_SEVERITY, _SEVERITY_AGAIN, _SEVERITY_UNNAMED = 40, 60, 30
_NOT_FOUND = frozenset({"ENOENT", "ENOTDIR"})
_BARRED = ("EACCES", "EPERM", "EROFS")
# Python's byte code and the JVM's counters, which they do without where they may not write them.
_SPARE_FILES = re.compile(r"(?:.*/)?__pycache__(?:/.*)?\Z|(?:.*/)?hsperfdata_[^/]*(?:/.*)?\Z", re.DOTALL)
_OFTEN = 3  # failures from which on something fails again and again
_OFTEN_UNNAMED = 20
_STEADY = 0.8  # of the intervals between such calls, which are between half and twice the usual one
_MIN_POLLS, _MIN_POLL_NS = 5, 20_000_000  # calls at steady intervals, and the shortest interval
_SPAN_NS = 1_000_000_000  # from which on a statement says how long
_VERBS = {**PATH_CALLS, **TRANSFERS, "bind": "bind", "listen": "listen at", "flock": "lock", "connect": "connect to"}
_LOOKS = frozenset(name for name, verb in PATH_CALLS.items() if verb == "find")
_OPENS = frozenset(name for name, verb in PATH_CALLS.items() if verb == "open")


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each error and object of CAPTURE where calls failed, and for each program whose failures have no object."""
    attempts = Attempts(capture)
    failed = [cell for cell in capture.cells if find_rule(cell) == "failures"]
    tries: Counter[tuple[str, Thing]] = Counter()
    for cell in capture.cells:
        if cell.object is not None:
            tries[cell.call, cell.object] += cell.count
    named = [cell for cell in failed if cell.object and not _is_normal(cell, attempts)]
    explained = _list_explained(capture, failed)
    searches = [cell for cell in named if cell.outcome.error in SEARCHES]
    minded = set(map(id, attempts.list_minded(searches, explained)))
    polled = [cell for cell in searches if id(cell) not in minded and _list_polls(capture, attempts, cell)]
    minded |= set(map(id, polled))
    shown = (cell for cell in named if cell.outcome.error not in SEARCHES or id(cell) in minded)
    for (error, thing), cells in group(shown, lambda cell: (cell.outcome.error, cell.object)):
        of = sum(tries[call, thing] for call in {cell.call for cell in cells})
        yield _make_finding(capture, error, thing, cells, of)
    yield from _find_unnamed(capture, attempts, [cell for cell in failed if cell.object is None])


def _is_normal(cell: Cell, attempts: Attempts) -> bool:
    """Return True if the failure of CELL, which has an object, is none."""
    error = cell.outcome.error
    if cell.object is None or cell.object.kind not in ("path", "file"):
        return _is_normal_elsewhere(cell, attempts)
    path = cell.object.text
    if error in SEARCHES:
        return attempts.is_search(cell)
    if error == "EIO" and path.startswith(("/dev/pts/", "/dev/tty", "/dev/ptmx", "/proc/")):
        return True  # the other end of a terminal was closed, or a process is gone
    if error in _BARRED and (path.startswith(("/proc/", "/sys/")) or _SPARE_FILES.match(path)):
        return True
    if cell.call in _LOOKS and error in _BARRED:
        return not attempts.has_ended_it(cell) or attempts.is_search(cell)
    # Opened for reading, after it could not be opened for writing.
    return error in (*_BARRED, "ETXTBSY") and attempts.is_found_later(cell)


def _is_normal_elsewhere(cell: Cell, attempts: Attempts) -> bool:
    """Return True if the failure of CELL, whose object is no file, is none."""
    error = cell.outcome.error
    if error == "EADDRNOTAVAIL":
        return not attempts.has_ended_it(cell)  # a server that listens at several addresses does without one
    if error == "EADDRINUSE" and attempts.has_ended_well(cell):
        return True  # a program of which there is one sees by this that it is there
    # Few other errors say something.
    return error not in _SERIOUS or (error == "EIO" and cell.call in TRANSFERS)


def _make_finding(capture: Capture, error: str, thing: Thing, cells: Sequence[Cell], of: int) -> Finding:
    programs: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for cell in cells:
        programs[cell.who.program] += cell.count
        calls[cell.call] += cell.count
    program, call = (max(sorted(found), key=lambda name: found[name]) for found in (programs, calls))
    count = sum(calls.values())
    severity = _SEVERE.get(error, _SEVERITY_AGAIN if count >= _OFTEN else _SEVERITY)
    others, numbers = "", {}
    if len(programs) > 1:
        others = " and {others} other program" + ("s" if len(programs) > 2 else "")
        numbers["others"] = Number(len(programs) - 1)
    return capture.make_finding(
        cells,
        rule="failures",
        template=f"{{program}}{others} could not {{verb}} {{object}}: {{reason}}, {{often}}{_say_span(cells, numbers)}",
        severity=severity,
        program=program,
        call=call,
        error=error,
        object=thing,
        words={"verb": _find_verb(call), "reason": _find_reason(error)},
        numbers=numbers,
        of=max(of, count),
        next=_choose_command(capture.place, thing, error),
    )


def _find_unnamed(capture: Capture, attempts: Attempts, failed: Sequence[Cell]) -> Iterator[Finding]:
    """Yield findings for the FAILED calls whose object is not recorded, if they matter."""
    # Where paths are recorded, those that are not are ld.so's and libc's own. A failure with an object explains the end of its process.
    explained = _list_explained(capture, failed)
    explained |= {cell.who.pid for cell in capture.cells if cell.object and (find_rule(cell) or _is_path(cell))}
    searches = [cell for cell in failed if cell.outcome.error in _NOT_FOUND and cell.call in _OPENS]
    searches = [cell for cell in searches if not attempts.is_search(cell) and cell.who.pid not in explained]
    ended = (cell for cell in searches if attempts.has_ended_it(cell))
    for (_program, status), cells in group(ended, lambda cell: (cell.who.program, attempts.find_end(cell))):
        yield _make_unnamed(
            capture,
            cells,
            "{program} ended with status {status} after it could not open a file: no such file (ENOENT), {often}",
            words={"status": str(status)},
            count=len({cell.who.pid for cell in cells}),
            confidence="inferred",
        )
    going_on = (cell for cell in searches if attempts.is_asked_again(cell))
    for _pid, cells in group(going_on, lambda cell: cell.who.pid):
        tail = _list_tail(capture, attempts, cells[0])
        if len(tail) >= _OFTEN and tail[-1].start_ns - tail[0].start_ns >= _SPAN_NS:
            numbers = {"span": Number(tail[-1].start_ns - tail[0].start_ns, unit="ns")}
            template = "{program} could not open a file: no such file (ENOENT), {often} within {span}"
            yield _make_unnamed(capture, tail, template, numbers=numbers)
    looks = (cell for cell in failed if cell.outcome.error in _NOT_FOUND and cell.call in _LOOKS)
    for cell in looks:
        polls = _list_polls(capture, attempts, cell)
        if polls:
            numbers = {"span": Number(polls[-1].start_ns - polls[0].start_ns, unit="ns")}
            template = "{program} looks for a file by {call} all the time: no such file (ENOENT), {often} within {span}"
            yield _make_unnamed(capture, polls, template, numbers=numbers)
    others = (cell for cell in failed if cell.outcome.error not in SEARCHES and cell.call not in _LOOKS)
    for (_program, verb, error), cells in group(
        others, lambda cell: (cell.who.program, _find_verb(cell.call), cell.outcome.error)
    ):
        if error in _SERIOUS or sum(cell.count for cell in cells) >= _OFTEN_UNNAMED:
            numbers = {}
            template = f"{{program}} could not {{verb}} {_name_unnamed(verb)}: {{reason}}, {{often}}{_say_span(cells, numbers)}"
            words = {"verb": verb, "reason": _find_reason(error)}
            yield _make_unnamed(capture, cells, template, numbers=numbers, words=words)


def _list_explained(capture: Capture, failed: Sequence[Cell]) -> set[int]:
    """Return the processes of CAPTURE that have a worse failure than a file that is not found; FAILED are this rule's failures."""
    others = {cell.who.pid for cell in capture.cells if find_rule(cell) in ("limits", "denied", "connections")}
    return others | {cell.who.pid for cell in failed if cell.outcome.error in _SERIOUS and cell.call not in _LOOKS}


def _is_path(cell: Cell) -> bool:
    return cell.call in _OPENS and cell.object is not None and cell.object.kind == "path"


def _list_tail(capture: Capture, attempts: Attempts, cell: Cell) -> list[LongCall]:
    """Return the calls like CELL after the last one of their process that succeeded, as far as the capture has them one by one."""
    found = (
        call
        for call in capture.long_calls
        if (call.who.pid, call.call, call.outcome.error) == (cell.who.pid, cell.call, cell.outcome.error)
        and call.object == cell.object
        and call.start_ns > attempts.find_last(cell)
    )
    return sorted(found, key=lambda call: call.start_ns)


def _list_polls(capture: Capture, attempts: Attempts, cell: Cell) -> list[LongCall]:
    """Return the calls like CELL, which looks for a file, where they come at steady intervals as of a program that waits; none otherwise."""
    if cell.call not in _LOOKS or cell.count < _MIN_POLLS or not attempts.goes_on(cell):
        return []
    calls = _list_tail(capture, attempts, cell)
    gaps = sorted(later.start_ns - call.start_ns for call, later in zip(calls, calls[1:]))
    if len(calls) < _MIN_POLLS or calls[-1].start_ns - calls[0].start_ns < _SPAN_NS:
        return []
    middle = gaps[len(gaps) // 2]
    # Some come late where the processors are busy.
    steady = sum(middle // 2 <= gap <= 2 * middle for gap in gaps)
    return calls if middle >= _MIN_POLL_NS and steady >= _STEADY * len(gaps) else []


def _make_unnamed(capture: Capture, rows: Sequence[Cell | LongCall], template: str, **parts: Any) -> Finding:
    error = rows[0].outcome.error or ""
    known = {
        "rule": "failures",
        "template": template,
        "severity": _SEVERITY_UNNAMED + 10 * (error in _SERIOUS),
        "program": rows[0].who.program,
        "call": rows[0].call,
        "error": error,
        "confidence": "likely",
        "missing": capture.loss or "what it was about: its path was not recorded",
        "next": trace_again(capture.place, paths="true"),
    }
    return capture.make_finding(rows, **{**known, **parts})


def _say_span(cells: Sequence[Cell], numbers: dict[str, Number]) -> str:
    """Return how long the failures of CELLS went on, as a part of a template, and add that to NUMBERS; nothing for a short time."""
    span = max(cell.last_ns for cell in cells) - min(cell.first_ns for cell in cells)
    if span < _SPAN_NS:
        return ""
    numbers["span"] = Number(span, unit="ns")
    return " within {span}"


def _find_verb(call: str) -> str:
    return _VERBS.get(call) or f"{call} on"


def _name_unnamed(verb: str) -> str:
    return {"open": "a file", "find": "a file", "bind": "an address"}.get(verb, "something")


def _find_reason(error: str) -> str:
    return f"{_REASONS[error]} ({error})" if error in _REASONS else error


def _choose_command(place: Place, thing: Thing, error: str) -> str:
    if thing.kind == "path":
        return (
            run_in(place, "namei", "-l", thing.text)
            if error in ("EACCES", "EPERM")
            else run_in(place, "ls", "-ld", thing.text)
        )
    options: dict[str, Any] = {"paths": "true"} if thing.kind == "file" else {}
    return run_in(place, "ss", "-tanp") if thing.kind in ("peer", "socket") else trace_again(place, **options)


RULE = Rule(name="failures", title="calls that failed on an object", find=find)
