# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the pages of all CPUs of an instance as compressed chunks, each CPU by a thread of its own, and count the lost events.

The kernel gives each page once: a page that was read from trace_pipe_raw is gone from the ring buffer.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    CpuStatistics,
    Instance,
    TraceError,
)

_CHUNK_BYTES = 256 << 10
_MAX_THREADS = 8
# Fills the given places, one page each, and returns the number of bytes filled; 0 at the end.
PageSource = Callable[[Sequence[memoryview]], int]


@dataclass(frozen=True)
class CpuDrain:
    """The result of draining one CPU.

    PAGES: pages that were read.
    LOST: events lost before these pages, as far as the pages tell their number.
    UNKNOWN: pages before which an unknown number of events was lost.
    ERROR: why the drain ended early; '' if it did not.
    """

    pages: int = 0
    lost: int = 0
    unknown: int = 0
    error: str = ""

    def judge(self, before: CpuStatistics) -> tuple[int, bool]:
        """Return how many events are lost, and whether no more are. BEFORE has the kernel's counters before the drain."""
        if self.unknown and before.read == 0:
            # Nobody has read the buffer before, so the kernel's overrun counter since the start tells the number.
            return max(self.lost, before.overrun), not self.error
        return self.lost, self.unknown == 0 and not self.error


def open_readers(instance: Instance, cpus: Iterable[int]) -> dict[int, int]:
    """Return CPU → descriptor of its trace_pipe_raw in INSTANCE; those of CPUS whose file cannot be opened are left out."""
    readers = {}
    for cpu in cpus:
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            readers[cpu] = os.open(f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw", flags)
    return readers


def drain(instance: Instance, readers: Mapping[int, int], page_size: int, writer: SegmentWriter) -> dict[int, CpuDrain]:
    """Copy the pages that READERS (CPU → descriptor) give into WRITER, and return the result for each CPU.

    Tracing may go on meanwhile. So the drain of a CPU ends after as many pages as its buffer holds, at the latest.
    """
    limits = {
        cpu: int(instance.read(f"per_cpu/cpu{cpu}/buffer_size_kb").split()[0]) * 1024 // (page_size - 16) + 2
        for cpu in readers
    }

    def drain_one(cpu: int) -> CpuDrain:
        return copy_pages(PageReader(instance, readers[cpu], page_size).fill, page_size, limits[cpu], cpu, writer)

    with ThreadPoolExecutor(max(1, min(len(readers), _MAX_THREADS, os.cpu_count() or 1))) as pool:
        return dict(zip(readers, pool.map(drain_one, readers)))


class Unreadable(TraceError):
    """An error that says that the pages of the ring buffer have another size than before."""


class PageReader:
    """A reader of pages of PAGE_SIZE bytes from FD, a trace_pipe_raw of INSTANCE.

    The kernel does not tell a reader that the size of the pages was changed. Then its data do not fit the pages that were asked for.
    """

    def __init__(self, instance: Instance, fd: int, page_size: int) -> None:
        self._instance = instance
        self._fd = fd
        self._page_size = page_size

    def fill(self, places: Sequence[memoryview]) -> int:
        """Fill PLACES, one page each, and return the number of bytes filled; 0 if the buffer is empty.

        Raises Unreadable if the pages have another size now, and OSError if they cannot be read.
        """
        try:
            size = os.readv(self._fd, places)
        except BlockingIOError:
            return 0
        if size and self._instance.read_page_size() != self._page_size:
            raise Unreadable("somebody changed the size of the ring buffer's pages")
        return size


def copy_pages(source: PageSource, page_size: int, limit: int, cpu: int, writer: SegmentWriter) -> CpuDrain:
    """Copy at most LIMIT pages of CPU from SOURCE into WRITER, and return the result.

    An error ends the copy and is in the result, not raised: the pages before it are no longer in the kernel and must not be lost.
    """
    compress = writer.make_compressor()
    buffer = bytearray(max(page_size, _CHUNK_BYTES // page_size * page_size))
    whole = memoryview(buffer)
    places = [whole[start : start + page_size] for start in range(0, len(buffer), page_size)]
    pages = lost = unknown = 0
    while pages < limit:
        filled, error = _fill(source, places[: limit - pages], page_size)
        if filled:
            size = filled * page_size
            for place in places[:filled]:
                missed, is_known = ring_pages.read_loss(place)
                lost += missed
                unknown += not is_known
            try:
                writer.write_chunk(cpu, compress(whole[:size]), size)
            except OSError as failure:
                return CpuDrain(pages, lost, unknown, f"cannot write pages of CPU {cpu}: {failure.strerror}")
            pages += filled
        if error or filled < len(places):
            return CpuDrain(pages, lost, unknown, error)
    return CpuDrain(pages, lost, unknown)


def _fill(source: PageSource, places: Sequence[memoryview], page_size: int) -> tuple[int, str]:
    """Return how many of PLACES were filled from SOURCE, and the error that ended it; '' if there was none."""
    filled = 0
    while filled < len(places):
        try:
            size = source(places[filled:])
        except OSError as error:
            return filled, str(error.strerror)
        except Unreadable as error:
            return filled, str(error)
        if not size:
            break
        full, rest = divmod(size, page_size)
        filled += full
        if rest:  # the kernel has left the end of a page as it was
            places[filled][rest:] = bytes(page_size - rest)
            filled += 1
    return filled, ""


def gen_pages(instance: Instance, cpu: int, page_size: int) -> Iterator[bytes]:
    """Yield the pages of CPU's buffer of INSTANCE, each taken out of the buffer; raises Unreadable for pages of another size."""
    for fd in open_readers(instance, [cpu]).values():
        try:
            reader = PageReader(instance, fd, page_size)
            while True:
                page = bytearray(page_size)
                if not reader.fill([memoryview(page)]):
                    break
                yield bytes(page)
        finally:
            os.close(fd)
