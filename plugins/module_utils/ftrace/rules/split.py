# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sort the events of a rule's ring buffers by the container that they are of, into pages of the same form.

A thread belongs to the container to which it was added, or to that of the thread that made it, which the event task_newtask tells. A thread
that a runtime has made, and that was added to a container later, belongs to the container from its birth.
Source of the form of pages: include/linux/ring_buffer.h.
"""

from __future__ import annotations

import re
import struct
import sys
from bisect import bisect_right
from dataclasses import dataclass
from types import MappingProxyType
from typing import Callable, Iterable, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.ring_pages import (
    MISSED_EVENTS,
    PADDING,
    PAGE_HEADER_SIZE,
    TIME_EXTEND,
    unpack_commit,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import is_runtimes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.starts_log import RUNTIMES

_DELTA_BITS = 27
_DELTA_LIMIT = 1 << _DELTA_BITS
_LOW_TIME_BITS = (1 << 59) - 1
_WORD = struct.Struct("I")
_TWO_WORDS = struct.Struct("II")
_HEADER = struct.Struct("QQ")
_COMMON = struct.Struct("HBBi")  # common_type, common_flags, common_preempt_count, common_pid
_IS_LITTLE = sys.byteorder == "little"
_NAME_BYTES = 16
_CLOCKS_DIFFER_NS = 10_000_000
# Between the birth of a container's first process and the look that finds it in the container's group.
_START_NS = 10_000_000_000
_FIELD = re.compile(r"field:[^;]*?\b(pid|comm)(?:\[\d+\])?;\s*offset:(\d+);")
_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)

_EARLIER, _ROOT, _BIRTH = -1, 0, 1

# Processes the raw bytes of an event: time, common_type, thread, and its record (what follows the first word of the entry).
_Event = Callable[[int, int, int, bytes, int], None]


@dataclass(frozen=True)
class NewTask:
    """How the event task_newtask looks on this host: its number, and where in its record the new thread's id and name are."""

    number: int
    pid_offset: int
    comm_offset: int


def parse_number(format_text: str) -> int:
    """Return the number of the event that FORMAT_TEXT describes. Raises ValueError for another text."""
    number = _ID.search(format_text)
    if number is None:
        raise ValueError("the kernel's description of an event has another form")
    return int(number.group(1))


def parse_new_task(format_text: str) -> NewTask:
    """Return how task_newtask looks, from FORMAT_TEXT, the kernel's description of it. Raises ValueError for another text."""
    offsets = {name: int(offset) for name, offset in _FIELD.findall(format_text)}
    if not {"pid", "comm"} <= offsets.keys():
        raise ValueError("the kernel's description of task_newtask has another form")
    return NewTask(parse_number(format_text), offsets["pid"], offsets["comm"])


class Owners:
    """Which container each thread belongs to, and since when."""

    def __init__(self) -> None:
        self._times: dict[int, list[int]] = {}
        self._owners: dict[int, list[int]] = {}

    def add(self, time_ns: int, tid: int, owner: int) -> None:
        """Note that thread TID belongs to OWNER from TIME_NS on; times of one thread have to grow."""
        self._times.setdefault(tid, []).append(time_ns)
        self._owners.setdefault(tid, []).append(owner)

    def find(self, time_ns: int, tid: int) -> int | None:
        """Return the owner of thread TID at TIME_NS; None if it is not known."""
        times = self._times.get(tid)
        if times is None:
            return None
        place = bisect_right(times, time_ns) - 1
        if place < 0:
            # Clocks of two CPUs may differ by a little.
            return self._owners[tid][0] if times[0] - time_ns <= _CLOCKS_DIFFER_NS else None
        return self._owners[tid][place]

    def list_last(self, most: int) -> dict[int, int]:
        """Return thread → owner, each at its last time, for the MOST threads that came last."""
        latest = sorted(self._times, key=lambda tid: self._times[tid][-1])[-most:]
        return {tid: self._owners[tid][-1] for tid in latest}


