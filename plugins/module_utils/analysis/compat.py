# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out when a thread ran a 32-bit program on a 64-bit machine: its system calls have other numbers, and their events do not show it.

A child begins with the architecture of its parent. After an exec, the kernel records the exit of execve for 64-bit programs only
(arch_trace_is_compat_syscall): where that event is missing, the new program is a 32-bit one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_NEWTASK = "task:task_newtask"
_EXEC = "sched:sched_process_exec"
_EXIT_OF_EXEC = "syscalls:sys_exit_execve"
_END = 1 << 62


class CompatTasks:
    """The times at which threads ran 32-bit programs. Call `feed` with all batches, then `finish`, then `mark`.

    FIRST_TASKS and LAST_TASKS are the manifest's tasks at the trace's start and end. INTERVALS has, by tid, the spans (start, end).
    """

    def __init__(self, first_tasks: Iterable[dict[str, Any]], last_tasks: Iterable[dict[str, Any]]) -> None:
        self._first = {task["tid"]: bool(task.get("compat")) for task in first_tasks}
        self._last = {task["tid"]: bool(task.get("compat")) for task in last_tasks}
        self._births: list[tuple[int, int, int]] = []  # time, tid, tid of the parent
        self._execs: list[tuple[int, int]] = []
        self._exits: list[tuple[int, int]] = []
        self._can_tell = False
        self.intervals: dict[int, list[tuple[int, int]]] = {}

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Add the process events of BATCH; FORMATS are the trace's event formats by system:name."""
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
        """Fill INTERVALS with the spans, in nanoseconds of the trace's clock, in which each thread ran 32-bit programs."""
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
        """Return for each exec its time, its thread, and 1 if the new program is a 32-bit one, else 0."""
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
        """Add COMPAT, in place, to those of NUMBERS whose calls 32-bit programs made. Each parameter has one entry per event."""
        for tid, intervals in self.intervals.items():
            is_own = (tids == tid) & (numbers >= 0)
            for start, end in intervals:
                numbers[is_own & (times >= start) & (times < end)] += COMPAT
