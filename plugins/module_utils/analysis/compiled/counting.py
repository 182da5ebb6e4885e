# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count system calls: by task, call, outcome and object, with their durations; and keep the longest ones."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    CELL_NUMBER,
    CELL_OBJECT,
    CELL_OUTCOME,
    CELL_TASK,
    CELLS,
    COUNT,
    FIRST_END,
    HISTOGRAM,
    HISTOGRAMS,
    KEPT,
    KEPT_FLOOR,
    LAST_END,
    LEFT_OUT,
    LONGEST,
    MEASURED,
    OCTAVES,
    OTHER_CALLS,
    OTHER_OBJECTS,
    OUT_BEGIN,
    OUT_COLUMNS,
    OUT_END,
    ROW_NUMBER,
    ROW_TASK,
    ROW_TOTAL,
    ROWS,
    STEPS,
    TOTAL,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_MIX = 0x2545F491
_STEP_BITS = 4
_MAX_TOTAL = 1 << 62  # nanoseconds, of calls on damaged pages


@compile_inline
def _mix(first, second, third, fourth):
    mixed = first & 0xFFFFFFF
    for value in (second ^ (second >> 32), third, fourth):
        mixed = ((mixed * _MIX) ^ (mixed >> 15) ^ value) & 0x3FFFFFFF
    return mixed ^ (mixed >> 13)


@compile_part
def _find_cell(state, task, number, outcome, thing):
    """Return the row of the cell with this key; -1 where it is new and there is no room."""
    mask = state.cell_index.size - 1
    place = _mix(task, number, outcome, thing) & mask
    cells = state.cells
    while state.cell_index[place]:
        row = state.cell_index[place] - 1
        cell = cells[row]
        if (
            cell[CELL_TASK] == task
            and cell[CELL_OBJECT] == thing
            and cell[CELL_NUMBER] == number
            and cell[CELL_OUTCOME] == outcome
        ):
            return np.int64(row)
        place = (place + 1) & mask
    row = state.scalars[CELLS]
    if row >= cells.shape[0]:
        return np.int64(-1)
    state.cell_index[place] = row + 1
    state.scalars[CELLS] += 1
    cell = cells[row]
    cell[CELL_TASK], cell[CELL_NUMBER], cell[CELL_OUTCOME], cell[CELL_OBJECT] = task, number, outcome, thing
    cell[FIRST_END] = 1 << 62
    return np.int64(row)


@compile_part
def count_call(state, task, number, outcome, thing, call, is_measured):
    """Count the finished CALL, a row of columns OUT_…, in its cell; when cells run short, without its object, then its task, then its number.

    With IS_MEASURED, its duration counts in the histogram of the same task and number.
    """
    duration = call[OUT_END] - call[OUT_BEGIN]
    used, most = state.scalars[CELLS], state.cells.shape[0]
    if used > most - (most >> 2) and thing > OTHER_OBJECTS:
        thing = np.int64(OTHER_OBJECTS)
    if used > most - (most >> 3):
        task = np.int64(0)
        state.scalars[LEFT_OUT] += 1
    if used > most - (most >> 4):
        number = np.int64(OTHER_CALLS)
    row = _find_cell(state, task, number, outcome, thing)
    if row < 0:
        return
    cell = state.cells[row]
    cell[COUNT] += 1
    cell[FIRST_END] = min(cell[FIRST_END], call[OUT_END])
    cell[LAST_END] = max(cell[LAST_END], call[OUT_END])
    cell[TOTAL] += min(duration, _MAX_TOTAL - cell[TOTAL])
    cell[LONGEST] = max(cell[LONGEST], duration)
    if is_measured:
        _measure_call(state, task, number, duration)


@compile_part
def _measure_call(state, task, number, duration):
    """Add DURATION, in nanoseconds, to the histogram of the calls of NUMBER by TASK."""
    mask = state.row_index.size - 1
    place = _mix(task, number, np.int64(0), np.int64(0)) & mask
    rows, scalars = state.rows, state.scalars
    while state.row_index[place]:
        found = state.row_index[place] - 1
        if rows[found, ROW_TASK] == task and rows[found, ROW_NUMBER] == number:
            break
        place = (place + 1) & mask
    if not state.row_index[place]:
        if scalars[ROWS] >= rows.shape[0]:
            return
        found = scalars[ROWS]
        scalars[ROWS] += 1
        state.row_index[place] = found + 1
        rows[found, ROW_TASK], rows[found, ROW_NUMBER], rows[found, HISTOGRAM] = task, number, -1
        if scalars[HISTOGRAMS] < state.histograms.shape[0]:
            rows[found, HISTOGRAM] = scalars[HISTOGRAMS]
            scalars[HISTOGRAMS] += 1
    else:
        found = state.row_index[place] - 1
    rows[found, MEASURED] += 1
    rows[found, ROW_TOTAL] += min(duration, _MAX_TOTAL - rows[found, ROW_TOTAL])
    if rows[found, HISTOGRAM] >= 0:
        state.histograms[rows[found, HISTOGRAM], find_step(duration)] += 1


@compile_inline
def find_step(duration):
    """Return the step of a histogram that DURATION, in nanoseconds, falls into: the lowest are one nanosecond wide."""
    if duration < STEPS:
        return max(duration, np.int64(0))
    octave = np.int64(0)
    rest = duration >> (_STEP_BITS + 1)
    while rest:
        rest >>= 1
        octave += 1
    step = ((octave + 1) << _STEP_BITS) + ((duration >> octave) & (STEPS - 1))
    return min(step, np.int64(OCTAVES * STEPS - 1))


@compile_part
def keep_call(state, call):
    """Keep CALL, a row of columns OUT_…, if it is among the longest. When the table is full, the shorter ones are dropped."""
    kept, scalars = state.kept, state.scalars
    duration = call[OUT_END] - call[OUT_BEGIN]
    if duration < scalars[KEPT_FLOOR]:
        return
    if scalars[KEPT] >= kept.shape[0]:
        _drop_shorter(state)
        if duration < scalars[KEPT_FLOOR]:
            return
    for column in range(OUT_COLUMNS):
        kept[scalars[KEPT], column] = call[column]
    scalars[KEPT] += 1


@compile_part
def _drop_shorter(state):
    """Keep the longer half of the kept calls, the first ones of equal length, and from now on only calls that are longer than those dropped."""
    kept, scalars = state.kept, state.scalars
    room = kept.shape[0] >> 1
    # The longest duration of those dropped: no more than ROOM calls are longer.
    low, high = scalars[KEPT_FLOOR], np.int64(1) << 62
    while low < high:
        middle = (low + high) >> 1
        if _count_longer(kept, middle) > room:
            low = middle + 1
        else:
            high = middle
    equal = room - _count_longer(kept, low)
    used = 0
    for row in range(kept.shape[0]):
        duration = kept[row, OUT_END] - kept[row, OUT_BEGIN]
        if duration == low:
            equal -= 1
        if duration > low or (duration == low and equal >= 0):
            for column in range(OUT_COLUMNS):
                kept[used, column] = kept[row, column]
            used += 1
    scalars[KEPT] = used
    scalars[KEPT_FLOOR] = low + 1


@compile_part
def _count_longer(kept, duration):
    """Return how many of the calls KEPT are longer than DURATION, in nanoseconds."""
    count = 0
    for row in range(kept.shape[0]):
        count += kept[row, OUT_END] - kept[row, OUT_BEGIN] > duration
    return count
