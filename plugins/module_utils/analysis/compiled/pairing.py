# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pair entries and exits of system calls by thread, in the order of time, as `strace -f` would list them.

An exit belongs to the entry before it in its thread if both have the same number. Two exceptions: an execve may exit with the number of
another architecture, and rt_sigreturn exits with -1. An entry or exit without a partner makes a call, too. Such a call was under way when
the trace began or ended, or its other event was lost. Or seccomp denied the call: the kernel asks seccomp before it records the entry, and
records the exit even if seccomp denies the call.
Source: the kernel's entry code (syscall_trace_enter, syscall_exit_work) and kernel/seccomp.c.
"""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.actions import (
    apply_action,
    begin_connecting,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    ACTION,
    ARGUMENT,
    BEGIN,
    BEGIN_TASK,
    CAN_TELL,
    CHECKS_START,
    COMPAT,
    CONNECT,
    CONTINUED,
    CPU_STATE,
    CPUS,
    DENIED,
    END_PROCESS,
    EXEC_STATE,
    FAMILY,
    FCNTL,
    FD_ARGUMENT,
    FIRST_ENTRY,
    FROM,
    HAS_ENTRY,
    HAS_EVENT,
    HAS_EXIT,
    HAS_GAP,
    HEAD_TIME,
    IS_CLONE,
    IS_COMPAT,
    IS_EXEC,
    IS_LAST_EXIT,
    IS_PENDING,
    IS_SELECTED,
    LAST_EVENT,
    LAST_FIRST,
    LAST_GAP_END,
    LAST_NUMBER,
    LAST_TIME,
    MAX_NUMBER,
    MIN_LATENCY,
    MOMENT,
    NEVER,
    NO_OBJECT,
    NUMBER,
    ONLY_ENTRY,
    ONLY_EXIT,
    OUT,
    OUT_ARGUMENT,
    OUT_BEGIN,
    OUT_END,
    OUT_NUMBER,
    OUT_OBJECT,
    OUT_OUTCOME,
    OUT_RESULT,
    OUT_TASK,
    OWN_ERROR,
    PATH_OBJECT,
    PEER_OBJECT,
    SEEDED,
    SINCE,
    SOURCE,
    START,
    STATUS,
    TASK,
    TASK_PROCESS,
    TIMED_OUT,
    TRAPPED,
    UNFINISHED,
    WAIT,
    WANTS_CALLS,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.counting import (
    count_call,
    keep_call,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.descriptors import find_descriptor
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pages import NATIVE, read_number
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_MAX_ERRNO = 4095
_F_GETOWN = 9
_EINPROGRESS = 115
_BOTH_SOURCES = 2
_RETURNED = 1 << 30  # among the flags of an outcome, here only


@compile_inline
def to_int(word):
    """Return the C int in the lower half of WORD."""
    low = word & 0xFFFFFFFF
    return low - (np.int64(1) << 32) if low >> 31 else low


@compile_inline
def find_info(number):
    """Return the index of the row of the table of calls for NUMBER; the last row is for numbers without an entry."""
    plain = number & (COMPAT - 1) if number >= COMPAT else number
    if 0 <= plain < MAX_NUMBER:
        return plain + MAX_NUMBER if number >= COMPAT else plain
    return np.int64(2 * MAX_NUMBER)


@compile_part
def enter_call(state, pages, row, number, time, places):
    """Note that the thread at ROW enters call NUMBER at TIME. PLACES: offset of the arguments, their number, their size, source."""
    thread = state.threads[row]
    if thread[EXEC_STATE]:
        # The exit of execve is recorded for 64-bit programs only.
        thread[IS_COMPAT] = state.scalars[CAN_TELL]
        thread[EXEC_STATE] = 0
    if thread[IS_COMPAT] and number >= 0:
        number += COMPAT
    start, count, word, source = places
    if thread[IS_PENDING] == 1 and thread[NUMBER] == number and thread[SOURCE] + source == 1:
        thread[SOURCE] = _BOTH_SOURCES
        return
    end_pending(state, row, time)
    state.scalars[FIRST_ENTRY] = min(state.scalars[FIRST_ENTRY], time)
    thread[IS_PENDING], thread[NUMBER], thread[BEGIN], thread[SOURCE] = 1, number, time, source
    thread[LAST_EVENT], thread[IS_LAST_EXIT], thread[LAST_NUMBER], thread[PEER_OBJECT] = time, 0, number, 0
    thread[BEGIN_TASK] = thread[TASK]
    _read_arguments(pages, thread, start, count, word)


@compile_inline
def _read_arguments(pages, thread, start, count, word):
    """Read COUNT arguments of WORD bytes, which begin at START, into THREAD; the rest of six are 0."""
    if pages.order == NATIVE and word == 8 and start & 3 == 0 and count == 6:
        at = start >> 2
        for index in range(6):
            low, high = np.int64(pages.words[at + 2 * index]), np.int64(pages.words[at + 2 * index + 1])
            thread[ARGUMENT + index] = low | high << 32
        return
    for index in range(6):
        thread[ARGUMENT + index] = read_number(pages, start + index * word, word) if index < count else 0


@compile_inline
def end_pending(state, row, time):
    """Let the pending call of the thread at ROW, if there is one, stay unfinished at TIME."""
    thread = state.threads[row]
    if thread[IS_PENDING] == 1:
        has_exit = state.calls[find_info(thread[NUMBER]), HAS_EXIT]
        _finish(state, row, thread[NUMBER], time, np.int64(0), np.int64(UNFINISHED if has_exit else ONLY_ENTRY))
    thread[IS_PENDING] = 0


@compile_part
def end_wait(state, row, time):
    """Let the call of the thread at ROW that was under way when the trace began, if there is one, last until TIME and longer."""
    if state.threads[row, IS_PENDING] == SEEDED:
        _finish(state, row, state.threads[row, NUMBER], time, np.int64(0), np.int64(UNFINISHED | CONTINUED))
        state.threads[row, IS_PENDING] = 0


@compile_part
def exit_call(state, row, number, time, result, source):
    """Note that the thread at ROW exits call NUMBER at TIME with RESULT. SOURCE is 1 for an event of the system syscalls, else 0."""
    thread = state.threads[row]
    is_pending = thread[IS_PENDING]
    entered = thread[NUMBER]
    is_exec = is_pending and thread[EXEC_STATE] and state.calls[find_info(entered), IS_EXEC]
    if is_exec or (thread[EXEC_STATE] and not is_pending):
        # The exit has the number of execve in the new program's architecture, which tells it where the numbers differ.
        is_compat = state.calls[find_info(number + COMPAT), IS_EXEC]
        if state.calls[find_info(number), IS_EXEC] != is_compat:
            thread[IS_COMPAT], thread[EXEC_STATE] = is_compat, 0
    if thread[IS_COMPAT] and number >= 0:
        number += COMPAT
    if not is_pending and thread[IS_LAST_EXIT] and thread[LAST_NUMBER] == number and thread[SOURCE] + source == 1:
        thread[SOURCE] = _BOTH_SOURCES
        return
    info = state.calls[find_info(number)]
    is_same = is_pending and (
        is_exec or number in (entered, -1) or (info[IS_EXEC] and state.calls[find_info(entered), IS_EXEC])
    )
    if is_same:
        outcome = np.int64(CONTINUED if is_pending == SEEDED else 0)
        # rt_sigreturn exits with -1; its result is a register of the program, and no error.
        if number == -1 and entered != -1:
            outcome |= _RETURNED
        _finish(state, row, entered, time, result, outcome)
    else:
        end_pending(state, row, time)
        is_denied = info[HAS_ENTRY] and _is_denied(state, row, time) and not (info[IS_EXEC] and result == 0)
        # The first event of a child is an exit with result 0 from the call that its parent made.
        is_birth = result == 0 and info[IS_CLONE]
        if not is_birth and (is_denied or number != -1):
            lone = CONTINUED if info[HAS_ENTRY] else ONLY_EXIT
            thread[BEGIN] = time
            for index in range(6):
                thread[ARGUMENT + index] = 0
            _finish(state, row, number, time, result, np.int64(DENIED if is_denied else lone))
    thread[IS_PENDING] = 0
    thread[LAST_EVENT], thread[IS_LAST_EXIT], thread[LAST_NUMBER], thread[SOURCE] = time, 1, number, source


@compile_part
def _is_denied(state, row, time):
    """Return True if an exit at TIME without an entry had none: no event of the thread at ROW can be missing before it."""
    thread, scalars = state.threads[row], state.scalars
    before = thread[LAST_EVENT] if thread[IS_LAST_EXIT] else np.int64(NEVER)
    # If the previous event is an entry, its exit is missing, and other events may be missing, too.
    before = max(before, thread[MOMENT] if thread[MOMENT] > thread[LAST_EVENT] else np.int64(NEVER))
    # Where no entry has been recorded so far, only a thread that was born, or began its program, in the trace is known from its beginning.
    first = scalars[FIRST_ENTRY] if scalars[FIRST_ENTRY] != -NEVER or thread[MOMENT] == NEVER else thread[MOMENT]
    if before == NEVER or before < max(scalars[SINCE], first) or scalars[LAST_GAP_END] > before:
        return False
    if scalars[CHECKS_START] and scalars[LAST_FIRST] > before:
        return False
    for cpu in range(scalars[CPUS]):
        cursor = state.cursors[cpu]
        if (
            cursor[CPU_STATE] == HAS_EVENT
            and cursor[HAS_GAP]
            and cursor[HEAD_TIME] > before
            and cursor[LAST_TIME] < time
        ):
            return False
    return True


@compile_inline
def _find_error(info, thread, result, outcome):
    """Return the number of the error that RESULT means, or 0; a call with only an entry has none."""
    if outcome & (UNFINISHED | ONLY_ENTRY | _RETURNED) or result >= 0 or result < -_MAX_ERRNO:
        return np.int64(0)
    if (
        info[OWN_ERROR]
        and -result != info[OWN_ERROR]
        and (info[ACTION] != FCNTL or to_int(thread[ARGUMENT + 1]) == _F_GETOWN)
    ):
        return np.int64(0)
    return -result


@compile_inline
def _find_object(state, thread, info, outcome):
    """Return the number of the object of a call: its recorded path, the peer it connects to, or what its descriptor refers to."""
    if info[FAMILY] >= 0 and thread[PATH_OBJECT + info[FAMILY]]:
        found = thread[PATH_OBJECT + info[FAMILY]]
        thread[PATH_OBJECT + info[FAMILY]] = 0
        return found
    peer = thread[PEER_OBJECT]
    thread[PEER_OBJECT] = 0
    # Where entries are not recorded, the peer may be that of an earlier connect, whose exit is not recorded.
    if peer and (thread[IS_PENDING] or info[ACTION] == CONNECT):
        return peer
    if info[FD_ARGUMENT] >= 0 and not outcome & (DENIED | ONLY_EXIT) and thread[IS_PENDING]:
        process = state.tasks[thread[TASK], TASK_PROCESS]
        return find_descriptor(state, process, to_int(thread[ARGUMENT + info[FD_ARGUMENT]]))
    return np.int64(NO_OBJECT)


@compile_part
def _finish(state, row, number, time, result, outcome):
    """Count the call NUMBER of the thread at ROW, which ended at TIME with RESULT, and write it to the stream if that is wanted."""
    thread, scalars = state.threads[row], state.scalars
    info = state.calls[find_info(number)]
    error = _find_error(info, thread, result, outcome)
    if outcome & DENIED and result == number & (COMPAT - 1):
        # On x86, the result of a call that seccomp answers by SIGSYS is its own number.
        outcome |= TRAPPED
    if info[ACTION] == WAIT and result == 0 and not outcome & (UNFINISHED | ONLY_ENTRY):
        outcome |= TIMED_OUT
    if info[ACTION] == END_PROCESS and outcome & (UNFINISHED | ONLY_ENTRY):
        state.processes[state.tasks[thread[TASK], TASK_PROCESS], STATUS] = (thread[ARGUMENT] & 0xFF) + 1
    # A call without an end is of the name that the thread had when it began.
    is_open = outcome & (UNFINISHED | ONLY_ENTRY) and thread[BEGIN_TASK]
    task = thread[BEGIN_TASK] if is_open else thread[TASK]
    thing = _find_object(state, thread, info, outcome)
    call = state.out[scalars[OUT]]
    # On damaged pages a clock goes back, and a call ends before it begins.
    call[OUT_BEGIN] = min(min(scalars[START], scalars[FROM]) if thread[IS_PENDING] == SEEDED else thread[BEGIN], time)
    call[OUT_END], call[OUT_TASK], call[OUT_NUMBER] = time, task, number
    for index in range(6):
        call[OUT_ARGUMENT + index] = thread[ARGUMENT + index]
    call[OUT_RESULT] = result
    if error == 0 and thread[IS_PENDING] and not outcome & (UNFINISHED | ONLY_ENTRY):
        outcome |= apply_action(state, call, info, thing)
    elif error == _EINPROGRESS and info[ACTION] == CONNECT:
        begin_connecting(state, call, thing)
    outcome = (outcome & ~_RETURNED) | error
    call[OUT_OUTCOME], call[OUT_OBJECT] = outcome, thing
    is_paired = thread[IS_PENDING] == 1 and not outcome & (UNFINISHED | ONLY_ENTRY)
    least = scalars[MIN_LATENCY]
    if not info[IS_SELECTED] or (least and (not is_paired or time - call[OUT_BEGIN] < least)):
        return
    count_call(state, task, number, outcome, thing, call, is_paired)
    keep_call(state, call)
    scalars[OUT] += scalars[WANTS_CALLS]
