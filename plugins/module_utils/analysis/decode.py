# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decode the pages of a trace.dat into columns of events.

All pages of a batch are decoded in lockstep, one event of each page per step, so that numpy does the work.
Source: the kernel's ring_buffer.c and events/header_event (type_len and its special values).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field, read_formats
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    ring_pages,
    trace_dat,
    trace_dat_reader,
)

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bytes, Ints, Times

_PADDING = 29
_TIME_EXTEND = 30
_TIME_STAMP = 31
_DELTA_BITS = 27
_HIGH_TIME_BITS = 0xF800000000000000  # an absolute time stamp carries the lower 59 bits only
# The kernel's trace clocks (trace.c) that count nanoseconds. A file that names no clock has `local`.
_NANOSECONDS = frozenset({"local", "global", "perf", "mono", "mono_raw", "boot", "tai"})
_HUNDREDTHS = "uptime"  # in units of USER_HZ
# trace-cmd writes tsc2nsec for x86-tsc when the file has the factor that turns the ticks into nanoseconds.
_TICKS = frozenset({"x86-tsc", "tsc2nsec"})
_OTHER_CLOCK = "record it again with -C mono, or read it by trace-cmd report"
_MAX_SHIFT = 32


@dataclass(frozen=True)
class Batch:
    """Events of some pages of one CPU, in the order of writing. TIMES, TYPES, TIDS, RECORDS and LENGTHS have one entry per event."""

    cpu: int
    data: Bytes  # the pages
    times: Ints  # nanoseconds of the trace's clock
    types: Ints  # numbers of events, as in their formats
    tids: Ints  # threads, as the host numbers them
    records: Ints  # offsets of the events' records in DATA
    lengths: Ints  # of the records, in bytes
    gaps: Ints  # indices of the events before which the kernel has lost events

    def select(self, number: int) -> Ints:
        """Return the indices of the events of type NUMBER."""
        return np.flatnonzero(self.types == number)

    def integers(self, events: Ints, field: Field) -> Ints:
        """Return the values of the numeric FIELD in EVENTS (indices); an event that is too short for FIELD gives 0."""
        return self._gather(events, field.offset, field.size, signed=field.is_signed)

    def _gather(self, events: Ints, offset: int, size: int, *, signed: bool) -> Ints:
        if size not in (1, 2, 4, 8):
            raise trace_dat.TraceFileError(f"a number of {size} bytes in an event is not known")
        places = np.where(self.lengths[events] >= offset + size, self.records[events] + offset, 0)
        raw = np.ascontiguousarray(self.data[places[:, None] + np.arange(size)])
        values = raw.view(np.dtype(f"{'i' if signed else 'u'}{size}"))[:, 0].astype(np.int64)
        return np.where(self.lengths[events] >= offset + size, values, 0)

    def text(self, event: int, field: Field) -> str:
        """Return the text FIELD of EVENT (an index), with bytes that are not UTF-8 replaced."""
        start = int(self.records[event])
        end = start + int(self.lengths[event])
        if field.is_dynamic:
            word = int(self._gather(np.array([event]), field.offset, 4, signed=False)[0])
            first, size = start + (word & 0xFFFF), word >> 16
        else:
            # A text without a size, such as a marker's, reaches to the record's end.
            first, size = start + field.offset, field.size or end - start
        raw = self.data[first : min(first + size, end)].tobytes()
        return raw.partition(b"\0")[0].decode("utf-8", "replace")

    def texts(self, events: Ints, field: Field) -> list[str]:
        """Return the dynamic text FIELD of each of EVENTS (indices), with bytes that are not UTF-8 replaced."""
        words = self._gather(events, field.offset, 4, signed=False)
        starts = self.records[events]
        firsts = starts + (words & 0xFFFF)
        ends = np.minimum(firsts + (words >> 16), starts + self.lengths[events])
        return [
            self.data[first:end].tobytes().partition(b"\0")[0].decode("utf-8", "replace")
            for first, end in zip(firsts.tolist(), ends.tolist())
        ]


class Trace:
    """One buffer of a trace.dat that is open for reading: the buffer of HEAD, or the only one of FILE."""

    def __init__(
        self, file: BinaryIO, head: trace_dat.Head | None = None, formats: dict[str, EventFormat] | None = None
    ) -> None:
        self.file = file
        self.head = head or trace_dat_reader.read_head(file)
        self.formats = read_formats(self.head) if formats is None else formats
        self._factor, self._shift = find_scale(self.head)

    def gen_batches(self) -> Iterator[Batch]:
        """Yield all events in batches, CPU by CPU, in the order of time within a CPU."""
        for place in self.head.cpus:
            yield from self.gen_cpu_batches(place)

    def gen_cpu_batches(self, place: trace_dat.CpuPages, block_size: int = trace_dat_reader.BLOCK) -> Iterator[Batch]:
        """Yield the events of the CPU whose pages are at PLACE, in batches of about BLOCK_SIZE bytes of pages.

        Generators of several CPUs may be advanced in turn.
        """
        for block in trace_dat_reader.gen_page_blocks(self.file, self.head, place, block_size):
            batch = decode_pages(np.frombuffer(block, np.uint8), self.head.page_size, place.cpu)
            yield replace(batch, times=_scale(batch.times, self._factor, self._shift))


