# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of a capture: when they were born and ended, by whom and how; and the signals that took their default effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Life, Who
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.tables import NEVER, Column

OOM_KILLER = 0
"""The number of a signal that stands for the choice of the OOM killer."""


@dataclass(frozen=True)
class Process:
    """A process of a capture. Times are nanoseconds of the trace's clock."""

    who: Who  # its first thread, as it is called at the end
    parent: int | None  # index of its parent in the list; None where it is not known
    begin_ns: int | None  # of its birth; None where that was before the trace
    end_ns: int | None  # None where it lives on, or its end was not recorded
    exit_code: int | None  # that it gave itself; None where it did not, or nobody knows
    has_run_program: bool  # since its birth in the trace, as its new name shows
    threads: int  # that are known

    @property
    def life(self) -> Life:
        """Return the process as the row of a finding."""
        begin = self.begin_ns if self.begin_ns is not None else self.end_ns or 0
        return Life(self.who, begin, begin if self.end_ns is None else self.end_ns)


@dataclass(frozen=True)
class Signal:
    """A signal that took its default effect on a thread."""

    process: int  # index in the list of processes
    number: int  # OOM_KILLER for the choice of the OOM killer
    time_ns: int


def list_processes(capture: Capture) -> list[Process | None]:
    """Return the processes of CAPTURE in the order of their table; None for one without threads, such as the one of all others."""
    table = capture.tables.processes
    pids = list(table.pid)
    leaders: dict[int, list[int]] = {}
    tids: dict[int, set[int]] = {}
    for task, (tid, process) in enumerate(zip(capture.tables.tasks.tid, capture.tables.tasks.process)):
        tids.setdefault(int(process), set()).add(int(tid))
        if tid == pids[process]:
            leaders.setdefault(int(process), []).append(task)
    rows = zip(
        table.parent,
        _pad(table.begin_ns, pids, NEVER),
        _pad(table.end_ns, pids, -NEVER),
        _pad(table.exit_code, pids, -1),
    )
    found: list[Process | None] = []
    for process, (parent, begin, end, code) in enumerate(rows):
        tasks = leaders.get(process)
        found.append(
            Process(
                who=capture.threads[tasks[-1]],
                parent=int(parent) if parent >= 0 else None,
                begin_ns=int(begin) if begin != NEVER else None,
                end_ns=int(end) if end != -NEVER else None,
                exit_code=int(code) if code >= 0 else None,
                has_run_program=begin != NEVER and len(tasks) > 1,
                threads=len(tids[process]),
            )
            if tasks
            else None
        )
    return found


def gen_signals(capture: Capture) -> Iterator[Signal]:
    """Yield the signals of CAPTURE in the order of time."""
    processes = list(capture.tables.tasks.process)
    table = capture.tables.signals
    for task, time_ns, number in zip(table.task, table.time_ns, table.number):
        yield Signal(int(processes[task]), int(number), int(time_ns))


def _pad(column: Column, pids: Sequence[int], missing: int) -> list[int]:
    """Return COLUMN; as many values MISSING as there are PIDS where a table does not have it."""
    return list(column) or [missing] * len(pids)
