# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the name of a thread at a time, and its number inside the container, after a pass over the whole trace.

The kernel reuses the numbers of threads, so what a number means depends on the time.
"""

from __future__ import annotations

import bisect
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import State, decode_name

UNKNOWN_NAME = "?"
_IDLE = 0, "<idle>"  # a CPU that has nothing to do, as trace-cmd names it


class Histories:
    """The tasks of STATE, the state of a finished pass, by thread and time. MANIFEST has the tasks at the trace's start and end.

    NAMES has the name of each task, '?' where it is not known. All times are nanoseconds of the trace's clock.
    """

    def __init__(self, state: State, manifest: Mapping[str, Any]) -> None:
        self._first, self._last = (
            {one["tid"]: one for one in manifest.get(key) or []} for key in ("first_tasks", "tasks")
        )
        self._hints = {**_read_hints(state), _IDLE[0]: _IDLE[1]}
        self._times: dict[int, list[int]] = {}
        self._tasks: dict[int, list[int]] = {}
        self._births: dict[int, list[int]] = {}
        rows = state.tasks[: state.scalars[codes.TASKS]]
        names = state.task_names[: len(rows)].tolist()
        self.names = [_decode(name) for name in names]
        for task, row in enumerate(rows.tolist()[1:], 1):
            tid, time = row[codes.TASK_TID], row[codes.TASK_BEGIN]
            times, tasks = self._times.setdefault(tid, []), self._tasks.setdefault(tid, [])
            if times and time < times[-1]:
                continue  # the thread had ended, and something that it did came behind that
            times.append(time)
            tasks.append(task)
            if row[codes.IS_BIRTH]:
                self._births.setdefault(tid, []).append(time)
        for task in self._tasks.get(_IDLE[0], ()):
            self.names[task] = _IDLE[1]
        for tasks in self._tasks.values():
            # A name from the trace's end is not that of a thread whose name has changed since.
            if len(tasks) > 1 and rows[tasks[0], codes.IS_NAME_GUESSED]:
                self.names[tasks[0]] = UNKNOWN_NAME

    def find_task(self, tid: int, time: int) -> int:
        """Return the index of the task that thread TID was at TIME; 0 where the pass has met no such thread."""
        times = self._times.get(tid)
        return self._tasks[tid][max(bisect.bisect_right(times, time) - 1, 0)] if times else 0

    def find_name(self, tid: int, time: int) -> str:
        """Return the name of thread TID at TIME; '?' when it is not known."""
        task = self.find_task(tid, time)
        return self.names[task] if task else self._hints.get(tid, UNKNOWN_NAME)

    def find_container_pid(self, tid: int, time: int) -> int | None:
        """Return the number, inside the container, of the thread with TID at TIME; None when it ended before that number was read."""
        births = self._births.get(tid, [])
        # A task of the trace's start is the first thread with its number, and a task of the end the last one.
        task = self._first.get(tid) if not births or time < births[0] else None
        if task is None and (not births or time >= births[-1]):
            task = self._last.get(tid)
        return task["container_tid"] if task else None


def _decode(name: Any) -> str:
    return decode_name(name) or UNKNOWN_NAME


def _read_hints(state: State) -> dict[int, str]:
    count = state.scalars[codes.HINTS]
    tids = state.hints[:count, codes.HINT_TID].tolist()
    return dict(zip(tids, map(_decode, state.hint_names[:count].tolist())))
