# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The events of a capture in the order of time, as columns, and the fields of their records. The compiled pass finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError, find_mark

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bytes, Ints


@dataclass(frozen=True)
class EventBlock:
    """Some events in the order of time, as columns with one entry per event. They are valid until the next block is asked for."""

    data: Bytes  # the pages
    mark: str  # the order of the bytes in them, as numpy and struct know it
    times: Ints  # nanoseconds of the trace's clock
    cpus: Ints
    types: Ints  # numbers of events, as in their formats
    tids: Ints  # threads, as the host numbers them
    tasks: Ints  # indices in the table of tasks; 0 where there was no room for the thread, -1 for a thread that is not known by then
    compats: Ints  # 1 where the thread runs a 32-bit program on a 64-bit machine
    records: Ints  # offsets of the events' records in DATA
    lengths: Ints  # of the records, in bytes
    gaps: Ints  # indices of the events before which the kernel has lost events of the same CPU

    def select(self, number: int) -> Ints:
        """Return the indices of the events of type NUMBER."""
        return np.flatnonzero(self.types == number)

    def integers(self, events: Ints, field: Field) -> Ints:
        """Return the values of the numeric FIELD in EVENTS (indices); an event that is too short for FIELD gives 0."""
        return self._gather(events, field.offset, field.size, signed=field.is_signed)

    def _gather(self, events: Ints, offset: int, size: int, *, signed: bool) -> Ints:
        if size not in (1, 2, 4, 8):
            raise TraceFileError(f"a number of {size} bytes in an event is not known")
        places = np.where(self.lengths[events] >= offset + size, self.records[events] + offset, 0)
        raw = np.ascontiguousarray(self.data[places[:, None] + np.arange(size)])
        values = raw.view(np.dtype(f"{self.mark}{'i' if signed else 'u'}{size}"))[:, 0].astype(np.int64)
        return np.where(self.lengths[events] >= offset + size, values, 0)

    def text(self, event: int, field: Field) -> str:
        """Return the text FIELD of EVENT (an index), with bytes that are not UTF-8 replaced."""
        if field.is_dynamic:
            return self.texts(np.array([event]), field)[0]
        start = int(self.records[event])
        end = start + int(self.lengths[event])
        # A text without a size, such as a marker's, reaches to the record's end.
        first, size = start + field.offset, field.size or end - start
        return _decode(self.data[first : min(first + size, end)])

    def texts(self, events: Ints, field: Field) -> list[str]:
        """Return the dynamic text FIELD of each of EVENTS (indices), with bytes that are not UTF-8 replaced."""
        words = self._gather(events, field.offset, 4, signed=False)
        starts = self.records[events]
        firsts = starts + (words & 0xFFFF) + (field.offset + field.size if field.is_relative else 0)
        ends = np.minimum(firsts + (words >> 16), starts + self.lengths[events])
        return [_decode(self.data[first:end]) for first, end in zip(firsts.tolist(), ends.tolist())]


def _decode(raw: Bytes) -> str:
    return raw.tobytes().partition(b"\0")[0].decode("utf-8", "replace")


def gen_event_blocks(trace: Trace, manifest: Mapping[str, Any], *, hints: Any = None) -> Iterator[EventBlock]:
    """Yield the events of TRACE, one buffer of a capture that MANIFEST describes. HINTS: what an earlier pass has learned of threads.

    Raises TraceFileError when the trace cannot be read.
    """
    found = CapturePass(trace, manifest, wants_events=True, hints=hints)
    for rows in found.gen_blocks():
        yield EventBlock(
            data=found.data,
            mark=find_mark(trace.head.order),
            times=rows[:, codes.EVENT_TIME],
            cpus=found.cpus[rows[:, codes.EVENT_CPU]],
            types=rows[:, codes.EVENT_TYPE],
            tids=rows[:, codes.EVENT_TID],
            tasks=rows[:, codes.EVENT_TASK],
            compats=rows[:, codes.EVENT_COMPAT],
            records=rows[:, codes.EVENT_RECORD],
            lengths=rows[:, codes.EVENT_LENGTH],
            gaps=np.flatnonzero(rows[:, codes.EVENT_GAP]),
        )
