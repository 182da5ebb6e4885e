# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow threads and processes through births, execs, new names and ends.

The kernel reuses the numbers of threads. A row of the table of tasks is a thread as long as its name and its process stay the same.
"""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    BEGIN_TASK,
    EXEC_STATE,
    FD_BLOCK,
    IS_COMPAT,
    IS_LAST_EXIT,
    IS_NAME_GUESSED,
    IS_NAMED,
    IS_PENDING,
    LAST_EVENT,
    LAST_NUMBER,
    MAX_FAMILIES,
    MOMENT,
    NEVER,
    NO_TID,
    PARENT,
    PATH_OBJECT,
    PEER_OBJECT,
    PID,
    PROCESS_BEGIN,
    PROCESS_END,
    PROCESSES,
    SOURCE,
    TASK,
    TASK_BEGIN,
    TASK_PROCESS,
    TASK_TID,
    TASKS,
    THREAD_ROWS,
    THREADS,
    TID,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np


@compile_inline
def _hash(tid, mask):
    return (tid * 0x9E3779B1 >> 8) & mask


@compile_part
def find_thread(state, tid):
    """Return the row of the living thread TID; -1 if it has none."""
    mask = state.thread_index.size - 1
    place = _hash(tid, mask)
    while state.thread_index[place]:
        row = state.thread_index[place] - 1
        if state.threads[row, TID] == tid:
            return np.int64(row)
        place = (place + 1) & mask
    return np.int64(-1)


@compile_part
def add_thread(state, tid):
    """Return a new row for thread TID, which must have none, without any history; -1 where there is no room."""
    free = state.thread_free.size - state.scalars[THREADS]
    if free <= 0:
        return np.int64(-1)
    row = np.int64(state.thread_free[free - 1])
    state.scalars[THREADS] += 1
    state.scalars[THREAD_ROWS] = max(state.scalars[THREAD_ROWS], row + 1)
    _enter_index(state, tid, row)
    state.threads[row, TID] = tid
    forget_history(state, row)
    return row


@compile_part
def _enter_index(state, tid, row):
    mask = state.thread_index.size - 1
    place = _hash(tid, mask)
    while state.thread_index[place]:
        place = (place + 1) & mask
    state.thread_index[place] = row + 1


@compile_part
def forget_history(state, row):
    """Let the thread at ROW begin anew: without a pending call, a known name or a known architecture."""
    thread = state.threads[row]
    thread[IS_PENDING] = thread[SOURCE] = thread[IS_LAST_EXIT] = thread[IS_COMPAT] = 0
    thread[EXEC_STATE] = thread[IS_NAMED] = thread[PEER_OBJECT] = thread[BEGIN_TASK] = 0
    thread[LAST_NUMBER] = -1
    for family in range(MAX_FAMILIES):
        thread[PATH_OBJECT + family] = 0
    thread[LAST_EVENT] = thread[MOMENT] = NEVER
    thread[TASK] = 0


@compile_part
def remove_thread(state, tid):
    """Free the row of thread TID, if it has one."""
    row = _leave_index(state, tid)
    if row >= 0:
        state.threads[row, TID] = NO_TID
        state.scalars[THREADS] -= 1
        state.thread_free[state.thread_free.size - state.scalars[THREADS] - 1] = row


@compile_part
def _leave_index(state, tid):
    """Take TID out of the index, and return its row; -1 if it has none. Later entries move up to close the gap."""
    index = state.thread_index
    mask = index.size - 1
    place = _hash(tid, mask)
    while index[place] and state.threads[index[place] - 1, TID] != tid:
        place = (place + 1) & mask
    if not index[place]:
        return np.int64(-1)
    row = np.int64(index[place] - 1)
    hole = place
    place = (place + 1) & mask
    while index[place]:
        home = _hash(state.threads[index[place] - 1, TID], mask)
        # An entry may move to the hole if its home does not lie between the hole and its place.
        if (place - home) & mask >= (place - hole) & mask:
            index[hole] = index[place]
            hole = place
        place = (place + 1) & mask
    index[hole] = 0
    return row


@compile_part
def rename_thread(state, old, new):
    """Give the row of thread OLD the number NEW, as an exec by another thread than the first does, and return it; -1 without a row."""
    remove_thread(state, new)
    row = _leave_index(state, old)
    if row >= 0:
        state.threads[row, TID] = new
        _enter_index(state, new, row)
    return row


@compile_part
def add_process(state, pid, parent, time):
    """Return the row of a new process with number PID, or 0 where there is no room. PARENT is the row of its parent, or -1."""
    number = state.scalars[PROCESSES]
    if number >= state.processes.shape[0]:
        return np.int64(0)
    state.scalars[PROCESSES] += 1
    process = state.processes[number]
    process[PID], process[PARENT], process[PROCESS_BEGIN], process[FD_BLOCK] = pid, parent, time, -1
    process[PROCESS_END] = -NEVER
    return np.int64(number)


@compile_part
def add_task(state, row, process, time, is_guessed):
    """Let the thread at ROW be a new task of PROCESS from TIME on, and return the task's number; 0 where there is no room.

    IS_GUESSED means that the name, which the caller sets, may be the name of a later time.
    """
    number = state.scalars[TASKS]
    if number >= state.tasks.shape[0]:
        state.threads[row, TASK] = 0
        return np.int64(0)
    state.scalars[TASKS] += 1
    task = state.tasks[number]
    task[TASK_TID], task[TASK_PROCESS], task[TASK_BEGIN] = state.threads[row, TID], process, time
    task[IS_NAME_GUESSED] = is_guessed
    state.threads[row, TASK] = number
    return np.int64(number)


@compile_part
def set_name(state, task, source, start, size):
    """Give TASK the name at START of SOURCE, SIZE bytes at most, up to its first zero byte."""
    if task == 0:
        return
    name = state.task_names[task]
    is_over = False
    for index in range(name.size - 1):
        is_over = is_over or index >= size or source[start + index] == 0
        name[index] = 0 if is_over else source[start + index]


@compile_part
def copy_name(state, task, other):
    """Give TASK the name of the task OTHER."""
    if task == 0:
        return
    for index in range(state.task_names.shape[1]):
        state.task_names[task, index] = state.task_names[other, index]
