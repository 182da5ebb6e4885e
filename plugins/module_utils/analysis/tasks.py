# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the process and the name of a thread at a time, by the process events of a trace and the tasks at its start and end.

The kernel's list of names has only the last name of each thread, while the events have all changes. The kernel reuses the numbers of
threads, so the process that a number belongs to depends on the time, too.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from typing import Any, Generic, Iterable, TypeVar

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat

_CLONE_THREAD = 0x10000
_MAX_NAME = 15
UNKNOWN_NAME = "?"
_BEGIN = -(1 << 62)
_BIRTH, _RENAME, _EXEC = range(3)  # changes of the same time happened in this order
_Value = TypeVar("_Value")


@dataclass
class _History(Generic[_Value]):
    """The names, or the processes, of one thread: VALUES[i] holds from TIMES[i] on."""

    times: list[int] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)

    def add(self, time: int, value: _Value) -> None:
        self.times.append(time)
        self.values.append(value)

    def find(self, time: int) -> _Value:
        return self.values[bisect.bisect_right(self.times, time) - 1]


@dataclass(frozen=True)
class Process:
    """One process in a trace."""

    number: int  # unique in the trace, also among processes of the same PID
    pid: int  # on the host
    container_pid: int | None  # inside the container; None when the process ended before this number was read


@dataclass(frozen=True)
class _Change:
    """A change of one thread: its birth, a new name, or a new program."""

    time: int  # nanoseconds of the trace's clock
    kind: int  # _BIRTH, _RENAME or _EXEC
    tid: int
    name: str  # from now on
    other: int = 0  # of a birth, the parent; of an exec, the thread's number before it
    old: str = ""  # of a rename, the name before it
    is_thread: bool = False  # of a birth: in the process of the parent


