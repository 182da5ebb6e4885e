# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that failed on an object, by error and object, whoever made them.

Left out are errors that are answers (causes.py), searches that find in the end and files that programs do without (attempts.py), and what
other rules tell: limits, connections, denied calls, programs that cannot be executed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import SEARCHES, Attempts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import (
    CHECKS,
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
    "ENOENT": "no such file or directory",
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
    "EDEADLK": "it would never end",
    "EMSGSIZE": "the message is too long",
}
_SEVERE = {"EIO": 80, "ESTALE": 80, "EADDRINUSE": 80, "EROFS": 60, "EUCLEAN": 90, "EREMOTEIO": 80}
_SERIOUS = frozenset({"EACCES", "EPERM", "EIO", "EROFS", "ESTALE", "EUCLEAN", "EADDRINUSE"})
_SEVERITY, _SEVERITY_AGAIN, _SEVERITY_UNNAMED = 40, 60, 30
_OFTEN = 3  # failures from which on something fails again and again
_OFTEN_UNNAMED = 20
_SPAN_NS = 1_000_000_000  # from which on a statement says how long
_VERBS = {**PATH_CALLS, **TRANSFERS, "bind": "bind", "listen": "listen at", "flock": "lock", "connect": "connect to"}
_OPENS = frozenset(name for name, verb in PATH_CALLS.items() if verb == "open")


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each error and object of CAPTURE where calls failed, and for each program whose failures have no object."""
    attempts = Attempts(capture)
    failed = [cell for cell in capture.cells if find_rule(cell) == "failures"]
    tries: Counter[tuple[str, Thing]] = Counter()
    for cell in capture.cells:
        if cell.object is not None:
            tries[cell.call, cell.object] += cell.count
    for (error, thing), cells in group((cell for cell in failed if cell.object), lambda c: (c.outcome.error, c.object)):
        shown = [cell for cell in cells if not _is_normal(cell, attempts)]
        if shown and (error not in SEARCHES or attempts.is_minded(shown)):
            of = sum(tries[call, thing] for call in {cell.call for cell in shown})
            yield _make_finding(capture, error, thing, shown, of)
    unnamed = (cell for cell in failed if cell.object is None)
    for (program, verb, error), cells in group(unnamed, lambda c: (c.who.program, _find_verb(c.call), c.outcome.error)):
        yield from _find_unnamed(capture, attempts, program, verb, error, cells)


def _is_normal(cell: Cell, attempts: Attempts) -> bool:
    """Return True if the failure of CELL, which has an object, is none."""
    error = cell.outcome.error
    if cell.object is None or cell.object.kind not in ("path", "file"):
        # What is no file has few errors that say something.
        return error not in _SERIOUS or (error == "EIO" and cell.call in TRANSFERS)
    path = cell.object.text
    if error in SEARCHES:
        return attempts.is_search(cell)
    if error == "EIO" and path.startswith(("/dev/pts/", "/dev/tty", "/dev/ptmx", "/proc/")):
        return True  # the other end of a terminal was closed, or a process is gone
    if path.startswith(("/proc/", "/sys/")) and error in ("EACCES", "EPERM", "EROFS"):
        return True
    if cell.call in CHECKS and error in ("EACCES", "EPERM", "EROFS"):
        return not attempts.has_ended_it(cell)
    # Opened for reading, after it could not be opened for writing.
    return error in ("EACCES", "EROFS", "EPERM", "ETXTBSY") and attempts.is_found_later(cell)


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


def _find_unnamed(
    capture: Capture, attempts: Attempts, program: str, verb: str, error: str, cells: Sequence[Cell]
) -> Iterator[Finding]:
    """Yield the finding for CELLS, failures of PROGRAM with ERROR whose object is not recorded, if they matter."""
    count = sum(cell.count for cell in cells)
    if error in SEARCHES:
        cells = [cell for cell in cells if cell.call in _OPENS and not attempts.is_search(cell)]
        if not cells or not attempts.is_minded(list(cells)):
            return
    elif cells[0].call in CHECKS or error not in _SERIOUS and count < _OFTEN_UNNAMED:
        return
    numbers: dict[str, Number] = {}
    yield capture.make_finding(
        cells,
        rule="failures",
        template=f"{{program}} could not {{verb}} {_name_unnamed(verb)}: {{reason}}, {{often}}{_say_span(cells, numbers)}",
        severity=_SEVERITY_UNNAMED + 10 * (error in _SERIOUS),
        program=program,
        call=cells[0].call,
        error=error,
        words={"verb": verb, "reason": _find_reason(error)},
        numbers=numbers,
        confidence="likely",
        missing=capture.loss or "what the call was about: paths were not recorded",
        next=trace_again(capture.place, paths="true"),
    )


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
