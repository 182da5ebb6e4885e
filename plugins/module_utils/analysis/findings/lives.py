# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lives of processes: born by whom, what they ran, and how they ended; and the signals that took their default effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import NEVER
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Moment, Who
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture_columns import Column

OOM_KILLER = 0
"""The number of a signal that stands for the choice of the OOM killer."""


@dataclass(frozen=True)
class Life:
    """The life of a process. Times are nanoseconds of the trace's clock."""

    who: Who  # its first thread, as it is called at the end
    parent: int | None  # index of its parent in the list; None where it is not known
    begin_ns: int | None  # of its birth; None where that was before the trace
    end_ns: int | None  # None where it lives on, or its end was not recorded
    status: int | None  # that it ended itself with; None where it did not, or nobody knows
    has_run_program: bool  # since its birth in the trace, as its new name shows
    threads: int  # that are known

    @property
    def moment(self) -> Moment:
        """Return the life as the row of a finding."""
        begin = self.begin_ns if self.begin_ns is not None else self.end_ns or 0
        return Moment(self.who, begin, begin if self.end_ns is None else self.end_ns)


@dataclass(frozen=True)
class Signal:
    """A signal that took its default effect on a thread."""

    process: int  # index in the list of lives
    number: int  # OOM_KILLER for the choice of the OOM killer
    time_ns: int


def list_lives(capture: Capture) -> list[Life | None]:
    """Return the lives of CAPTURE's processes in the order of their table; None for one without threads, as that of all others."""
    table = capture.tables.processes
    pids = list(table.pid)
    leaders: dict[int, list[int]] = {}
    tids: dict[int, set[int]] = {}
    for task, (tid, process) in enumerate(zip(capture.tables.tasks.tid, capture.tables.tasks.process)):
        tids.setdefault(int(process), set()).add(int(tid))
        if tid == pids[process]:
            leaders.setdefault(int(process), []).append(task)
    columns = ((table.begin_ns, NEVER), (table.end_ns, 0), (table.status, -1))
    rows = zip(table.parent, *(_pad(column, len(pids), missing) for column, missing in columns))
    found: list[Life | None] = []
    for process, (parent, begin, end, status) in enumerate(rows):
        tasks = leaders.get(process)
        if not tasks:
            found.append(None)
            continue
        found.append(
            Life(
                who=capture.threads[tasks[-1]],
                parent=int(parent) if parent >= 0 else None,
                begin_ns=int(begin) if begin != NEVER else None,
                end_ns=int(end) or None,
                status=int(status) if status >= 0 else None,
                has_run_program=begin != NEVER and len(tasks) > 1,
                threads=len(tids[process]),
            )
        )
    return found


def gen_signals(capture: Capture) -> Iterator[Signal]:
    """Yield the signals of CAPTURE in the order of time."""
    processes = list(capture.tables.tasks.process)
    table = capture.tables.signals
    for task, time_ns, number in zip(table.task, table.time_ns, table.number):
        yield Signal(int(processes[task]), int(number), int(time_ns))


def _pad(column: Column, count: int, missing: int) -> Sequence[int]:
    """Return COLUMN; COUNT values MISSING where a table does not have it."""
    return list(column) or [missing] * count