class TaskNames:
    """The names and processes of threads at all times of a trace. Call `feed` with all batches, then `finish`, then the others.

    FIRST_TASKS and LAST_TASKS are the manifest's tasks at the trace's start and end, CMDLINES the kernel's list of names
    (saved_cmdlines). All times are nanoseconds of the trace's clock. PROCESSES has each Process at the index of its number.
    """

    def __init__(
        self, first_tasks: Iterable[dict[str, Any]], last_tasks: Iterable[dict[str, Any]], cmdlines: bytes
    ) -> None:
        self._first = {task["tid"]: task for task in first_tasks}
        self._last = {task["tid"]: task for task in last_tasks}
        self._saved_names: dict[int, str] = {}
        for line in cmdlines.decode("utf-8", "replace").splitlines():
            tid, _space, name = line.partition(" ")
            if re.fullmatch(r"[0-9]{1,9}", tid):
                self._saved_names[int(tid)] = name
        self._changes: list[_Change] = []
        self._births: dict[int, list[int]] = {}
        self._names: dict[int, _History[str]] = {}
        self._owners: dict[int, _History[Process]] = {}
        self.processes: list[Process] = []

    def feed(self, batch: Batch, formats: dict[str, EventFormat]) -> None:
        """Add the process events of BATCH; FORMATS are the trace's event formats by system:name."""
        newtask = formats.get("task:task_newtask")
        if newtask:
            events = batch.select(newtask.id)
            pids = batch.integers(events, newtask.field("pid"))
            flags = batch.integers(events, newtask.field("clone_flags"))
            for event, pid, flag in zip(events.tolist(), pids.tolist(), flags.tolist()):
                name, parent = batch.text(event, newtask.field("comm")), int(batch.tids[event])
                is_thread = bool(flag & _CLONE_THREAD)
                self._changes.append(
                    _Change(int(batch.times[event]), _BIRTH, pid, name, other=parent, is_thread=is_thread)
                )
        rename = formats.get("task:task_rename")
        if rename:
            # Some kernels have no field `pid` here: a thread may rename only itself, or a thread of its process.
            pid_field = rename.fields.get("pid")
            events = batch.select(rename.id)
            pids = batch.integers(events, pid_field) if pid_field else batch.tids[events]
            for event, pid in zip(events.tolist(), pids.tolist()):
                old = batch.text(event, rename.field("oldcomm")) if "oldcomm" in rename.fields else ""
                new = batch.text(event, rename.field("newcomm"))
                self._changes.append(_Change(int(batch.times[event]), _RENAME, pid, new, old=old))
        execed = formats.get("sched:sched_process_exec")
        if execed and {"filename", "pid", "old_pid"} <= set(execed.fields):
            events = batch.select(execed.id)
            rows = (batch.integers(events, execed.field(name)).tolist() for name in ("pid", "old_pid"))
            for event, pid, old_pid in zip(events.tolist(), *rows):
                # On an exec, the kernel names the thread after the last part of the program's path.
                name = batch.text(event, execed.field("filename")).rpartition("/")[2]
                name = name.encode()[:_MAX_NAME].decode("utf-8", "replace")
                self._changes.append(_Change(int(batch.times[event]), _EXEC, pid, name, other=old_pid))

    def finish(self) -> None:
        """Sort all changes by time, and build the history of each thread's names and processes from them."""
        self._changes.sort(key=lambda change: (change.time, change.kind))
        for change in self._changes:
            if change.kind == _BIRTH:
                self._births.setdefault(change.tid, []).append(change.time)
        named: set[int] = set()  # threads with a rename since their last exec
        for change in self._changes:
            if change.kind == _BIRTH:
                self._note_birth(change)
            elif change.kind == _RENAME:
                self._note_name(change.tid, change.time, change.name, change.old)
                named.add(change.tid)
            else:
                if change.other != change.tid:
                    self._note_exec_of_thread(change)
                if change.tid not in named:
                    # The kernel also records an exec as a rename. Here a filter has left that event out.
                    self._note_name(change.tid, change.time, change.name, self._find_first_name(change.tid))
                named.discard(change.tid)

    def _note_birth(self, change: _Change) -> None:
        parent = self._find_owner(change.other, change.time)
        own = parent if change.is_thread else self._make_process(change.tid, change.time)
        history = self._owners.get(change.tid)
        if history is None:
            history = self._owners[change.tid] = _History([_BEGIN], [self._find_first_owner(change.tid)])
        history.add(change.time, own)
        self._note_name(change.tid, change.time, change.name, self._find_first_name(change.tid, change.name))

    def _note_name(self, tid: int, time: int, name: str, before: str) -> None:
        """Record that TID is called NAME from TIME on; BEFORE is its first name if no change came earlier."""
        history = self._names.get(tid)
        if history is None:
            history = self._names[tid] = _History([_BEGIN], [before or self._find_last_name(tid)])
        history.add(time, name)

    def _note_exec_of_thread(self, change: _Change) -> None:
        """Correct the first name of a process's number that another thread took over by an exec.

        The rename of the exec has the name of that other thread, which the former thread of this number need not have had.
        """
        history = self._names.get(change.tid)
        if history and len(history.times) == 2 and history.values[0] == self.find_name(change.other, change.time):
            history.values[0] = self._find_first_name(change.tid)

    def _find_first_name(self, tid: int, otherwise: str = UNKNOWN_NAME) -> str:
        task = self._first.get(tid)
        return task["comm"] if task else otherwise

    def _find_last_name(self, tid: int) -> str:
        task = self._last.get(tid) or self._first.get(tid)
        return task["comm"] if task else self._saved_names.get(tid, UNKNOWN_NAME)

    def _make_process(self, pid: int, time: int) -> Process:
        made = Process(len(self.processes), pid, self.find_container_pid(pid, time))
        self.processes.append(made)
        return made

    def _find_first_owner(self, tid: int) -> Process:
        """Return the process of the first thread that had the number TID."""
        task = self._first.get(tid) or (None if tid in self._births else self._last.get(tid))
        pid = task["tgid"] if task else tid
        if pid == tid:
            return self._make_process(pid, _BEGIN)
        if pid not in self._owners:
            self._owners[pid] = _History([_BEGIN], [self._make_process(pid, _BEGIN)])
        return self._owners[pid].values[0]

    def _find_owner(self, tid: int, time: int) -> Process:
        history = self._owners.get(tid)
        if history is None:
            history = self._owners[tid] = _History([_BEGIN], [self._find_first_owner(tid)])
        return history.find(time)

    def find_name(self, tid: int, time: int) -> str:
        """Return the name of thread TID at TIME; '?' when it is not known."""
        history = self._names.get(tid)
        return history.find(time) if history else self._find_last_name(tid)

    def list_changes(self, tid: int) -> list[int]:
        """Return the times, sorted, at which the number TID got another name or another process."""
        names, owners = self._names.get(tid), self._owners.get(tid)
        return sorted({*(names.times[1:] if names else ()), *(owners.times[1:] if owners else ())})

    def find_process(self, tid: int, time: int) -> Process:
        """Return the process that thread TID belonged to at TIME; a process of the number TID when nothing is known."""
        return self._find_owner(tid, time)

    def find_container_pid(self, tid: int, time: int) -> int | None:
        """Return the number, inside the container, of the thread with TID at TIME; None when it ended before that number was read."""
        births = self._births.get(tid, [])
        # A task of the trace's start is the first thread with its number, and a task of the end the last one.
        task = self._first.get(tid) if not births or time < births[0] else None
        if task is None and (not births or time >= births[-1]):
            task = self._last.get(tid)
        return task["container_tid"] if task else None