def read_traces(file: BinaryIO) -> list[Trace]:
    """Return a Trace for each buffer in the trace.dat FILE. Raises TraceFileError when a buffer cannot be read."""
    heads = trace_dat_reader.read_heads(file)
    formats = read_formats(heads[0])
    return [Trace(file, head, formats) for head in heads]


def find_scale(head: trace_dat.Head) -> tuple[int, int]:
    """Return the factor, and then the bits to shift right, that turn HEAD's time stamps into nanoseconds.

    Raises TraceFileError when the file does not say what its clock counts.
    """
    clock = head.clock or "local"
    if clock in _NANOSECONDS:
        # trace-cmd extract writes the name of the host's clock, whatever clock the instance had.
        if head.has_seconds() is False:
            raise trace_dat.TraceFileError(
                f"its clock is not {clock!r}, as the file says: the kernel's statistics in it do not count nanoseconds",
                _OTHER_CLOCK,
            )
        return 1, 0
    if clock == _HUNDREDTHS:
        return 10**7, 0
    scale = head.find_tsc_factor() if clock in _TICKS else None
    if scale is None or scale[1] > _MAX_SHIFT:
        raise trace_dat.TraceFileError(
            f"its clock {clock!r} does not count nanoseconds, nor does the file say what it counts",
            _OTHER_CLOCK,
        )
    return scale


def _scale(times: Ints, factor: int, shift: int) -> Ints:
    """Return (TIMES * FACTOR) >> SHIFT without products of more than 64 bits, as the kernel's mul_u64_u32_shr computes it."""
    if factor == 1 and not shift:
        return times
    raw, wide = times.view(np.uint64), np.uint64(factor)
    low, high = raw & np.uint64(0xFFFFFFFF), raw >> np.uint64(32)
    scaled = (low * wide >> np.uint64(shift)) + (high * wide << np.uint64(32 - shift))
    return scaled.view(np.int64)


def decode_pages(data: Bytes, page_size: int, cpu: int) -> Batch:
    """Return the events in DATA, which are whole pages of CPU in the order of writing; times are the clock's raw units.

    A damaged page ends at the first event that does not fit into it; no byte outside the page is read for its events.
    """
    count = len(data) // page_size
    data = data[: count * page_size]
    words = data.view(np.uint32)
    starts = np.arange(count, dtype=np.int64) * page_size
    page_headers = data.view(np.uint64).reshape(count, page_size // 8)
    time = page_headers[:, 0].copy()
    committed = (page_headers[:, 1] & np.uint64((1 << 20) - 1)).astype(np.int64)
    ends = starts + np.minimum(ring_pages.PAGE_HEADER_SIZE + committed, page_size)
    places = starts + ring_pages.PAGE_HEADER_SIZE
    steps: list[tuple[Ints, Times, Ints, Ints]] = []
    live = np.flatnonzero(places + 4 <= ends)
    while live.size:
        at = places[live]
        header = words[at >> 2]
        kind = (header & 31).astype(np.int64)
        delta = (header >> 5).astype(np.uint64)
        has_word = at + 8 <= ends[live]
        word = np.where(has_word, words[np.where(has_word, at + 4, 0) >> 2], 0).astype(np.int64)
        is_data = kind < _PADDING
        is_long = kind == 0
        length = np.where(is_long, word - 4, kind * 4)
        record = at + np.where(is_long, 8, 4)
        size = np.where(is_long, 4 + word, 4 + kind * 4)
        is_padding = kind == _PADDING
        size = np.where(is_padding, 4 + word, size)
        size = np.where(kind > _PADDING, 8, size)
        # Padding without a delta ends a page; an event that reaches beyond the page's end is damage.
        is_over = (is_padding & (delta == 0)) | (size < 4) | (at + size > ends[live]) | (is_data & (length < 8))
        extended = (word.astype(np.uint64) << np.uint64(_DELTA_BITS)) + delta
        now = time[live] + np.where(kind == _TIME_EXTEND, extended, delta)
        now = np.where(kind == _TIME_STAMP, extended | (time[live] & np.uint64(_HIGH_TIME_BITS)), now)
        time[live] = np.where(is_over, time[live], now)
        kept = is_data & ~is_over
        steps.append((live[kept], now[kept], record[kept], length[kept]))
        places[live] = at + ((size + 3) & ~3)
        live = live[~is_over]
        live = live[places[live] + 4 <= ends[live]]
    missed = np.flatnonzero(page_headers[:, 1] & np.uint64(ring_pages.MISSED_EVENTS))
    return _sort(steps, missed, data, cpu)


def _sort(steps: list[tuple[Ints, Times, Ints, Ints]], missed: Ints, data: Bytes, cpu: int) -> Batch:
    """Return one Batch of the events of all STEPS, in the order of pages; MISSED are the pages before which events were lost."""
    if not steps:
        empty = np.zeros(0, np.int64)
        return Batch(cpu, data, empty, empty, empty, empty, empty, empty)
    pages = np.concatenate([step[0] for step in steps])
    order = np.argsort(pages, kind="stable")
    records = np.concatenate([step[2] for step in steps])[order]
    types = data.view(np.uint16)[records >> 1].astype(np.int64)
    tids = data.view(np.int32)[(records >> 2) + 1].astype(np.int64)
    times = np.concatenate([step[1] for step in steps])[order].astype(np.int64)
    lengths = np.concatenate([step[3] for step in steps])[order]
    gaps = np.searchsorted(pages[order], missed)
    return Batch(cpu, data, times, types, tids, records, lengths, gaps[gaps < times.size])
