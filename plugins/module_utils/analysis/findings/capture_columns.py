# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of a capture that rules look at, as columns. The pass over a capture fills them, and capture.py reads them.

Outcomes, times and indices of objects have the values that compiled/codes.py defines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Sequence

Column = Any  # numbers: a list, or an array of numpy


@dataclass(frozen=True)
class Tasks:
    """Threads, as long as their names and processes stay the same. Other tables name a task by its index."""

    name: Sequence[str]
    tid: Column  # on the host
    process: Column  # index in the table of processes
    begin_ns: Column = ()  # since when the thread has this name, in the trace's clock; NEVER for a name from before the trace


@dataclass(frozen=True)
class Processes:
    """The processes of a capture."""

    pid: Column  # on the host
    container_pid: Column  # -1 where it is not known
    parent: Column  # index in this table; -1 where it is not known
    begin_ns: Column = ()  # of the fork, in the trace's clock; NEVER where the process is older than the trace
    opened: Column = ()  # number of descriptors that it has opened in the trace
    closed: Column = ()
    end_ns: Column = ()  # 0 where the process has not ended in the trace
    status: Column = ()  # that the process ended itself with; -1 where it is not known


@dataclass(frozen=True)
class Cells:
    """Counts of calls: a row for each task, call, outcome and object. Times are nanoseconds of the trace's clock."""

    task: Column
    number: Column
    outcome: Column
    object: Column
    count: Column
    first_ns: Column
    last_ns: Column
    total_ns: Column
    max_ns: Column


@dataclass(frozen=True)
class LongCalls:
    """The longest calls of a capture, and those that did not end in it. Times are nanoseconds of the trace's clock."""

    start_ns: Column
    duration_ns: Column
    task: Column
    number: Column
    args: Sequence[Sequence[int]]  # six each; empty where they are not known
    result: Column
    outcome: Column
    object: Column


@dataclass(frozen=True)
class Descriptors:
    """The descriptors that were opened in a capture and are open at its end: a row for each process and object."""

    process: Column
    object: Column
    count: Column
    first_ns: Column
    last_ns: Column
    middle_ns: Column = ()  # half of them were opened by then


@dataclass(frozen=True)
class Signals:
    """Signals that took their default effect on a thread, in the order of time."""

    task: Column
    time_ns: Column
    number: Column  # of the signal; 0 for a process that the OOM killer chose


_NONE: Column = ()


@dataclass(frozen=True)
class CaptureTables:
    """All tables of a capture."""

    tasks: Tasks
    processes: Processes
    objects: Sequence[tuple[str, str]]  # kind and text
    cells: Cells
    long_calls: LongCalls
    descriptors: Descriptors = field(default_factory=lambda: Descriptors(_NONE, _NONE, _NONE, _NONE, _NONE))
    # Those that were opened with numbers too high for the table above, whether they are open at the end or not: a row for each process. Their
    # middle is the mean of the times.
    high_descriptors: Descriptors = field(default_factory=lambda: Descriptors(_NONE, _NONE, _NONE, _NONE, _NONE))
    signals: Signals = field(default_factory=lambda: Signals(_NONE, _NONE, _NONE))
    # In the trace's clock: of the first and the last event, or of the host's looks at the processes, which are before and after them.
    start_ns: int = 0
    end_ns: int = 0
    left_out: int = 0  # calls that are counted without their thread, for there were too many different ones