def find_owners(
    roots: Iterable[tuple[int, int, int]],
    pages: Iterable[bytes],
    page_size: int,
    new_task: NewTask,
    earlier: Mapping[int, int] = MappingProxyType({}),
) -> Owners:
    """Return the owners of all threads: of ROOTS (time in ns, thread, owner), and of what they have made, by the events in PAGES.

    EARLIER: thread → owner at the end of what is sorted already.
    """
    births: list[tuple[int, int, int, int]] = []

    def note(time_ns: int, kind: int, tid: int, data: bytes, at: int) -> None:
        if kind == new_task.number:
            births.append((time_ns, _BIRTH, _read_int(data, at + new_task.pid_offset), tid))

    for page in pages:
        _walk(page, page_size, note)
    # At the same time a root comes before a birth.
    entries = sorted([*births, *((time, _ROOT, tid, owner) for time, tid, owner in roots)])
    begin_ns = entries[0][0] if entries else 0
    entries = [*((begin_ns, _EARLIER, tid, owner) for tid, owner in earlier.items()), *entries]
    owners = Owners()
    for (time_ns, kind, tid, other), added in zip(entries, _find_added(entries)):
        owner = owners.find(time_ns, other) if kind == _BIRTH else other
        if owner == RUNTIMES and added is not None:
            owner = added
        if owner is not None:
            owners.add(0 if kind == _EARLIER else time_ns, tid, owner)
    return owners


def _find_added(entries: list[tuple[int, int, int, int]]) -> list[int | None]:
    """Return for each of ENTRIES (time, kind, thread, other) to which container its thread was added soon after that.

    The times are in nanoseconds. None stands for roots, and for threads that were not added.
    """
    found: list[int | None] = []
    latest: dict[int, tuple[int, int]] = {}
    for time_ns, kind, tid, other in reversed(entries):
        root_ns, owner = latest.get(tid, (0, RUNTIMES))
        is_added = kind != _ROOT and owner != RUNTIMES and root_ns - time_ns <= _START_NS
        found.append(owner if is_added else None)
        if kind == _ROOT:
            latest[tid] = time_ns, other
        else:
            latest.pop(tid, None)
    found.reverse()
    return found


def _read_int(data: bytes, at: int) -> int:
    return int(struct.unpack_from("i", data, at)[0])


