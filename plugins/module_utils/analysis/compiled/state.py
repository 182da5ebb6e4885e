# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the state of the compiled pass: tables of a fixed size, so that the memory of a report does not grow with the trace."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

NAME_SIZE = 16
"""Bytes of a thread's name."""
MAX_CPUS = 8192
MAX_HINTS = 1 << 16
_THREADS = _TASKS = _PROCESSES = _ROWS = 1 << 16
_BLOCKS, _DESCRIPTORS = 1 << 12, 256  # processes with descriptors at one time, and the lowest descriptors of each
_OBJECTS = 1 << 17
_CELLS = 1 << 18

State = Any
"""A record of the tables of a pass: state.threads[row, codes.TID] is a number."""


@lru_cache(maxsize=None)
def _make_layout() -> Any:
    """Return the type of the record of all tables, with columns as codes.py numbers them. numpy may be missing where this module is imported.

    An index is a hash table of rows: 0 is empty, n is row n - 1. Indices need powers of two. The sizes are known when the pass is compiled;
    what does not fit is counted under others.
    """
    return np.dtype(
        [
            ("scalars", np.int64, (codes.SCALARS,)),
            ("events", np.int32, (1024, codes.EVENT_COLUMNS)),  # one row per kind of event in use
            ("event_rows", np.int32, (1 << 16,)),  # number of an event → row of `events`; 0 for all others
            ("event_counts", np.int64, (1 << 16,)),  # number of an event → how many there were
            # One row per number of a call, then again for calls by 32-bit programs; the last row is for all other numbers.
            ("calls", np.int32, (2 * codes.MAX_NUMBER + 1, codes.CALL_COLUMNS)),
            ("cursors", np.int64, (MAX_CPUS, codes.CURSOR_COLUMNS)),  # one row per CPU
            ("heap", np.int32, (MAX_CPUS,)),  # CPUs that have an event, by its time
            ("threads", np.int64, (_THREADS, codes.THREAD_COLUMNS)),  # threads that live now
            ("thread_index", np.int32, (2 * _THREADS,)),
            ("thread_free", np.int32, (_THREADS,)),  # rows of `threads` that are free, as a stack
            ("tasks", np.int64, (_TASKS, codes.TASK_COLUMNS)),
            ("task_names", np.uint8, (_TASKS, NAME_SIZE)),
            ("hints", np.int64, (MAX_HINTS, codes.HINT_COLUMNS)),  # by number of the thread
            ("hint_names", np.uint8, (MAX_HINTS, NAME_SIZE)),
            ("processes", np.int64, (_PROCESSES, codes.PROCESS_COLUMNS)),
            ("blocks", np.int32, (_BLOCKS, _DESCRIPTORS, 2)),  # of living processes: descriptor → object and flags
            ("block_times", np.int64, (_BLOCKS, _DESCRIPTORS)),  # when each was opened
            ("block_free", np.int32, (_BLOCKS,)),  # rows of `blocks` that are free, as a stack
            ("objects", np.int64, (_OBJECTS, 3)),  # kind, offset and length of each
            ("object_index", np.int32, (2 * _OBJECTS,)),
            ("arena", np.uint8, (16 << 20,)),  # the objects' texts
            ("cells", np.int64, (_CELLS, codes.CELL_COLUMNS)),
            ("cell_index", np.int32, (2 * _CELLS,)),
            ("rows", np.int64, (_ROWS, codes.ROW_COLUMNS)),
            ("row_index", np.int32, (2 * _ROWS,)),
            ("histograms", np.uint32, (1 << 14, codes.OCTAVES * codes.STEPS)),
            ("kept", np.int64, (1 << 14, codes.OUT_COLUMNS)),
            ("out", np.int64, (1 << 16, codes.OUT_COLUMNS)),
            (
                "functions",
                np.int64,
                (1 << 15, 2),
            ),  # a hash table: address of a function of the kernel, and number of calls
            ("ring_counts", np.int64, (256,)),  # requests of io_uring by operation
            ("ring_names", np.uint8, (256, 2 * NAME_SIZE)),
            ("scratch", np.uint8, (8192,)),
            ("sides", np.int64, (1 << 16, codes.SIDE_COLUMNS)),
        ]
    )


def decode_name(raw: Any) -> str:
    """Return the name in RAW, bytes up to a zero byte such as a row of `task_names`; bytes that are not UTF-8 are replaced."""
    return bytes(raw).split(b"\0", 1)[0].decode("utf-8", "replace")


def make_state() -> State:
    """Return an empty State. The machine gives memory as rows come into use."""
    state = np.zeros(1, _make_layout()).view(np.recarray)[0]
    state.thread_free[:] = np.arange(_THREADS - 1, -1, -1)
    # Rows are looked at from the first one on, and the others when they are in use.
    state.threads[0, codes.TID] = codes.NO_TID
    state.block_free[:] = np.arange(_BLOCKS - 1, -1, -1)
    scalars = state.scalars
    scalars[codes.FIRST_ENTRY] = -codes.NEVER
    scalars[[codes.LAST_GAP_END, codes.SINCE, codes.LAST_FIRST, codes.UNTIL]] = codes.NEVER
    scalars[[codes.START, codes.FROM]] = -codes.NEVER
    scalars[codes.FACTOR] = 1
    scalars[codes.OBJECTS] = 2  # no object, and others
    state.objects[codes.OTHER_OBJECTS, 0] = codes.OTHERS
    # The first task and process stand for all for which there was no room.
    scalars[codes.TASKS] = scalars[codes.PROCESSES] = 1
    state.processes[0, [codes.PID, codes.PARENT, codes.FD_BLOCK]] = -1, -1, -1
    state.tasks[0, codes.TASK_TID] = -1
    return state
