# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks that a program tries to take again and again, and never gets: flock with LOCK_NB, or fcntl with F_SETLK.

One try that fails is an answer: another instance runs already. So is a lock that the program gets in the end. Waits for a lock are told by the
rule waits.
"""

from __future__ import annotations

from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import (
    Holdings,
    find_sharers,
    say_sharers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import LOCKS

_HELD = ("EAGAIN", "EACCES")  # fcntl(2) permits both
_MIN_COUNT, _MIN_SPAN_NS = 10, 2_000_000_000
_SEVERITY = 60


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program and file whose lock it tried to get again and again."""
    holdings = Holdings(capture.manifest)
    cells = [cell for cell in capture.cells if cell.call in LOCKS]
    # fcntl does other things as well, and to unlock is no success: the last call of a program that gets its lock in the end is no failure.
    for (_program, thing), tries in group(cells, lambda cell: (cell.who.program, cell.object)):
        failed = [cell for cell in tries if cell.outcome.error in _HELD]
        if _are_in_vain(failed, tries):
            sharers = find_sharers(capture, holdings, thing, {cell.who.pid for cell in tries})
            yield _make_finding(capture, failed, sharers)


def _are_in_vain(failed: Sequence[Cell], tries: Sequence[Cell]) -> bool:
    """Return True if the FAILED ones of TRIES are many, go on for long, and none of TRIES succeeded after the first of them."""
    if sum(cell.count for cell in failed) < _MIN_COUNT:
        return False
    first, last = min(cell.first_ns for cell in failed), max(cell.last_ns for cell in failed)
    has_got_it = any(cell.last_ns > first for cell in tries if not cell.outcome.error and cell.call == failed[0].call)
    return last - first >= _MIN_SPAN_NS and not has_got_it


def _make_finding(capture: Capture, failed: Sequence[Cell], sharers: str) -> Finding:
    thing = failed[0].object
    is_named = thing is not None and thing.kind == "path"
    what = "{object}" if thing is not None else "a file"
    return capture.make_finding(
        failed,
        rule="locks",
        template=f"{{program}} tries again and again to lock {what}, and never gets it: another one has the lock ({{error}}), {{often}} within"
        f" {{span}}{say_sharers(sharers)}",
        severity=_SEVERITY,
        program=failed[0].who.program,
        call=failed[0].call,
        error=failed[0].outcome.error,
        object=thing,
        words={"sharers": sharers} if sharers else {},
        numbers={
            "span": Number(max(cell.last_ns for cell in failed) - min(cell.first_ns for cell in failed), unit="ns")
        },
        missing=capture.loss or (None if is_named else "the path"),
        next=run_in(capture.place, "lsof", "--", thing.text)
        if thing and is_named
        else trace_again(capture.place, paths="true"),
    )


RULE = Rule(name="locks", title="locks that a program tries to get in vain", find=find)
