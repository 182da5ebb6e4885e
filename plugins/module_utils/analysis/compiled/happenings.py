# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Handle events that are no ends of calls: births, execs, names and ends of threads, connections, signals and victims of the OOM killer."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.actions import close_on_exec
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    CAN_TELL,
    DELIVERED,
    EXEC_STATE,
    FUNCTION,
    FUNCTIONS,
    HAS_EXECUTED,
    HAS_POLLED,
    HEAD_TIME,
    HINT_COMPAT,
    HINT_PROCESS,
    HINT_TID,
    HINTS,
    IS_BIRTH,
    IS_COMPAT,
    IS_NAME_GUESSED,
    IS_NAMED,
    KIND,
    LENGTH,
    LIVING,
    MOMENT,
    NEVER,
    OOM,
    PEER,
    PEER_OBJECT,
    PID,
    PLACE,
    PROCESS_END,
    RECORD,
    RING_REQUEST,
    SIDE_KIND,
    SIDE_OTHER,
    SIDE_TASK,
    SIDE_TIME,
    SIDE_VALUE,
    SIDES,
    STATUS,
    TASK,
    TASK_PROCESS,
    TID,
    VICTIM,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.descriptors import (
    copy_descriptors,
    drop_block,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.objects import number_object
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pages import read_number, read_signed
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pairing import end_pending
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.threads import (
    add_process,
    add_task,
    add_thread,
    copy_name,
    find_thread,
    remove_thread,
    rename_thread,
    set_name,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_CLONE_THREAD = 0x10000
_TCP_SYN_SENT, _TCP_CLOSE = 2, 7
_AF_INET6 = 10
_SETUP_SQPOLL = 2


@compile_part
def find_or_add(state, tid):
    """Return the row of thread TID. A thread that is not known yet gets one, with the process and name that the hints have; -1: no room."""
    row = find_thread(state, tid)
    if row >= 0:
        return row
    hint = _find_hint(state, tid)
    leader = state.hints[hint, HINT_PROCESS] if hint >= 0 else np.int64(-1)
    process = np.int64(-1)
    if leader >= 0 and leader != tid:
        owner = find_thread(state, leader)
        if owner < 0:
            owner = add_known(state, leader, np.int64(-1), 1)
        if owner >= 0:
            process = state.tasks[state.threads[owner, TASK], TASK_PROCESS]
    return add_known(state, tid, process, 1)


@compile_part
def add_known(state, tid, process, is_guessed):
    """Return the row of a new thread TID of PROCESS, or of a process of its own where that is -1; -1 where there is no room.

    Its name is what the hints say. IS_GUESSED is 1 if that may be a later name.
    """
    row = add_thread(state, tid)
    if row < 0:
        return row
    if process < 0:
        process = add_process(state, tid, np.int64(-1), np.int64(NEVER))
    task = add_task(state, row, process, np.int64(NEVER), is_guessed)
    state.processes[state.tasks[task, TASK_PROCESS], LIVING] += 1
    hint = _find_hint(state, tid)
    if hint >= 0:
        set_name(state, task, state.hint_names[hint], 0, state.hint_names.shape[1])
        state.threads[row, IS_COMPAT] = state.hints[hint, HINT_COMPAT] == 1
    return row


@compile_part
def _find_hint(state, tid):
    """Return the row of the hints about thread TID, which are sorted; -1 if there is none."""
    low, high = np.int64(0), state.scalars[HINTS]
    while low < high:
        middle = (low + high) >> 1
        if state.hints[middle, HINT_TID] < tid:
            low = middle + 1
        else:
            high = middle
    return np.int64(low) if low < state.scalars[HINTS] and state.hints[low, HINT_TID] == tid else np.int64(-1)


@compile_part
def give_birth(state, pages, cpu, row, layout):
    """Add the child that the thread at ROW has made. Places: its number, its name (two), and the flags of clone (two)."""
    record, time = state.cursors[cpu, RECORD], state.cursors[cpu, HEAD_TIME]
    pid = read_signed(pages, record + layout[PLACE + 1], 4)
    flags = read_number(pages, record + layout[PLACE + 4], layout[PLACE + 5])
    older = find_thread(state, pid)
    if older >= 0:
        end_thread(state, older, time)
    parent = state.tasks[state.threads[row, TASK], TASK_PROCESS]
    if flags & _CLONE_THREAD:
        process = parent
    else:
        process = add_process(state, pid, parent, time)
        if process:
            copy_descriptors(state, parent, process)
    child = add_thread(state, pid)
    if child < 0:
        return
    state.threads[child, MOMENT] = time
    state.threads[child, IS_COMPAT] = state.threads[row, IS_COMPAT]
    task = add_task(state, child, process, time, 0)
    state.tasks[task, IS_BIRTH] = task > 0
    state.processes[state.tasks[task, TASK_PROCESS], LIVING] += 1
    _read_name(state, pages, cpu, task, layout[PLACE + 2], layout[PLACE + 3])


@compile_part
def _read_name(state, pages, cpu, task, offset, size):
    """Give TASK the name at OFFSET of the record, of SIZE bytes; of size 0 or -1, a word there says where it is, as _place_text tells."""
    record, length = state.cursors[cpu, RECORD], state.cursors[cpu, LENGTH]
    start = record + offset
    if size <= 0:
        word = read_number(pages, start, 4) if offset + 4 <= length else np.int64(0)
        start, size = record + (word & 0xFFFF) + (offset + 4 if size else 0), word >> 16
    set_name(state, task, pages.data, start, max(min(np.int64(size), record + length - start), np.int64(0)))


@compile_part
def change_name(state, pages, cpu, row, layout):
    """Give a thread another name. Places: its number (-1: the thread itself), the old name (two; -1: none) and the new one (two)."""
    time = state.cursors[cpu, HEAD_TIME]
    if layout[PLACE + 1] >= 0:
        row = find_or_add(state, read_signed(pages, state.cursors[cpu, RECORD] + layout[PLACE + 1], 4))
        if row < 0:
            return
    thread = state.threads[row]
    before = thread[TASK]
    if state.tasks[before, IS_NAME_GUESSED] and layout[PLACE + 2] >= 0:
        _read_name(state, pages, cpu, before, layout[PLACE + 2], layout[PLACE + 3])
        state.tasks[before, IS_NAME_GUESSED] = 0
    task = add_task(state, row, state.tasks[before, TASK_PROCESS], time, 0)
    _read_name(state, pages, cpu, task, layout[PLACE + 4], layout[PLACE + 5])
    thread[IS_NAMED] = 1


@compile_part
def take_number(state, pages, cpu, layout):
    """Let a thread other than the first take the number of its process if the event, an exec, says that. It has this number already.

    The first thread has ended by then: the process has not. Places as those of `run_program`.
    """
    record, time = state.cursors[cpu, RECORD], state.cursors[cpu, HEAD_TIME]
    pid = read_signed(pages, record + layout[PLACE + 2], 4)
    old = read_signed(pages, record + layout[PLACE + 3], 4)
    row, first = find_thread(state, old), find_thread(state, pid)
    if old == pid or row < 0:
        return
    before = state.threads[row, TASK]
    process = state.tasks[before, TASK_PROCESS]
    if state.processes[process, PID] != pid and process:
        # Until now, nobody knew the process of the thread.
        if first >= 0:
            process = state.tasks[state.threads[first, TASK], TASK_PROCESS]
        else:
            state.processes[process, PID] = pid
    # The exec's new name has been recorded for the number of the process already. The old name of this thread is over.
    is_named = np.int64(0)
    if first >= 0 and state.threads[first, IS_NAMED]:
        before, is_named = state.threads[first, TASK], np.int64(1)
    end_thread_only(state, pid, time)
    row = rename_thread(state, old, pid)
    state.processes[process, PROCESS_END] = -NEVER
    state.processes[state.tasks[state.threads[row, TASK], TASK_PROCESS], LIVING] -= 1
    task = add_task(state, row, process, time, 0)
    state.processes[state.tasks[task, TASK_PROCESS], LIVING] += 1
    copy_name(state, task, before)
    state.threads[row, IS_NAMED] = is_named


@compile_part
def run_program(state, pages, cpu, row, layout):
    """Note an exec. Places: the word that says where the program's path is, the thread's number, its number before, and 1 if relative."""
    record, time = state.cursors[cpu, RECORD], state.cursors[cpu, HEAD_TIME]
    thread = state.threads[row]
    process = state.tasks[thread[TASK], TASK_PROCESS]
    close_on_exec(state, process)
    thread[MOMENT] = time
    thread[EXEC_STATE] = state.scalars[CAN_TELL]
    hint = _find_hint(state, thread[TID])
    if hint >= 0:
        state.hints[hint, HINT_COMPAT] = HAS_EXECUTED
    if not thread[IS_NAMED]:
        # The kernel also records an exec as a rename. Here a filter has left that event out. The name is the last part of the path.
        length = state.cursors[cpu, LENGTH]
        word = read_number(pages, record + layout[PLACE + 1], 4)
        start = record + (word & 0xFFFF) + (layout[PLACE + 1] + 4 if layout[PLACE + 4] else 0)
        end = min(start + (word >> 16), record + length)
        name = start
        at = start
        while at < end and pages.data[at]:
            if pages.data[at] == 47:
                name = at + 1
            at += 1
        task = add_task(state, row, process, time, 0)
        set_name(state, task, pages.data, name, at - name)
    thread[IS_NAMED] = 0


@compile_part
def judge_exec(state, row):
    """Note that the thread at ROW, after an exec, runs a 64-bit program: only such a program's exit of execve is recorded."""
    if state.threads[row, EXEC_STATE]:
        state.threads[row, EXEC_STATE] = state.threads[row, IS_COMPAT] = 0


@compile_part
def end_thread(state, row, time):
    """End the thread at ROW: its pending call stays unfinished; with the last thread of a process, its descriptors are gone.

    The end of another thread may be missing. After exit_group, the process has ended with its first thread, too.
    """
    number = state.tasks[state.threads[row, TASK], TASK_PROCESS]
    process = state.processes[number]
    is_first = process[PID] == state.threads[row, TID]
    end_thread_only(state, state.threads[row, TID], time)
    if number and (process[LIVING] <= 0 or (is_first and process[STATUS])):
        process[PROCESS_END] = time
        drop_block(state, number)


@compile_part
def end_thread_only(state, tid, time):
    """End thread TID, if it is known; its process goes on."""
    row = find_thread(state, tid)
    if row >= 0:
        end_pending(state, row, time)
        state.processes[state.tasks[state.threads[row, TASK], TASK_PROCESS], LIVING] -= 1
        remove_thread(state, tid)


@compile_part
def note_connection(state, pages, cpu, row, layout):
    """Note the peer that the thread at ROW begins to connect to.

    Places: old and new state, family, protocol (two), port, address of IPv4 and of IPv6.
    """
    record = state.cursors[cpu, RECORD]
    old = read_number(pages, record + layout[PLACE + 1], 4)
    new = read_number(pages, record + layout[PLACE + 2], 4)
    if old != _TCP_CLOSE or new != _TCP_SYN_SENT:
        return
    family = read_number(pages, record + layout[PLACE + 3], 2)
    protocol = read_number(pages, record + layout[PLACE + 4], layout[PLACE + 5])
    port = read_number(pages, record + layout[PLACE + 6], 2)
    is_wide = family == _AF_INET6
    size = 16 if is_wide else 4
    text = state.scratch
    for place, value in ((0, family), (2, protocol), (4, port)):
        text[place], text[place + 1] = value & 0xFF, (value >> 8) & 0xFF
    start = record + (layout[PLACE + 8] if is_wide else layout[PLACE + 7])
    for index in range(size):
        text[6 + index] = pages.data[start + index]
    state.threads[row, PEER_OBJECT] = number_object(state, PEER, text, 0, 6 + size)


@compile_part
def note_side(state, pages, cpu, row, layout):
    """Note a signal that takes its default effect, or a victim of the OOM killer, in the table of sides.

    Places of a signal: its number and its handler; of a victim: its process.
    """
    record, scalars = state.cursors[cpu, RECORD], state.scalars
    if scalars[SIDES] >= state.sides.shape[0]:
        return
    side = state.sides[scalars[SIDES]]
    value = read_signed(pages, record + layout[PLACE + 1], 4)
    if layout[KIND] == OOM:
        victim = find_thread(state, value)
        side[SIDE_KIND], side[SIDE_OTHER] = VICTIM, 0
        side[SIDE_TASK] = state.threads[victim, TASK] if victim >= 0 else 0
    else:
        if read_number(pages, record + layout[PLACE + 2], layout[PLACE + 3]):
            return
        side[SIDE_KIND], side[SIDE_OTHER], side[SIDE_TASK] = DELIVERED, 0, state.threads[row, TASK]
    side[SIDE_TIME], side[SIDE_VALUE] = state.cursors[cpu, HEAD_TIME], value
    scalars[SIDES] += 1


@compile_part
def count_event(state, pages, cpu, layout):
    """Count an event of which only the number matters.

    Places of a function: its address; of a request of io_uring: the operation (two), the word that says where its name is, or -1, and
    1 if that is relative; of a new ring: its flags.
    """
    record = state.cursors[cpu, RECORD]
    if layout[KIND] == FUNCTION:
        _count_function(state, read_number(pages, record + layout[PLACE + 1], layout[PLACE + 2]))
    elif layout[KIND] == RING_REQUEST:
        operation = read_number(pages, record + layout[PLACE + 1], layout[PLACE + 2]) & 0xFF
        if not state.ring_counts[operation] and layout[PLACE + 3] >= 0:
            word = read_number(pages, record + layout[PLACE + 3], 4)
            name, start = state.ring_names[operation], record + (word & 0xFFFF)
            if layout[PLACE + 4]:
                start += layout[PLACE + 3] + 4
            end = min(start + (word >> 16), record + state.cursors[cpu, LENGTH])
            for index in range(name.size - 1):
                if start + index >= end or pages.data[start + index] == 0:
                    break
                name[index] = pages.data[start + index]
        state.ring_counts[operation] += 1
    elif read_number(pages, record + layout[PLACE + 1], 4) & _SETUP_SQPOLL:
        state.scalars[HAS_POLLED] = 1


@compile_part
def _count_function(state, address):
    """Count a call of the function of the kernel at ADDRESS; there is room for 16,000 of them."""
    table, scalars = state.functions, state.scalars
    mask = table.shape[0] - 1
    place = (address >> 4 ^ address >> 17) & mask
    while table[place, 1] and table[place, 0] != address:
        place = (place + 1) & mask
    if not table[place, 1]:
        if 2 * scalars[FUNCTIONS] >= mask:
            return
        scalars[FUNCTIONS] += 1
        table[place, 0] = address
    table[place, 1] += 1
