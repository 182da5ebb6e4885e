# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a thread ran a 32-bit program on a 64-bit machine: its system calls have other numbers then, and no event says so.

A child is what its parent is. After an exec the kernel gives the event of execve's exit to 64-bit programs only
(arch_trace_is_compat_syscall), so where it is missing the program is a 32-bit one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

# Added to the number of a 32-bit program's call. Numbers themselves have 32 bits, and programs may make up any of these.
COMPAT = 1 << 32
_NEWTASK = "task:task_newtask"
_EXEC = "sched:sched_process_exec"
_EXIT_OF_EXEC = "syscalls:sys_exit_execve"
_END = 1 << 62


class CompatTasks:
    """Answers when threads ran 32-bit programs. Feed it all batches first, then `finish`.

    FIRST_TASKS and LAST_TASKS are the manifest's tasks of the trace's start and end.
    """

    def __init__(self, first_tasks: Iterable[dict[str, Any]], last_tasks: Iterable[dict[str, Any]]) -> None:
        self._first = {task["tid"]: bool(task.get("compat")) for task in first_tasks}
        self._last = {task["tid"]: bool(task.get("compat")) for task in last_tasks}
        self._births: list[tuple[int, int, int]] = []  # time, tid, tid of who made it
        self._execs: list[tuple[int, int]] = []
        self._exits: list[tuple[int, int]] = []
        self._can_tell = False
        self.intervals: dict[int, list[tuple[int, int]]] = {}

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Take the process events of BATCH into account."""
        self._can_tell |= _EXIT_OF_EXEC in formats and _EXEC in formats
        if _NEWTASK in formats:
            events = batch.select(formats[_NEWTASK].id)
            children = batch.integers(events, formats[_NEWTASK].field("pid"))
            self._births.extend(zip(batch.times[events].tolist(), children.tolist(), batch.tids[events].tolist()))
        for name, moments in ((_EXEC, self._execs), (_EXIT_OF_EXEC, self._exits)):
            if name in formats:
                events = batch.select(formats[name].id)
                moments.extend(zip(batch.times[events].tolist(), batch.tids[events].tolist()))

    def finish(self) -> None:
        """Find the times, in nanoseconds of the trace's clock, between which each thread ran 32-bit programs."""
        execs = self._judge_execs() if self._can_tell else []
        known = {tid for _time, tid, _is_compat in execs}
        state = {tid: value for tid, value in self._last.items() if tid not in known}
        state.update(self._first)
        open_since = {tid: -_END for tid, value in state.items() if value}
        changes = [(time, 0, tid, parent) for time, tid, parent in self._births]
        changes += [(time, 1, tid, is_compat) for time, tid, is_compat in execs]
        for time, is_exec, tid, value in sorted(changes):
            is_compat = bool(value) if is_exec else value in open_since
            if is_compat:
                open_since.setdefault(tid, time)
            elif tid in open_since:
                self.intervals.setdefault(tid, []).append((open_since.pop(tid), time))
        for tid, since in open_since.items():
            self.intervals.setdefault(tid, []).append((since, _END))

    def _judge_execs(self) -> list[tuple[int, int, int]]:
        """Time, thread, and 1 where the new program is a 32-bit one, for each exec."""
        judged = []
        pending: dict[int, int] = {}
        for time, is_exit, tid in sorted(
            [(t, 0, tid) for t, tid in self._execs] + [(t, 1, tid) for t, tid in self._exits]
        ):
            if tid in pending:
                judged.append((pending.pop(tid), tid, 0 if is_exit else 1))
            if not is_exit:
                pending[tid] = time
        return judged + [(time, tid, 1) for tid, time in pending.items()]

    def mark(self, tids: Ints, times: Ints, numbers: Ints) -> None:
        """Add COMPAT to NUMBERS where 32-bit programs made the calls; one entry per event in each."""
        for tid, intervals in self.intervals.items():
            is_own = (tids == tid) & (numbers >= 0)
            for start, end in intervals:
                numbers[is_own & (times >= start) & (times < end)] += COMPAT