class Splitter:
    """Sorts the pages of one CPU by OWNERS; KEEP says which owners' events are kept.

    STRANGE: the number of events whose owner is not known. COUNTS: owner → number of events. FIRST: owner → time and number of its first.
    """

    def __init__(self, owners: Owners, new_task: NewTask, page_size: int, keep: Callable[[int], bool]) -> None:
        self._owners = owners
        self._new_task = new_task
        self._page_size = page_size
        self._keep = keep
        self._builders: dict[int, PageBuilder] = {}
        self.strange = 0
        self.counts: dict[int, int] = {}
        self.first: dict[int, tuple[int, int]] = {}

    def split(self, page: bytes) -> Iterator[tuple[int, bytes]]:
        """Sort the events of PAGE, and yield (owner, page) for each page that is full."""
        full: list[tuple[int, bytes]] = []
        _size, is_missed, _stored = unpack_commit(_HEADER.unpack_from(page)[1])
        if is_missed:
            for builder in self._builders.values():
                builder.is_missed = True

        def sort(time_ns: int, kind: int, tid: int, data: bytes, at: int) -> None:
            if kind == self._new_task.number and self._is_runtimes(data, at):
                return
            owner = self._owners.find(time_ns, tid)
            if owner is None:
                self.strange += 1
                return
            if not self._keep(owner):
                return
            builder = self._builders.get(owner)
            if builder is None:
                builder = self._builders[owner] = PageBuilder(self._page_size)
                self.first[owner] = time_ns, kind
            self.counts[owner] = self.counts.get(owner, 0) + 1
            done = builder.add(time_ns, data)
            if done is not None:
                full.append((owner, done))

        _walk(page, self._page_size, sort)
        yield from full

    def finish(self) -> Iterator[tuple[int, bytes]]:
        """Yield (owner, page) for the pages that are not full."""
        for owner, builder in self._builders.items():
            page = builder.finish()
            if page is not None:
                yield owner, page

    # Of what the runtime does on the way to a container's program nothing belongs to the container.
    def _is_runtimes(self, data: bytes, at: int) -> bool:
        place = at + self._new_task.comm_offset
        return is_runtimes(data[place : place + _NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace"))


def _walk(page: bytes, page_size: int, see: _Event) -> None:
    """Call SEE(time, common_type, thread, entry without its first word's time, offset of the record in it) for each event of PAGE."""
    clock, commit = _HEADER.unpack_from(page)
    at = PAGE_HEADER_SIZE
    end = min(at + unpack_commit(commit)[0], page_size)
    while at + 4 <= end:
        (word,) = _WORD.unpack_from(page, at)
        kind, delta = (word & 31, word >> 5) if _IS_LITTLE else (word >> _DELTA_BITS, word & _DELTA_LIMIT - 1)
        record = 4
        if 0 < kind < PADDING:
            size = 4 + 4 * kind
        elif at + 8 > end or (kind == PADDING and delta == 0):
            return
        else:
            (more,) = _WORD.unpack_from(page, at + 4)
            if kind >= TIME_EXTEND:
                wide = (more << _DELTA_BITS) + delta
                clock = clock + wide if kind == TIME_EXTEND else wide & _LOW_TIME_BITS | clock & ~_LOW_TIME_BITS
                at += 8
                continue
            size, record = 4 + (more + 3 & ~3), 8
        if size < 8 or at + size > end:
            return
        clock += delta
        if kind != PADDING and size >= record + _COMMON.size:
            number, _flags, _count, tid = _COMMON.unpack_from(page, at + record)
            see(clock, number, tid, page[at : at + size], record)
        at += size


class PageBuilder:
    """Builds pages of PAGE_SIZE bytes of events; IS_MISSED says that events are missing before the next one."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._parts: list[bytes] = []
        self._size = 0
        self._begin = self._clock = 0
        self._flags = 0
        self.is_missed = False

    def add(self, time_ns: int, entry: bytes) -> bytes | None:
        """Add the event of ENTRY, all bytes of its entry in the ring buffer, at TIME_NS; return the page before if that is full."""
        full = None
        delta = time_ns - self._clock
        needed = len(entry) + (8 if delta >= _DELTA_LIMIT else 0)
        if self._parts and (self.is_missed or self._size + needed > self._page_size - PAGE_HEADER_SIZE):
            full = self.finish()
        if not self._parts:
            self._begin = self._clock = time_ns
            self._flags = MISSED_EVENTS if self.is_missed else 0
            self.is_missed = False
            delta = 0
        if delta >= _DELTA_LIMIT:
            self._append(_TWO_WORDS.pack(_pack(TIME_EXTEND, delta & _DELTA_LIMIT - 1), delta >> _DELTA_BITS))
            delta = 0
        (word,) = _WORD.unpack_from(entry)
        kind = word & 31 if _IS_LITTLE else word >> _DELTA_BITS
        self._append(_WORD.pack(_pack(kind, max(0, delta))) + entry[4:])
        self._clock = max(self._clock, time_ns)
        return full

    def _append(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)

    def finish(self) -> bytes | None:
        """Return the page that is begun, and begin another; None if it has no event."""
        if not self._parts:
            return None
        page = _HEADER.pack(self._begin, self._size | self._flags) + b"".join(self._parts)
        self._parts, self._size = [], 0
        return page.ljust(self._page_size, b"\0")


def _pack(kind: int, delta: int) -> int:
    return kind | delta << 5 if _IS_LITTLE else kind << _DELTA_BITS | delta
