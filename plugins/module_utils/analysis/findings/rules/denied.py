# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that were denied: by seccomp, or because the program lacks a capability.

Calls that programs try and do without (causes.py) are left out.
"""

from __future__ import annotations

from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import Attempts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import (
    find_right,
    find_rule,
    is_probe,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_SEVERITY, _SEVERITY_ENDED, _SEVERITY_TRAPPED, _SEVERITY_OTHER_WAY = 40, 80, 60, 20
# A program that copies files, or gives up rights that it does not have, goes on without these.
_OPTIONAL = frozenset(
    (
        *("chown", "fchown", "lchown", "fchownat", "setpriority", "mlock", "mlock2", "mlockall", "mknod", "mknodat"),
        *("setuid", "setresuid", "setreuid", "setgid", "setresgid", "setregid", "setgroups", "prlimit64", "setrlimit"),
    )
)


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program, call and answer of CAPTURE that was denied."""
    attempts = Attempts(capture)
    denied = [cell for cell in capture.cells if find_rule(cell) == "denied"]
    filtered = (cell for cell in denied if cell.outcome.denied)
    for (program, call, answer), cells in group(filtered, lambda cell: (cell.who.program, cell.call, _describe(cell))):
        if _is_tried(cells):
            continue
        yield capture.make_finding(
            cells,
            rule="denied",
            template="seccomp denied {program} the system call {call} ({answer}), {often}",
            severity=_choose_severity(cells, attempts, _SEVERITY),
            program=program,
            call=call,
            error=cells[0].outcome.error,
            words={"answer": answer},
            next=run_in(capture.place, "grep", "Seccomp", "/proc/1/status"),
        )
    others = (cell for cell in denied if not cell.outcome.denied)
    for (program, call, error, thing), cells in group(
        others, lambda cell: (cell.who.program, cell.call, cell.outcome.error, cell.object)
    ):
        on = " on {object}" if thing is not None and thing.kind in ("path", "peer") else ""
        severity = _SEVERITY_OTHER_WAY if call in _OPTIONAL else _SEVERITY
        yield capture.make_finding(
            cells,
            rule="denied",
            template=f"{{program}} was refused {{call}}{on} with {{error}}, {{often}}; such calls need {{right}}",
            severity=_choose_severity(cells, attempts, severity),
            program=program,
            call=call,
            error=error,
            object=thing,
            words={"right": find_right(cells[0]) or ""},
            confidence="likely",
            missing=capture.loss or "which of capabilities, AppArmor or SELinux refused it",
            next=run_in(capture.place, "grep", "Cap", "/proc/1/status"),
        )


def _describe(cell: Cell) -> str:
    return "SIGSYS" if cell.outcome.trapped else cell.outcome.error or "no error"


def _is_tried(cells: list[Cell]) -> bool:
    """Return True if programs do without the call of CELLS: it is a known probe, or the answer says that there is no such call."""
    return not cells[0].outcome.trapped and (cells[0].outcome.error == "ENOSYS" or is_probe(cells[0].call))


def _choose_severity(cells: list[Cell], attempts: Attempts, severity: int) -> int:
    if any(attempts.has_ended_it(cell) for cell in cells):
        return _SEVERITY_ENDED
    return _SEVERITY_TRAPPED if cells[0].outcome.trapped else severity


RULE = Rule(name="denied", title="calls that were denied", find=find)
