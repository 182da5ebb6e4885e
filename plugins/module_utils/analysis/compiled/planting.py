# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put what is known before the first event into the tables of a new pass."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    ARGUMENT,
    BEGIN,
    COMPAT,
    IS_COMPAT,
    IS_PENDING,
    NEVER,
    NUMBER,
    SEEDED,
    TASK,
    TASK_PROCESS,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.descriptors import set_descriptor
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.happenings import add_known
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.jit import compile_whole
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.objects import number_object
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.threads import find_thread, set_name
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np


@compile_whole
def plant_threads(state, threads, names):
    """Add THREADS, rows of thread, process and 1 for a 32-bit program, with the first thread of a process first, called NAMES."""
    for index in range(threads.shape[0]):
        tid, pid = threads[index, 0], threads[index, 1]
        process = np.int64(-1)
        if tid != pid:
            owner = find_thread(state, pid)
            if owner < 0:
                owner = add_known(state, pid, process, 1)
            if owner >= 0:
                process = state.tasks[state.threads[owner, TASK], TASK_PROCESS]
        if find_thread(state, tid) >= 0:
            continue
        row = add_known(state, tid, process, 0)
        if row >= 0:
            state.threads[row, IS_COMPAT] = threads[index, 2]
            set_name(state, state.threads[row, TASK], names[index], 0, names.shape[1])


@compile_whole
def plant_waits(state, waits):
    """Let threads be in the calls of WAITS, rows of thread, number of the call and six arguments."""
    for index in range(waits.shape[0]):
        row = find_thread(state, waits[index, 0])
        if row >= 0 and waits[index, 1] >= 0:
            thread = state.threads[row]
            thread[IS_PENDING], thread[BEGIN] = SEEDED, NEVER
            thread[NUMBER] = waits[index, 1] + (COMPAT if thread[IS_COMPAT] else 0)
            for argument in range(6):
                thread[ARGUMENT + argument] = waits[index, 2 + argument]


@compile_whole
def plant_descriptors(state, descriptors, texts, kind):
    """Let descriptors refer to objects of KIND. DESCRIPTORS: rows of process, descriptor, and start and size of the text in TEXTS."""
    for index in range(descriptors.shape[0]):
        row = find_thread(state, descriptors[index, 0])
        if row >= 0:
            number = number_object(state, kind, texts, descriptors[index, 2], descriptors[index, 3])
            process = state.tasks[state.threads[row, TASK], TASK_PROCESS]
            set_descriptor(state, process, descriptors[index, 1], number, 0, NEVER)
