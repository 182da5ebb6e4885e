# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Follow what the descriptors of processes refer to, from the calls that make, copy and close them.

Only the lowest descriptors of a process are followed, and those of a bounded number of processes at one time. The numbers of descriptors
that a call writes to memory (pipe, recvmsg) are not in a trace.
"""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    BLOCKS,
    FD_BLOCK,
    FD_FLAGS,
    FD_OBJECT,
    IN_TRACE,
    NO_OBJECT,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_inline, compile_part
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np


@compile_inline
def find_descriptor(state, process, fd):
    """Return the number of the object that descriptor FD of PROCESS refers to; NO_OBJECT if it is not known."""
    block = state.processes[process, FD_BLOCK]
    if block < 0 or fd < 0 or fd >= state.blocks.shape[1]:
        return np.int64(NO_OBJECT)
    return np.int64(state.blocks[block, fd, FD_OBJECT])


@compile_part
def read_flags(state, process, fd):
    """Return the flags of descriptor FD of PROCESS; 0 if it is not known."""
    block = state.processes[process, FD_BLOCK]
    if block < 0 or fd < 0 or fd >= state.blocks.shape[1]:
        return np.int64(0)
    return np.int64(state.blocks[block, fd, FD_FLAGS])


@compile_part
def set_flags(state, process, fd, flags):
    """Give FLAGS to descriptor FD of PROCESS if the descriptor is known."""
    block = state.processes[process, FD_BLOCK]
    if block >= 0 and 0 <= fd < state.blocks.shape[1] and state.blocks[block, fd, FD_OBJECT]:
        state.blocks[block, fd, FD_FLAGS] = flags


@compile_part
def set_descriptor(state, process, fd, number, flags, time):
    """Let descriptor FD of PROCESS refer to object NUMBER from TIME on; NO_OBJECT means that it is closed."""
    if fd < 0 or fd >= state.blocks.shape[1] or process == 0:
        return
    block = state.processes[process, FD_BLOCK]
    if block < 0:
        if number == NO_OBJECT:
            return
        block = take_block(state, process)
        if block < 0:
            return
    state.blocks[block, fd, FD_OBJECT] = number
    state.blocks[block, fd, FD_FLAGS] = flags
    state.block_times[block, fd] = time


@compile_part
def take_block(state, process):
    """Give PROCESS room for descriptors, and return its row in the table of blocks; -1 where there is no room."""
    free = state.block_free.size - state.scalars[BLOCKS]
    if free <= 0:
        return np.int64(-1)
    block = np.int64(state.block_free[free - 1])
    state.scalars[BLOCKS] += 1
    state.processes[process, FD_BLOCK] = block
    state.blocks[block] = 0
    return block


@compile_part
def drop_block(state, process):
    """Free the room for the descriptors of PROCESS, which has ended."""
    block = state.processes[process, FD_BLOCK]
    if block >= 0:
        state.scalars[BLOCKS] -= 1
        state.block_free[state.block_free.size - state.scalars[BLOCKS] - 1] = block
        state.processes[process, FD_BLOCK] = -1


@compile_part
def copy_descriptors(state, parent, child):
    """Let CHILD, which was forked, have the descriptors of PARENT. They are not the child's own openings."""
    source = state.processes[parent, FD_BLOCK]
    if source < 0:
        return
    block = take_block(state, child)
    if block < 0:
        return
    for fd in range(state.blocks.shape[1]):
        state.blocks[block, fd, FD_OBJECT] = state.blocks[source, fd, FD_OBJECT]
        state.blocks[block, fd, FD_FLAGS] = state.blocks[source, fd, FD_FLAGS] & ~IN_TRACE
        state.block_times[block, fd] = state.block_times[source, fd]
