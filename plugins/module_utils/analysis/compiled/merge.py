# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handle the events of all CPUs in the order of time: the whole that is compiled."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    BIRTH,
    COMMON_PID,
    COMMON_TYPE,
    CPU_STATE,
    CPUS,
    END,
    EVENT_COMPAT,
    EVENT_CPU,
    EVENT_FAMILY,
    EVENT_GAP,
    EVENT_LENGTH,
    EVENT_RECORD,
    EVENT_TASK,
    EVENT_TID,
    EVENT_TIME,
    EVENT_TYPE,
    EVENTS,
    EXEC,
    EXEC_EXIT,
    FIRST_PATH,
    FUNCTION,
    HAS_GAP,
    HEAD_TIME,
    HEAP,
    IS_COMPAT,
    IS_DONE,
    IS_EXEC_EXIT,
    IS_FULL,
    IS_PENDING,
    IS_RELATIVE,
    KIND,
    LAST_FIRST,
    LAST_GAP_END,
    LAST_ROW,
    LAST_TIME,
    LENGTH,
    NEEDS_PAGES,
    NEVER,
    NO_OBJECT,
    OOM,
    OTHER_EVENT,
    OUT,
    OWN_ENTER,
    OWN_EXIT,
    PATH_OBJECT,
    PATH_TEXT,
    PATHS,
    PLACE,
    RAW_ENTER,
    RECORD,
    RENAME,
    SIGNAL,
    SOCKET_STATE,
    START,
    TASK,
    THREAD_EXIT,
    THREAD_ROWS,
    TID,
    UNKNOWN_EVENTS,
    UNTIL,
    WANTED,
    WANTS_EVENTS,
    WANTS_PAGES,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.happenings import (
    change_name,
    count_event,
    end_thread,
    find_or_add,
    give_birth,
    judge_exec,
    note_connection,
    note_side,
    run_program,
    take_number,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import (
    compile_inline,
    compile_part,
    compile_whole,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.objects import number_object
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pages import (
    BIG,
    advance,
    read_number,
    read_signed,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pairing import (
    end_pending,
    end_wait,
    enter_call,
    exit_call,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.threads import find_thread
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_ROOM = 8  # rows of the stream that one event may need


@compile_whole
def run_pass(state, pages):
    """Handle events until pages of the CPU in scalars[WANTED] are needed, the block of calls is full, or all is done; return which."""
    scalars, heap, cursors = state.scalars, state.heap, state.cursors
    for cpu in range(scalars[CPUS]):
        if cursors[cpu, CPU_STATE] == NEEDS_PAGES:
            if not advance(cursors, cpu, pages, scalars):
                scalars[WANTED] = cpu
                return WANTS_PAGES
            if cursors[cpu, LAST_TIME] == NEVER:
                scalars[LAST_FIRST] = max(scalars[LAST_FIRST], cursors[cpu, HEAD_TIME])
            _push(heap, scalars, cursors, cpu)
    while scalars[HEAP]:
        if scalars[OUT] + _ROOM > state.out.shape[0]:
            return IS_FULL
        earliest = np.int64(heap[0])
        _handle(state, pages, earliest)
        if scalars[WANTS_EVENTS]:
            _note_event(state, pages, earliest)
        if not advance(cursors, earliest, pages, scalars):
            _pop(heap, scalars, cursors)
            scalars[WANTED] = earliest
            return WANTS_PAGES
        _sink(heap, scalars, cursors)
    return IS_DONE


@compile_whole
def finish_pass(state, first):
    """End the calls of living threads from row FIRST on; return the row to go on with when the block of calls is full, or -1."""
    scalars = state.scalars
    end = max(scalars[END], scalars[UNTIL])
    for row in range(first, scalars[THREAD_ROWS]):
        if scalars[OUT] + _ROOM > state.out.shape[0]:
            return row
        if state.threads[row, IS_PENDING]:
            end_wait(state, np.int64(row), end)
            end_pending(state, np.int64(row), end)
    return -1


@compile_inline
def _is_before(cursors, one, other):
    mine, its = cursors[one, HEAD_TIME], cursors[other, HEAD_TIME]
    return mine < its or (mine == its and one < other)


@compile_part
def _push(heap, scalars, cursors, cpu):
    place = scalars[HEAP]
    scalars[HEAP] += 1
    heap[place] = cpu
    while place and _is_before(cursors, heap[place], heap[(place - 1) >> 1]):
        above = (place - 1) >> 1
        heap[place], heap[above] = heap[above], heap[place]
        place = above


@compile_part
def _pop(heap, scalars, cursors):
    scalars[HEAP] -= 1
    heap[0] = heap[scalars[HEAP]]
    _sink(heap, scalars, cursors)


@compile_inline
def _sink(heap, scalars, cursors):
    size = scalars[HEAP]
    place = 0
    while 2 * place + 1 < size:
        below = 2 * place + 1
        if below + 1 < size and _is_before(cursors, heap[below + 1], heap[below]):
            below += 1
        if not _is_before(cursors, heap[below], heap[place]):
            return
        heap[place], heap[below] = heap[below], heap[place]
        place = below


@compile_part
def _note_event(state, pages, cpu):
    """Write the event of CPU, which has been handled, to the stream."""
    cursor, scalars = state.cursors[cpu], state.scalars
    record = cursor[RECORD]
    event = state.out[scalars[OUT]]
    event[EVENT_TIME], event[EVENT_CPU] = cursor[HEAD_TIME], cpu
    event[EVENT_TYPE] = read_number(pages, record + scalars[COMMON_TYPE], 2)
    event[EVENT_TID] = read_signed(pages, record + scalars[COMMON_PID], 4)
    event[EVENT_RECORD], event[EVENT_LENGTH], event[EVENT_GAP] = record, cursor[LENGTH], cursor[HAS_GAP]
    row = find_thread(state, event[EVENT_TID])
    event[EVENT_TASK] = state.threads[row, TASK] if row >= 0 else -1
    event[EVENT_COMPAT] = state.threads[row, IS_COMPAT] if row >= 0 else 0
    scalars[OUT] += 1


@compile_inline
def _handle(state, pages, cpu):
    """Handle the next event of CPU."""
    cursor, scalars = state.cursors[cpu], state.scalars
    record, time = cursor[RECORD], cursor[HEAD_TIME]
    number = read_number(pages, record + scalars[COMMON_TYPE], 2)
    state.event_counts[number] += 1
    scalars[EVENTS] += 1
    scalars[START] = min(scalars[START], time)
    scalars[END] = max(scalars[END], time)
    if cursor[HAS_GAP]:
        scalars[LAST_GAP_END] = max(scalars[LAST_GAP_END], time)
    cursor[LAST_TIME] = time
    layout = state.events[state.event_rows[number]]
    if layout[KIND] == OTHER_EVENT or cursor[LENGTH] < layout[PLACE]:
        return
    if layout[KIND] >= FUNCTION:
        count_event(state, pages, cpu, layout)
        return
    if layout[KIND] == EXEC:
        take_number(state, pages, cpu, layout)
    tid = read_signed(pages, record + scalars[COMMON_PID], 4)
    row = cursor[LAST_ROW]
    if state.threads[row, TID] != tid:
        row = find_or_add(state, tid)
        cursor[LAST_ROW] = max(row, np.int64(0))
    if row < 0:
        scalars[UNKNOWN_EVENTS] += 1
        return
    if layout[PATHS]:
        _note_path(state, pages, cpu, row, layout)
    if layout[KIND] <= OWN_EXIT:
        _handle_call(state, pages, row, layout, record, time)
    else:
        _handle_rest(state, pages, cpu, row, layout)


@compile_inline
def _handle_call(state, pages, row, layout, record, time):
    """Handle an entry or exit of a call; the number is an int in the kernel, even where the event's field is longer."""
    kind = layout[KIND]
    at, size = record + layout[PLACE + 1], layout[PLACE + 2]
    if pages.order == BIG and size > 4:
        at += size - 4
    number = read_signed(pages, at, min(size, 4))
    source = 1 if kind in (OWN_ENTER, OWN_EXIT) else 0
    if kind in (RAW_ENTER, OWN_ENTER):
        places = (record + layout[PLACE + 3], np.int64(layout[PLACE + 4]), np.int64(layout[PLACE + 5]), source)
        enter_call(state, pages, row, number, time, places)
    else:
        if layout[PLACE + 5] == IS_EXEC_EXIT:
            judge_exec(state, row)
        exit_call(state, row, number, time, read_signed(pages, record + layout[PLACE + 3], layout[PLACE + 4]), source)


@compile_part
def _handle_rest(state, pages, cpu, row, layout):
    """Handle an event that is no end of a call."""
    kind = layout[KIND]
    if kind == BIRTH:
        give_birth(state, pages, cpu, row, layout)
    elif kind == RENAME:
        change_name(state, pages, cpu, row, layout)
    elif kind == EXEC:
        run_program(state, pages, cpu, row, layout)
    elif kind == EXEC_EXIT:
        judge_exec(state, row)
    elif kind == THREAD_EXIT:
        end_thread(state, row, state.cursors[cpu, HEAD_TIME])
    elif kind == SOCKET_STATE:
        note_connection(state, pages, cpu, row, layout)
    elif kind in (SIGNAL, OOM):
        note_side(state, pages, cpu, row, layout)


@compile_part
def _note_path(state, pages, cpu, row, layout):
    """Note the path, or paths, in the event for the next call of its family in the thread; several are joined by ' -> '.

    The kernel gives an empty path where it could not read one, as of an execve right after a fork, whose memory is not there yet.
    """
    record, length = state.cursors[cpu, RECORD], state.cursors[cpu, LENGTH]
    start, size = find_text(pages, record, length, layout[FIRST_PATH], layout[IS_RELATIVE] & 1)
    if layout[PATHS] == 1:
        found = number_object(state, PATH_TEXT, pages.data, start, size) if size else np.int64(NO_OBJECT)
    else:
        joined = state.scratch
        used = 0
        for index in range(layout[PATHS]):
            if index:
                for mark in (32, 45, 62, 32):
                    joined[used] = mark
                    used += 1
                is_relative = layout[IS_RELATIVE] >> index & 1
                start, size = find_text(pages, record, length, layout[FIRST_PATH + index], is_relative)
            for at in range(start, start + min(size, 1300)):
                joined[used] = pages.data[at]
                used += 1
        found = number_object(state, PATH_TEXT, joined, 0, used)
    state.threads[row, PATH_OBJECT + layout[EVENT_FAMILY]] = found


@compile_part
def find_text(pages, record, length, offset, is_relative):
    """Return start and size of the text that the word at OFFSET of a record describes, up to its first zero byte."""
    if offset + 4 > length:
        return record, np.int64(0)
    word = read_number(pages, record + offset, 4)
    start = record + (word & 0xFFFF) + (offset + 4 if is_relative else 0)
    end = min(start + (word >> 16), record + length)
    size = np.int64(0)
    while start + size < end and pages.data[start + size]:
        size += 1
    return start, size
