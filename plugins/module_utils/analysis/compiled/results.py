# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the tables that rules look at of the state of a finished pass."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.object_texts import ObjectTexts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import State, decode_name
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture_columns import (
    CaptureTables,
    Cells,
    Descriptors,
    LongCalls,
    Processes,
    Signals,
    Tasks,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_MAX_LONG_CALLS = 4000


def make_tables(
    state: State, names: Mapping[int, str], manifest: Mapping[str, Any], *, is_damaged: bool = False
) -> CaptureTables:
    """Return the tables of STATE, the state of a finished pass. NAMES has the calls' names by number, MANIFEST the trace's tasks.

    IS_DAMAGED means that events may be missing anywhere, so no exit without an entry shows a denied call.
    """
    scalars = state.scalars
    tasks = state.tasks[: scalars[codes.TASKS]]
    processes = state.processes[: scalars[codes.PROCESSES]]
    cells = state.cells[: scalars[codes.CELLS]]
    outcomes = cells[:, codes.CELL_OUTCOME].copy()
    if is_damaged:
        denied = outcomes & codes.DENIED != 0
        outcomes[denied] = outcomes[denied] & ~(codes.DENIED | codes.TRAPPED) | codes.CONTINUED
    return CaptureTables(
        tasks=Tasks(
            [decode_name(name) for name in state.task_names[: len(tasks)]],
            tasks[:, codes.TASK_TID],
            tasks[:, codes.TASK_PROCESS],
            tasks[:, codes.TASK_BEGIN],
        ),
        processes=Processes(
            processes[:, codes.PID],
            find_container_pids(processes, manifest),
            processes[:, codes.PARENT],
            processes[:, codes.PROCESS_BEGIN],
            processes[:, codes.OPENED],
            processes[:, codes.CLOSED],
            np.where(processes[:, codes.PROCESS_END] == -codes.NEVER, 0, processes[:, codes.PROCESS_END]),
            processes[:, codes.STATUS] - 1,
        ),
        objects=ObjectTexts(state, names).list_all(),
        cells=Cells(
            cells[:, codes.CELL_TASK],
            cells[:, codes.CELL_NUMBER],
            outcomes,
            cells[:, codes.CELL_OBJECT],
            *(
                cells[:, column]
                for column in (codes.COUNT, codes.FIRST_END, codes.LAST_END, codes.TOTAL, codes.LONGEST)
            ),
        ),
        long_calls=_list_long_calls(state),
        descriptors=_list_descriptors(state, len(processes)),
        high_descriptors=_list_high_descriptors(processes),
        signals=_list_signals(state),
        start_ns=_find_start(scalars),
        end_ns=int(max(scalars[codes.END], scalars[codes.UNTIL])),
        left_out=int(scalars[codes.LEFT_OUT]),
    )


def _find_start(scalars: Any) -> int:
    """Return when the capture begins: with its first event, or with the host's look at the processes before; 0 where there is neither."""
    start = int(min(scalars[codes.START], scalars[codes.FROM]))
    return 0 if start == -codes.NEVER else start


def find_container_pids(processes: Any, manifest: Mapping[str, Any]) -> list[int]:
    """Return for each of PROCESSES its number inside the container, -1 where nobody knows.

    A task of the trace's start is the first process with its number, and a task of the end the last one.
    """
    first, last = (
        {task["tid"]: task["container_tid"] for task in manifest.get(name) or []} for name in ("first_tasks", "tasks")
    )
    found = [-1] * len(processes)
    latest: dict[int, int] = {}
    rows = zip(processes[:, codes.PID].tolist(), processes[:, codes.PROCESS_BEGIN].tolist())
    for index, (pid, begin) in enumerate(rows):
        latest[pid] = index
        if begin == codes.NEVER and pid in first:
            found[index] = first[pid]
    for pid, index in latest.items():
        if found[index] < 0 and pid in last:
            found[index] = last[pid]
    return found


def _list_long_calls(state: State) -> LongCalls:
    kept = state.kept[: state.scalars[codes.KEPT]]
    durations = kept[:, codes.OUT_END] - kept[:, codes.OUT_BEGIN]
    chosen = kept[np.argsort(-durations, kind="stable")[:_MAX_LONG_CALLS]]
    return LongCalls(
        start_ns=chosen[:, codes.OUT_BEGIN],
        duration_ns=chosen[:, codes.OUT_END] - chosen[:, codes.OUT_BEGIN],
        task=chosen[:, codes.OUT_TASK],
        number=chosen[:, codes.OUT_NUMBER],
        args=chosen[:, codes.OUT_ARGUMENT : codes.OUT_ARGUMENT + 6],
        result=chosen[:, codes.OUT_RESULT],
        outcome=chosen[:, codes.OUT_OUTCOME],
        object=chosen[:, codes.OUT_OBJECT],
    )


def _list_descriptors(state: State, count: int) -> Descriptors:
    """Return what the COUNT processes have opened in the trace and hold at its end."""
    opened: dict[tuple[int, int], list[int]] = {}
    for process in range(1, count):
        block = int(state.processes[process, codes.FD_BLOCK])
        if block < 0:
            continue
        entries = state.blocks[block]
        is_open = (entries[:, codes.FD_OBJECT] != codes.NO_OBJECT) & (entries[:, codes.FD_FLAGS] & codes.IN_TRACE != 0)
        for fd in np.flatnonzero(is_open).tolist():
            time = int(state.block_times[block, fd])
            opened.setdefault((process, int(entries[fd, codes.FD_OBJECT])), []).append(time)
    times = [sorted(found) for found in opened.values()]
    return Descriptors(
        [process for process, _thing in opened],
        [thing for _process, thing in opened],
        [len(found) for found in times],
        [found[0] for found in times],
        [found[-1] for found in times],
        [found[len(found) // 2] for found in times],
    )


def _list_high_descriptors(processes: Any) -> Descriptors:
    """Return what the processes of the table PROCESSES have opened with numbers too high to be followed."""
    rows = np.flatnonzero(processes[:, codes.HIGH_COUNT])
    chosen = processes[rows]
    means = (chosen[:, codes.HIGH_TIMES] // np.maximum(chosen[:, codes.HIGH_COUNT], 1)) << codes.HIGH_SHIFT
    return Descriptors(
        rows.tolist(),
        [codes.NO_OBJECT] * len(rows),
        chosen[:, codes.HIGH_COUNT].tolist(),
        chosen[:, codes.HIGH_FIRST].tolist(),
        chosen[:, codes.HIGH_LAST].tolist(),
        (chosen[:, codes.HIGH_FIRST] + means).tolist(),
    )


def _list_signals(state: State) -> Signals:
    sides = state.sides[: state.scalars[codes.SIDES]]
    numbers = np.where(sides[:, codes.SIDE_KIND] == codes.DELIVERED, sides[:, codes.SIDE_VALUE], 0)
    return Signals(sides[:, codes.SIDE_TASK], sides[:, codes.SIDE_TIME], numbers)
