# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A capture as rules see it: its cells, its long calls and what it knows of the container, with names instead of numbers.

This is the only place where findings touch the columns of a capture's tables.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence, Union

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    CONTINUED,
    DENIED,
    ERRNO_MASK,
    NEVER,
    NO_OBJECT,
    NOT_CONNECTED,
    ONLY_ENTRY,
    ONLY_EXIT,
    OTHER_OBJECTS,
    TIMED_OUT,
    TRAPPED,
    UNFINISHED,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture_columns import (
    CaptureTables,
    Column,
    Descriptors,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import (
    MAX_EVIDENCE,
    MAX_PIDS,
    Evidence,
    Finding,
    Place,
    Thing,
    choose_evidence,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.real_time import format_real_time
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import (
    RESTARTS,
    name_call,
    name_errno,
)

_UNKNOWN = "?"


@dataclass(frozen=True)
class Who:
    """The thread that made a call."""

    program: str  # name of its process's first thread at that time
    thread: str  # its own name
    tid: int  # on the host
    pid: int  # of its process, on the host
    container_pid: int | None


@dataclass(frozen=True)
class Outcome:
    """How a call ended."""

    error: str | None  # name of the errno
    denied: bool = False  # seccomp answered it
    trapped: bool = False  # by SIGSYS
    interrupted: bool = False  # a signal ended it early
    timed_out: bool = False  # its time was over
    not_connected: bool = False  # the connection that it began came to nothing
    unfinished: bool = False  # it did not end in the capture
    continued: bool = False  # it did not begin in it
    is_half: bool = False  # only its beginnings or only its ends are recorded: duration, or error, are not known


@dataclass(frozen=True)
class Cell:
    """Calls of one thread that were alike. Times are nanoseconds of the trace's clock."""

    who: Who
    call: str
    outcome: Outcome
    object: Thing | None
    count: int
    first_ns: int
    last_ns: int
    total_ns: int
    max_ns: int


@dataclass(frozen=True)
class LongCall:
    """One call that took long, or did not end. Times are nanoseconds of the trace's clock."""

    who: Who
    call: str
    outcome: Outcome
    object: Thing | None
    start_ns: int
    duration_ns: int
    args: tuple[int, ...]  # six; () where they are not known
    result: int


@dataclass(frozen=True)
class LeftOpen:
    """Descriptors of one process and one object that are open at the end of the capture. Times are nanoseconds of the trace's clock."""

    who: Who
    object: Thing | None
    count: int
    first_ns: int  # when the first of them was opened
    last_ns: int
    middle_ns: int  # when half of them were open


@dataclass(frozen=True)
class Process:
    """A process of a capture. Times are nanoseconds of the trace's clock."""

    pid: int  # on the host
    container_pid: int | None
    program: str  # the last name of its first thread
    begin_ns: int  # NEVER where it is older than the trace
    end_ns: int  # 0 where it has not ended in the trace
    status: int | None  # that it ended itself with; None where it did not, or nobody knows
    opened: int  # descriptors
    closed: int


@dataclass(frozen=True)
class Moment:
    """Something that happened to a process, or its life. Times are nanoseconds of the trace's clock."""

    who: Who  # its first thread, as it is called at the end
    first_ns: int
    last_ns: int
    count: int = 1


Row = Union[Cell, LongCall, LeftOpen, Moment]


@dataclass(frozen=True)
class Capture:
    """A capture as rules see it."""

    file: str  # its path, as the report names it
    tables: CaptureTables
    calls: Mapping[int, str]  # names of system calls by number
    manifest: Mapping[str, Any] = field(default_factory=dict)
    reasons: Sequence[str] = ()  # why it is not complete, in words

    @cached_property
    def place(self) -> Place:
        """Return where the capture is from."""
        host = self.manifest.get("inventory_hostname") or self.manifest.get("host") or ""
        return Place(host, (self.manifest.get("container") or {}).get("name") or "")

    @cached_property
    def loss(self) -> str | None:
        """Return what is missing in the capture, in words; None where it is complete or nobody knows."""
        if self.reasons:
            return "; ".join(self.reasons)[:200]
        lost = self.manifest.get("lost")
        return f"{lost} events were lost" if lost else None

    @cached_property
    def cells(self) -> list[Cell]:
        """Return the cells of the capture."""
        rows = self.tables.cells
        key = (rows.task, rows.number, rows.outcome, rows.object)
        columns = (*key, rows.count, rows.first_ns, rows.last_ns, rows.total_ns, rows.max_ns)
        return [
            Cell(
                who=self._who[task],
                call=name_call(number, self.calls),
                outcome=read_outcome(outcome),
                object=self._things[thing],
                count=count,
                first_ns=first,
                last_ns=last,
                total_ns=total,
                max_ns=longest,
            )
            for task, number, outcome, thing, count, first, last, total, longest in zip(*map(_list_numbers, columns))
        ]

    @cached_property
    def long_calls(self) -> list[LongCall]:
        """Return the longest calls of the capture and those that did not end in it."""
        rows = self.tables.long_calls
        columns = (rows.task, rows.number, rows.outcome, rows.object, rows.start_ns, rows.duration_ns, rows.result)
        return [
            LongCall(
                who=self._who[task],
                call=name_call(number, self.calls),
                outcome=read_outcome(outcome),
                object=self._things[thing],
                start_ns=start,
                duration_ns=duration,
                args=tuple(map(int, args)),
                result=result,
            )
            for (task, number, outcome, thing, start, duration, result), args in zip(
                zip(*map(_list_numbers, columns)), rows.args
            )
        ]

    def format_time(self, time_ns: int) -> str | None:
        """Return TIME_NS of the trace's clock as ISO 8601 in UTC; None when the manifest does not have the clock's offset."""
        return format_real_time(time_ns, self.manifest)

    def make_finding(self, rows: Iterable[Row], **parts: Any) -> Finding:
        """Return the finding that ROWS show: who, where, how often, first, last and evidence are theirs, the rest is in PARTS.

        PARTS may replace each of these.
        """
        shown = sorted(rows, key=_begin)
        pids = {row.who.container_pid for row in shown if row.who.container_pid is not None}
        known: dict[str, Any] = {
            "container_pids": tuple(sorted(pids)[:MAX_PIDS]),
            "where": (self.place,),
            "count": sum(1 if isinstance(row, LongCall) else row.count for row in shown),
            "first": self.format_time(_begin(shown[0])),
            "last": self.format_time(max(map(_end, shown))),
            "evidence": choose_evidence(
                Evidence(self.file, self.format_time(_begin(row))) for row in shown[:MAX_EVIDENCE]
            ),
            "missing": self.loss,
            "image": self._image if _is_about_program(parts.get("object")) else "",
        }
        return Finding(**{**known, **parts})

    @cached_property
    def _image(self) -> str:
        """Return the name of the container's image; "" where nobody knows."""
        return str((self.manifest.get("container") or {}).get("image") or "")

    @property
    def threads(self) -> Sequence[Who]:
        """Return the threads in the order of the table of tasks."""
        return self._who

    @property
    def length_ns(self) -> int:
        """Return how long the trace is, from its beginning to its end."""
        return self.tables.end_ns - self.tables.start_ns

    @cached_property
    def left_open(self) -> list[LeftOpen]:
        """Return the descriptors that were opened in the capture and are open at its end, by process and object."""
        return self._list_opened(self.tables.descriptors)

    @cached_property
    def high_opened(self) -> dict[int, LeftOpen]:
        """Return the descriptors that were opened with numbers too high to be followed, by the number of the process on the host."""
        return {row.who.pid: row for row in self._list_opened(self.tables.high_descriptors)}

    def _list_opened(self, rows: Descriptors) -> list[LeftOpen]:
        pids = _list_numbers(self.tables.processes.pid)
        columns = (rows.process, rows.object, rows.count, rows.first_ns, rows.last_ns, rows.middle_ns or rows.last_ns)
        return [
            LeftOpen(self._leaders[pids[process]], self._things[thing], *numbers)
            for process, thing, *numbers in zip(*map(_list_numbers, columns))
            if pids[process] in self._leaders
        ]

    @cached_property
    def processes(self) -> dict[int, Process]:
        """Return the processes by their number on the host; where two had one number, the later one."""
        rows = self.tables.processes
        pids = _list_numbers(rows.pid)
        columns = [
            _list_numbers(column) or [default] * len(pids)
            for column, default in (
                (rows.container_pid, -1),
                (rows.begin_ns, NEVER),
                (rows.end_ns, 0),
                (rows.status, -1),
                (rows.opened, 0),
                (rows.closed, 0),
            )
        ]
        return {
            pid: Process(
                pid,
                inside if inside >= 0 else None,
                self._leaders[pid].program if pid in self._leaders else _UNKNOWN,
                begin,
                end,
                status if status >= 0 else None,
                opened,
                closed,
            )
            for pid, inside, begin, end, status, opened, closed in zip(pids, *columns)
        }

    @cached_property
    def _leaders(self) -> dict[int, Who]:
        """Return the first threads of processes by the processes' numbers, with their last names; any thread where that one made no call."""
        return {who.pid: who for who in sorted(self._who, key=lambda who: who.tid == who.pid)}

    @cached_property
    def _things(self) -> list[Thing | None]:
        return [
            None if number in (NO_OBJECT, OTHER_OBJECTS) else Thing(kind, text)
            for number, (kind, text) in enumerate(self.tables.objects)
        ]

    @cached_property
    def _who(self) -> list[Who]:
        tasks, processes = self.tables.tasks, self.tables.processes
        pids, inside = _list_numbers(processes.pid), _list_numbers(processes.container_pid)
        begins = _list_numbers(tasks.begin_ns) or [NEVER] * len(tasks.name)
        rows = list(zip(tasks.name, _list_numbers(tasks.tid), _list_numbers(tasks.process), begins))
        # A process is called by its first thread, which an exec renames, and by any thread where that one made no call.
        leaders: dict[int, list[tuple[int, str]]] = {}
        any_name: dict[int, str] = {}
        for name, tid, process, begin in rows:
            any_name.setdefault(process, name or _UNKNOWN)
            if tid == pids[process]:
                leaders.setdefault(process, []).append((begin, name or _UNKNOWN))
        return [
            Who(
                program=_find_name(leaders.get(process), begin) or any_name[process],
                thread=name or _UNKNOWN,
                tid=tid,
                pid=pids[process],
                container_pid=inside[process] if inside[process] >= 0 else None,
            )
            for name, tid, process, begin in rows
        ]


def _find_name(names: list[tuple[int, str]] | None, time: int) -> str | None:
    """Return which of NAMES, pairs of beginning and name in their order, held at TIME; the first one if none did."""
    if not names:
        return None
    return names[max(0, bisect.bisect_right(names, (time, chr(0x10FFFF))) - 1)][1]


def read_outcome(outcome: int) -> Outcome:
    """Return what the number OUTCOME in the tables means."""
    number = outcome & ERRNO_MASK
    return Outcome(
        error=name_errno(number) if number else None,
        denied=bool(outcome & DENIED),
        trapped=bool(outcome & TRAPPED),
        interrupted=number in RESTARTS,
        timed_out=bool(outcome & TIMED_OUT),
        not_connected=bool(outcome & NOT_CONNECTED),
        unfinished=bool(outcome & UNFINISHED),
        continued=bool(outcome & CONTINUED),
        is_half=bool(outcome & (ONLY_ENTRY | ONLY_EXIT)),
    )


def group(cells: Iterable[Cell], key: Callable[[Cell], Any]) -> Iterator[tuple[Any, list[Cell]]]:
    """Yield each value of KEY with those of CELLS that have it, in the order of their first cells."""
    found: dict[Any, list[Cell]] = {}
    for cell in cells:
        found.setdefault(key(cell), []).append(cell)
    yield from found.items()


def _is_about_program(thing: Thing | None) -> bool:
    return thing is None or thing.kind == "program"


def _begin(row: Row) -> int:
    return row.start_ns if isinstance(row, LongCall) else row.first_ns


def _end(row: Row) -> int:
    return row.start_ns + row.duration_ns if isinstance(row, LongCall) else row.last_ns


def _list_numbers(column: Column) -> list[int]:
    """Return COLUMN, of numpy or not, as Python's numbers."""
    return column.tolist() if hasattr(column, "tolist") else list(column)
