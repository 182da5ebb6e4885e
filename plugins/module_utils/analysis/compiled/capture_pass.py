# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the compiled pass over one buffer of a capture, page by page."""

from __future__ import annotations

import re
import sys
from typing import Any, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes, merge
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.layouts import (
    Selection,
    fill_calls,
    fill_events,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.pages import (
    BIG,
    LITTLE,
    NATIVE,
    Pages,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.seeds import Seeds, plant
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import MAX_CPUS, State, make_state
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import read_names
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat_reader
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import CpuPages, TraceFileError

_MEMORY = 64 << 20  # bytes of pages of all CPUs that are in memory at a time
_MAX_MEMORY = 512 << 20  # bytes of one page of each CPU: 8,192 CPUs with pages of 64 KiB
_MAX_SLOT = 1 << 20
_MAX_TIME = 1 << 61  # of a trace's clock, in nanoseconds: 73 years
_MIN_RECORD = 8  # bytes; events with shorter records do not count
_BEYOND = 64  # bytes behind the last page: more than a field takes whose format says that it is shorter
_COMMIT = re.compile(rb"field: local_t commit;\s*offset:([0-9]{1,3});\s*size:([0-9]{1,3});")
_DATA = re.compile(rb"field: char data;\s*offset:([0-9]{1,3});")


class CapturePass:
    """A pass over TRACE, one buffer of a capture that MANIFEST describes. Iterate over `gen_blocks`, then read STATE.

    The blocks have all calls, or all events, if that is wanted. HINTS: what an earlier pass has learned of threads.
    CPUS has the numbers of the CPUs of the table of cursors, DATA the pages that records of events are in.
    """

    def __init__(
        self,
        trace: Trace,
        manifest: Mapping[str, Any],
        *,
        wants_calls: bool = False,
        wants_events: bool = False,
        min_latency_ns: int = 0,
        hints: Any = None,
    ) -> None:
        head = trace.head
        self.names = read_names(manifest)
        self._head = head
        seeds = Seeds(manifest, head.cmdlines)
        self.state = make_state()
        specification = manifest.get("specification")
        selection = Selection(trace.formats, self.names, specification, manifest.get("earlier_syscalls") or ())
        fill_events(self.state, trace.formats, head.word_size, selection)
        fill_calls(self.state, self.names, selection)
        self._describe(trace, manifest, wants_calls=wants_calls)
        self.state.scalars[codes.MIN_LATENCY] = min_latency_ns
        self.state.scalars[codes.WANTS_EVENTS] = wants_events
        plant(self.state, seeds, hints)
        places = [place for place in head.cpus if place.size]
        self.cpus = np.array([place.cpu for place in places], np.int64)
        count = max(1, len(places))
        if count > MAX_CPUS or count * head.page_size > _MAX_MEMORY:
            raise TraceFileError(f"pages of {head.page_size} bytes of {count} CPUs are not believable")
        slot = max(head.page_size, min(_MAX_SLOT, _MEMORY // count // head.page_size * head.page_size))
        self._slot = slot
        self.data = np.zeros(slot * count + _BEYOND, np.uint8)
        self._pages = Pages(self.data, self.data.view(np.uint32), _find_order(head.order))
        self._blocks = [_gen_slots(trace, place, slot) for place in places]
        self.state.scalars[codes.CPUS] = len(places)
        for index in range(len(places)):
            cursor = self.state.cursors[index]
            cursor[codes.BASE], cursor[codes.LAST_TIME] = index * slot, codes.NEVER
            self._fill(index)

    def _describe(self, trace: Trace, manifest: Mapping[str, Any], *, wants_calls: bool) -> None:
        scalars, head = self.state.scalars, self._head
        commit, data = _COMMIT.search(head.header_page), _DATA.search(head.header_page)
        scalars[codes.PAGE_SIZE] = head.page_size
        scalars[codes.COMMIT_SIZE] = int(commit[2]) if commit and commit[2] in (b"4", b"8") else head.word_size
        scalars[codes.HEADER_SIZE] = int(data[1]) if data else 8 + head.word_size
        scalars[codes.FACTOR], scalars[codes.SHIFT] = trace.scale
        scalars[codes.SINCE] = find_change(manifest)
        scalars[codes.FROM], scalars[codes.UNTIL] = find_looks(
            manifest, has_pages=any(place.size for place in head.cpus)
        )
        scalars[codes.CHECKS_START] = manifest.get("complete") is not True
        scalars[codes.CAN_TELL] = {"syscalls:sys_exit_execve", "sched:sched_process_exec"} <= set(trace.formats)
        scalars[codes.WANTS_CALLS] = wants_calls
        scalars[codes.COMMON_TYPE], scalars[codes.COMMON_PID] = 0, 4
        for known in trace.formats.values():
            kind, thread = known.fields.get("common_type"), known.fields.get("common_pid")
            if kind and thread:
                if max(kind.offset + 2, thread.offset + 4) > _MIN_RECORD:
                    raise TraceFileError("the formats of its events have type and thread where no kernel has them")
                scalars[codes.COMMON_TYPE], scalars[codes.COMMON_PID] = kind.offset, thread.offset
                break

    def gen_blocks(self) -> Iterator[Any]:
        """Yield the calls in blocks, in the order of their ends, as rows of columns OUT_…, or all events, as rows of columns EVENT_….

        Without `wants_calls` and `wants_events` there are none.

        A block is valid until the next one is asked for.
        """
        yield from self.gen_ended()
        yield from self.gen_pending()

    def gen_ended(self) -> Iterator[Any]:
        """Yield the calls that end within the pages, as gen_blocks does."""
        scalars = self.state.scalars
        while True:
            answer = merge.run_pass(self.state, self._pages)
            if answer == codes.WANTS_PAGES:
                if scalars[codes.WANTS_EVENTS]:
                    yield from self._take()  # their records are in the pages that others will replace
                self._fill(int(scalars[codes.WANTED]))
            elif answer == codes.IS_FULL:
                yield from self._take()
            else:
                yield from self._take()
                break

    def gen_pending(self) -> Iterator[Any]:
        """Yield the calls that have not ended, as gen_blocks does. It ends the pass."""
        row = 0
        while row >= 0:
            row = merge.finish_pass(self.state, row)
            yield from self._take()

    def _take(self) -> Iterator[Any]:
        count = int(self.state.scalars[codes.OUT])
        if count:
            yield self.state.out[:count]
        self.state.scalars[codes.OUT] = 0

    def run(self) -> State:
        """Run the whole pass, and return its STATE."""
        for _block in self.gen_blocks():
            pass
        return self.state

    def _fill(self, index: int) -> None:
        """Put the next pages of the CPU at INDEX into its slot, or mark it as finished."""
        cursor = self.state.cursors[index]
        piece = self._find_piece(index)
        if piece is None:
            cursor[codes.CPU_STATE] = codes.IS_FINISHED
            return
        start = index * self._slot
        self._pages.data[start : start + len(piece)] = piece
        cursor[codes.FILLED] = len(piece)
        cursor[codes.PAGE] = -self._head.page_size
        cursor[codes.AT] = cursor[codes.PAGE_END] = 0
        cursor[codes.CPU_STATE] = codes.NEEDS_PAGES

    def _find_piece(self, index: int) -> Any:
        """Return the next pages of the CPU at INDEX, no more than fit into a slot; None if there are no more."""
        return next(self._blocks[index], None)


def _gen_slots(trace: Trace, place: CpuPages, size: int) -> Iterator[Any]:
    """Yield the pages of PLACE of TRACE in pieces of at most SIZE bytes.

    It is no method: a pass that holds an iterator that holds the pass would stay in memory, hundreds of megabytes of addresses, until
    Python looks for such circles.
    """
    for block in trace_dat_reader.gen_page_blocks(trace.file, trace.head, place, size):
        whole = np.frombuffer(block, np.uint8)
        for start in range(0, len(whole), size):
            yield whole[start : start + size]


def _find_order(order: str) -> int:
    """Return how the pass reads pages whose bytes are in ORDER, little or big."""
    if order == "big":
        return BIG
    return NATIVE if sys.byteorder == "little" else LITTLE


def find_change(manifest: Mapping[str, Any]) -> int:
    """Return when the trace was started or last changed, in nanoseconds of its clock; NEVER when it is not known."""
    times = manifest.get("time")
    changed = times.get("changed") if isinstance(times, dict) else None
    if not isinstance(changed, dict):
        return codes.NEVER
    real, offset = changed.get("real_time_ns"), changed.get("offset_ns")
    if not isinstance(real, int) or not isinstance(offset, int):
        return codes.NEVER
    return max(codes.NEVER, min(real - offset, -codes.NEVER))  # the values came from a host and may be anything


def find_looks(manifest: Mapping[str, Any], *, has_pages: bool) -> tuple[int, int]:
    """Return when the host looked at the processes before and after the capture, in its clock; -NEVER and NEVER where that is not known.

    A capture that HAS_PAGES, and lacks events, begins with its first event and ends with its last one: nobody knows what was before and after.
    """
    looks = (manifest.get("waits") or {}).get("time_ns") or {}
    offset = manifest.get("clock_offset_ns")
    first, last = looks.get("first"), looks.get("last")
    if offset is None or first is None or last is None or (has_pages and manifest.get("complete") is not True):
        return -codes.NEVER, codes.NEVER
    start, end = max(first - offset, find_change(manifest)), last - offset
    return (start, end) if 0 <= start < end < _MAX_TIME else (-codes.NEVER, codes.NEVER)
