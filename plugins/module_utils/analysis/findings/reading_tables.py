# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the tables that rules look at of a reading, whose calls are columns in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.tables import (
    CONTINUED,
    DENIED,
    TRAPPED,
    UNFINISHED,
    CaptureTables,
    Cells,
    LongCalls,
    Processes,
    Tasks,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.pairing import PairedCalls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.reading import Reading

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_NO_OBJECTS = [("", ""), ("", "")]  # none, and others
_MAX_LONG_CALLS = 1000


def make_tables(reading: Reading) -> CaptureTables:
    """Return the tables of READING. Its objects are paths; the arguments of long calls are not known."""
    calls = reading.calls
    numbers, tasks = _identify(reading)
    processes = reading.tasks.processes
    outcomes = _find_outcomes(calls)
    objects = np.where(reading.paths >= 0, reading.paths + len(_NO_OBJECTS), 0)
    return CaptureTables(
        tasks=tasks,
        processes=Processes(
            [process.pid for process in processes],
            [-1 if process.container_pid is None else process.container_pid for process in processes],
            [-1] * len(processes),
        ),
        objects=[*_NO_OBJECTS, *(("path", path) for path in reading.path_names)],
        cells=_make_cells(calls, numbers, outcomes, objects),
        long_calls=_make_long_calls(calls, numbers, outcomes, objects),
    )


def _find_outcomes(calls: PairedCalls) -> Ints:
    outcomes: Ints = calls.errors.copy()
    outcomes |= calls.denied * DENIED
    outcomes |= calls.is_trap * TRAPPED
    outcomes |= calls.unfinished * UNFINISHED
    outcomes |= calls.continued * CONTINUED
    return outcomes


def _identify(reading: Reading) -> tuple[Ints, Tasks]:
    """Return for each call of READING the number of its task, and the tasks: a thread that is renamed becomes another task."""
    calls, names = reading.calls, reading.tasks
    numbers = np.zeros(calls.tids.size, np.int64)
    known: dict[tuple[str, int, int], int] = {}
    for tid in np.unique(calls.tids).tolist():
        start, end = np.searchsorted(calls.tids, [tid, tid + 1])
        cuts = np.searchsorted(calls.ends[start:end], names.list_changes(tid)) + start
        bounds = [int(start), *cuts.tolist(), int(end)]
        for first, last in zip(bounds, bounds[1:]):
            if first < last:
                time = int(calls.ends[first])
                task = (names.find_name(tid, time), tid, names.find_process(tid, time).number)
                numbers[first:last] = known.setdefault(task, len(known))
    return numbers, Tasks(*map(list, zip(*known))) if known else Tasks([], [], [])


def _make_cells(calls: PairedCalls, tasks: Ints, outcomes: Ints, objects: Ints) -> Cells:
    keys = [tasks, calls.numbers, outcomes, objects]
    order = np.lexsort(keys[::-1])
    if not order.size:
        return Cells(*[np.zeros(0, np.int64)] * 9)
    is_first = np.zeros(order.size, bool)
    is_first[0] = True
    for key in keys:
        is_first[1:] |= np.diff(key[order]) != 0
    starts = np.flatnonzero(is_first)
    durations = calls.durations[order]
    return Cells(
        task=tasks[order[starts]],
        number=calls.numbers[order[starts]],
        outcome=outcomes[order[starts]],
        object=objects[order[starts]],
        count=np.diff(starts, append=order.size),
        first_ns=np.minimum.reduceat(calls.begins[order], starts),
        last_ns=np.maximum.reduceat(calls.ends[order], starts),
        total_ns=np.add.reduceat(durations, starts),
        max_ns=np.maximum.reduceat(durations, starts),
    )


def _make_long_calls(calls: PairedCalls, tasks: Ints, outcomes: Ints, objects: Ints) -> LongCalls:
    durations = np.where(calls.unfinished, calls.ends.max(initial=0) - calls.begins, calls.durations)
    chosen = np.argsort(-durations, kind="stable")[:_MAX_LONG_CALLS]
    return LongCalls(
        start_ns=calls.begins[chosen],
        duration_ns=durations[chosen],
        task=tasks[chosen],
        number=calls.numbers[chosen],
        args=[()] * chosen.size,
        result=calls.results[chosen],
        outcome=outcomes[chosen],
        object=objects[chosen],
    )
