# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that failed on an object, by program, call, error and object.

Left out are errors that are no failures: a call that would have to wait, a connection that is on its way, an answer to isatty, and the end
of a wait for children.
"""

from __future__ import annotations

from collections import Counter
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Place, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_NORMAL = ("EAGAIN", "EINPROGRESS", "EINTR", "EALREADY", "ENOTTY", "ECHILD", "ETIMEDOUT")
# Errors after which a program can hardly do its work.
_SEVERE = ("ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EIO")
_SEVERITY, _SEVERITY_SEVERE = 40, 80


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program, call, error and object of CAPTURE where the call failed."""
    tries: Counter[tuple[str, str, Thing | None]] = Counter()
    for cell in capture.cells:
        tries[cell.who.program, cell.call, cell.object] += cell.count
    failed = (cell for cell in capture.cells if _has_failed(cell))
    for (program, call, error, thing), cells in group(failed, _describe):
        yield capture.make_finding(
            cells,
            rule="failures",
            template="{program}: {call} {object} failed with {error}",
            severity=_SEVERITY_SEVERE if error in _SEVERE else _SEVERITY,
            program=program,
            call=call,
            error=error,
            object=thing,
            of=tries[program, call, thing],
            next=_choose_command(capture.place, thing),
        )


def _has_failed(cell: Cell) -> bool:
    error = cell.outcome.error
    return error is not None and error not in _NORMAL and cell.object is not None and not cell.outcome.interrupted


def _describe(cell: Cell) -> tuple[str, str, str | None, Thing | None]:
    return cell.who.program, cell.call, cell.outcome.error, cell.object


def _choose_command(place: Place, thing: Thing) -> str:
    if thing.kind == "path":
        return run_in(place, "ls", "-ld", thing.text)
    return run_in(place, "ss", "-tanp") if thing.kind == "peer" else trace_again(place)


RULE = Rule(name="failures", title="calls that failed on an object", find=find)
