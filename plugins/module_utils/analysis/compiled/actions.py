# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply the effects of system calls that succeeded on the descriptors of their process."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    ACCEPT,
    ACTION,
    CLOEXEC_ARGUMENT,
    CLOEXEC_BITS,
    CLOSE,
    CLOSE_RANGE,
    CLOSED,
    CLOSES_ON_EXEC,
    COMPAT,
    CONNECT,
    DUP,
    DUP_TO,
    FCNTL,
    FD_BLOCK,
    FD_FLAGS,
    FD_OBJECT,
    HAS_TRANSFERRED,
    HIGH_COUNT,
    HIGH_FIRST,
    HIGH_LAST,
    HIGH_SHIFT,
    HIGH_TIMES,
    IN_TRACE,
    IS_CONNECTING,
    MADE,
    MAKE,
    NO_OBJECT,
    NOT_CONNECTED,
    OPEN,
    OPENED,
    OUT_ARGUMENT,
    OUT_BEGIN,
    OUT_NUMBER,
    OUT_RESULT,
    OUT_TASK,
    PIPE,
    SOCKET,
    SOCKET_KIND,
    TASK_PROCESS,
    TRANSFER,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.descriptors import (
    find_descriptor,
    read_flags,
    set_descriptor,
    set_flags,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.objects import number_pair
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

_F_DUPFD, _F_SETFD, _F_DUPFD_CLOEXEC = 0, 2, 1030
_CLOSE_RANGE_CLOEXEC = 4
_STANDARD_ERROR = 2


@compile_part
def apply_action(state, call, info, thing):
    """Apply the action of CALL, a row of columns OUT_…, whose object is THING. Return bits to add to the call's outcome.

    INFO is the row of the table of calls.
    """
    action, process = info[ACTION], state.tasks[call[OUT_TASK], TASK_PROCESS]
    fd, result = call[OUT_ARGUMENT] & 0x7FFFFFFF, call[OUT_RESULT]
    if action == TRANSFER:
        if result > 0:
            set_flags(state, process, fd, read_flags(state, process, fd) | HAS_TRANSFERRED)
    elif action == CLOSE:
        flags = read_flags(state, process, fd)
        state.processes[process, CLOSED] += 1
        set_descriptor(state, process, fd, NO_OBJECT, 0, call[OUT_BEGIN])
        if flags & IS_CONNECTING and not flags & HAS_TRANSFERRED:
            return np.int64(NOT_CONNECTED)
    elif action == CLOSE_RANGE:
        _close_range(state, process, call)
    elif action == CONNECT:
        flags = read_flags(state, process, fd) & ~IS_CONNECTING
        set_descriptor(state, process, fd, thing, flags, call[OUT_BEGIN])
    elif action == DUP_TO:
        if result != fd:
            _count_replacement(state, process, result)
            number, flags = find_descriptor(state, process, fd), _find_flags(call, info) & ~IN_TRACE
            set_descriptor(state, process, result, number, flags, call[OUT_BEGIN])
    elif action == FCNTL:
        _control(state, process, call)
    elif action == PIPE:
        state.processes[process, OPENED] += 2
    elif action == MAKE and result == 0:
        pass  # bpf has made nothing
    elif action in (OPEN, SOCKET, ACCEPT, DUP, MAKE):
        _add_descriptor(state, process, call, info, thing)
    return np.int64(0)


@compile_part
def begin_connecting(state, call, thing):
    """Note that CALL, a connect that goes on in the background, connects its descriptor to the peer THING."""
    process = state.tasks[call[OUT_TASK], TASK_PROCESS]
    if thing == NO_OBJECT:
        return  # of such a descriptor, nobody would note that it transfers
    fd = call[OUT_ARGUMENT] & 0x7FFFFFFF
    flags = read_flags(state, process, fd) | IS_CONNECTING
    set_descriptor(state, process, fd, thing, flags, call[OUT_BEGIN])


@compile_part
def _find_flags(call, info):
    """Return the flags of the descriptor that CALL has made; INFO is the row of the table of calls."""
    bits, position = info[CLOEXEC_BITS], info[CLOEXEC_ARGUMENT]
    is_closed_on_exec = call[OUT_ARGUMENT + position] & bits if position >= 0 else bits
    return np.int64(IN_TRACE | (CLOSES_ON_EXEC if is_closed_on_exec else 0))


@compile_part
def _count_replacement(state, process, fd):
    """Count that FD of PROCESS becomes a copy of another descriptor, which closes it if it was open.

    Where that is not known, the standard descriptors were open, and the others were not.
    """
    if fd < state.blocks.shape[1]:
        was_open = find_descriptor(state, process, fd) != NO_OBJECT
        if was_open or fd > _STANDARD_ERROR:
            state.processes[process, OPENED] += 1
        if was_open:
            state.processes[process, CLOSED] += 1


@compile_part
def _count_opened(state, process, call):
    """Count the descriptor that CALL of PROCESS has returned, and note when, if its number is too high to be followed."""
    row, time = state.processes[process], call[OUT_BEGIN]
    row[OPENED] += 1
    if call[OUT_RESULT] >= state.blocks.shape[1]:
        if not row[HIGH_COUNT]:
            row[HIGH_FIRST] = time
        row[HIGH_COUNT] += 1
        row[HIGH_LAST] = time
        row[HIGH_TIMES] += (time - row[HIGH_FIRST]) >> HIGH_SHIFT


@compile_inline
def _pack_number(number):
    """Return the NUMBER of a call in 32 bits: the highest one stands for a 32-bit program."""
    return (number & 0x7FFFFFFF) | (0x80000000 if number >= COMPAT else 0)


@compile_part
def _add_descriptor(state, process, call, info, thing):
    """Note the new descriptor that is the result of CALL; INFO is the row of the table of calls."""
    action, number, at = info[ACTION], call[OUT_NUMBER], OUT_ARGUMENT
    if action == SOCKET:
        kind = (call[at] & 0xFFFF) | (call[at + 1] & 0xF) << 16
        thing = number_pair(state, SOCKET_KIND, kind, call[at + 2] & 0xFFFFFFFF)
    elif action == DUP:
        thing = find_descriptor(state, process, call[at] & 0x7FFFFFFF)
    elif action == ACCEPT:
        thing = number_pair(state, MADE, _pack_number(number), thing)
    if thing == NO_OBJECT or action == MAKE:
        thing = number_pair(state, MADE, _pack_number(number), np.int64(0))
    _count_opened(state, process, call)
    set_descriptor(state, process, call[OUT_RESULT], thing, _find_flags(call, info), call[OUT_BEGIN])


@compile_part
def _control(state, process, call):
    """Apply a fcntl that copies a descriptor, or changes what an exec does to it."""
    fd, command = call[OUT_ARGUMENT] & 0x7FFFFFFF, call[OUT_ARGUMENT + 1] & 0xFFFFFFFF
    if command == _F_SETFD:
        flags = read_flags(state, process, fd) & ~CLOSES_ON_EXEC
        set_flags(state, process, fd, flags | (CLOSES_ON_EXEC if call[OUT_ARGUMENT + 2] & 1 else 0))
    elif command in (_F_DUPFD, _F_DUPFD_CLOEXEC):
        flags = IN_TRACE | (CLOSES_ON_EXEC if command == _F_DUPFD_CLOEXEC else 0)
        number = find_descriptor(state, process, fd)
        _count_opened(state, process, call)
        set_descriptor(state, process, call[OUT_RESULT], number, flags, call[OUT_BEGIN])


@compile_part
def _close_range(state, process, call):
    """Apply a close_range, which closes descriptors or lets an exec close them."""
    first, last = call[OUT_ARGUMENT] & 0xFFFFFFFF, call[OUT_ARGUMENT + 1] & 0xFFFFFFFF
    for fd in range(first, min(last + 1, state.blocks.shape[1])):
        if call[OUT_ARGUMENT + 2] & _CLOSE_RANGE_CLOEXEC:
            set_flags(state, process, fd, read_flags(state, process, fd) | CLOSES_ON_EXEC)
        else:
            set_descriptor(state, process, fd, NO_OBJECT, 0, call[OUT_BEGIN])


@compile_part
def close_on_exec(state, process):
    """Close the descriptors of PROCESS that an exec closes."""
    block = state.processes[process, FD_BLOCK]
    if block >= 0:
        for fd in range(state.blocks.shape[1]):
            if state.blocks[block, fd, FD_FLAGS] & CLOSES_ON_EXEC:
                state.blocks[block, fd, FD_OBJECT] = NO_OBJECT
                state.blocks[block, fd, FD_FLAGS] = 0
