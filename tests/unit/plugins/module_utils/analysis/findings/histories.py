# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Add the lives and deaths of processes to captures made by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings import capture_columns
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import SECOND


@dataclass
class Lived:
    """A process. Times are seconds of the trace's clock."""

    program: str
    pid: int
    parent: int | None = None
    begin: float | None = None
    end: float | None = None
    status: int = -1
    runs: bool = True  # a program of its own
    threads: int = 1
    container_pid: int | None = None


def add_lives(capture, *lives, signals=(), span=(0, 10)):
    """Return CAPTURE, of so many seconds, with LIVES, which replace what it knows of those processes. SIGNALS: (pid, number, time)."""
    known = capture.tables
    names, tids, owners = (list(column) for column in (known.tasks.name, known.tasks.tid, known.tasks.process))
    pids, inside = list(known.processes.pid), list(known.processes.container_pid)
    rows = dict.fromkeys(pids, (-1, codes.NEVER, 0, -1))
    for life in lives:
        if life.pid not in rows:
            pids.append(life.pid)
            inside.append(life.pid % 1000 if life.container_pid is None else life.container_pid)
        elif life.container_pid is not None:
            inside[pids.index(life.pid)] = life.container_pid
        begin = codes.NEVER if life.begin is None else round(life.begin * SECOND)
        parent = pids.index(life.parent) if life.parent is not None else -1
        rows[life.pid] = (parent, begin, round((life.end or 0) * SECOND), life.status)
        for name in (["sh"] if life.runs and life.begin is not None else []) + [life.program]:
            names.append(name)
            tids.append(life.pid)
            owners.append(pids.index(life.pid))
        for thread in range(1, life.threads):
            names.append(life.program)
            tids.append(life.pid + 100000 + thread)
            owners.append(pids.index(life.pid))
    parents, begins, ends, states = (list(column) for column in zip(*(rows[pid] for pid in pids)))
    made = replace(
        known,
        tasks=capture_columns.Tasks(names, tids, owners),
        processes=capture_columns.Processes(pids, inside, parents, begins, end_ns=ends, status=states),
        signals=capture_columns.Signals(
            [owners.index(pids.index(pid)) for pid, _number, _time in signals],
            [round(time * SECOND) for _pid, _number, time in signals],
            [number for _pid, number, _time in signals],
        ),
        start_ns=round(span[0] * SECOND),
        end_ns=round(span[1] * SECOND),
    )
    return replace(capture, tables=made)
