# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which process and which name a thread had at a time, from the process events of a trace and what was known besides.

The kernel's list of names knows only the last name of each thread; these events know all that changed meanwhile.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from typing import Any, Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat

_CLONE_THREAD = 0x10000
UNKNOWN_NAME = "?"


@dataclass
class _History:
    """Names of one thread: from TIMES[i] on it was NAMES[i]."""

    times: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


class TaskNames:
    """Answers who thread TID was at a time. Feed it all batches first, then `finish`."""

    def __init__(self, manifest_tasks: Iterable[dict[str, Any]], cmdlines: bytes) -> None:
        self._changes: list[tuple[int, int, str, str]] = []  # time, tid, name before, name after
        self._births: list[tuple[int, int, int]] = []  # time, tid, for a thread the tid that made it
        self._histories: dict[int, _History] = {}
        self._processes: dict[int, int] = {}
        self._container_tids: dict[int, int] = {}
        self._last_names: dict[int, str] = {}
        for line in cmdlines.decode("utf-8", "replace").splitlines():
            tid, _space, name = line.partition(" ")
            if re.fullmatch(r"[0-9]{1,9}", tid):
                self._last_names[int(tid)] = name
        for task in manifest_tasks:
            self._processes[task["tid"]] = task["tgid"]
            self._container_tids[task["tid"]] = task["container_tid"]
            self._last_names[task["tid"]] = task["comm"]

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Take the process events of BATCH into account."""
        newtask = formats.get("task:task_newtask")
        if newtask:
            events = batch.select(newtask.id)
            pids = batch.integers(events, newtask.field("pid"))
            flags = batch.integers(events, newtask.field("clone_flags"))
            for event, pid, flag in zip(events.tolist(), pids.tolist(), flags.tolist()):
                parent = int(batch.tids[event])
                self._births.append((int(batch.times[event]), pid, parent if flag & _CLONE_THREAD else 0))
                name = batch.text(event, newtask.field("comm"))
                self._changes.append((int(batch.times[event]), pid, name, name))
        rename = formats.get("task:task_rename")
        if rename:
            # 6.14 dropped the pid field: a thread may only rename itself there, or a thread of its process.
            pid_field = rename.fields.get("pid")
            events = batch.select(rename.id)
            pids = batch.integers(events, pid_field) if pid_field else batch.tids[events]
            for event, pid in zip(events.tolist(), pids.tolist()):
                old = batch.text(event, rename.field("oldcomm")) if "oldcomm" in rename.fields else ""
                self._changes.append((int(batch.times[event]), pid, old, batch.text(event, rename.field("newcomm"))))

    def finish(self) -> None:
        """Put what was fed in order."""
        for _time, tid, parent in sorted(self._births):
            self._processes[tid] = self._processes.get(parent, parent) if parent else tid
        for time, tid, old, new in sorted(self._changes):
            history = self._histories.get(tid)
            if history is None:
                history = self._histories[tid] = _History(
                    [-(1 << 62)], [old or self._last_names.get(tid, UNKNOWN_NAME)]
                )
            history.times.append(time)
            history.names.append(new)

    def find_name(self, tid: int, time: int) -> str:
        """The name of TID at TIME (nanoseconds of the trace's clock)."""
        history = self._histories.get(tid)
        if history is None:
            return self._last_names.get(tid, UNKNOWN_NAME)
        return history.names[bisect.bisect_right(history.times, time) - 1]

    def list_renames(self, tid: int) -> list[int]:
        """Times at which TID got another name."""
        history = self._histories.get(tid)
        return history.times[1:] if history else []

    def find_process(self, tid: int) -> int:
        """The process that TID belongs to, as the host numbers it; TID itself where nothing is known."""
        return self._processes.get(tid, tid)

    def find_container_pid(self, pid: int) -> int | None:
        """The number of process PID inside the container; None where it had ended before anyone looked."""
        return self._container_tids.get(pid)
