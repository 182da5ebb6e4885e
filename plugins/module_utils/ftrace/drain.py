# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the pages of all CPUs of an instance, each CPU by a thread of its own, as compressed chunks, and see what was lost before each page.

A page comes once: what is read from trace_pipe_raw is gone from the kernel.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    CpuStatistics,
    Instance,
    TraceError,
)

_CHUNK_BYTES = 256 << 10
_MAX_THREADS = 8
# Fills whole pages, each given as a place of its own; the bytes filled, 0 at the end.
PageSource = Callable[[Sequence[memoryview]], int]


@dataclass(frozen=True)
class CpuDrain:
    """What was found in the pages of one CPU: LOST events, and pages before which an UNKNOWN number was. ERROR says why it ended early."""

    pages: int = 0
    lost: int = 0
    unknown: int = 0
    error: str = ""

    def judge(self, before: CpuStatistics) -> tuple[int, bool]:
        """Return how many events are lost, by what the kernel counted BEFORE, too, and whether these are all."""
        if self.unknown and before.read == 0:
            # Nobody has read before us: the kernel's counter since the start is the number.
            return max(self.lost, before.overrun), not self.error
        return self.lost, self.unknown == 0 and not self.error


def open_readers(instance: Instance, cpus: Iterable[int]) -> dict[int, int]:
    """Return CPU → descriptor from which the pages of its ring buffer are taken; those that cannot be opened are left out."""
    readers = {}
    for cpu in cpus:
        with suppress(OSError):
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            readers[cpu] = os.open(f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw", flags)
    return readers


def drain(instance: Instance, readers: Mapping[int, int], page_size: int, writer: SegmentWriter) -> dict[int, CpuDrain]:
    """Copy what READERS (CPU → descriptor) give into WRITER. Tracing may go on; each ends after one buffer's length at the latest."""
    limits = {
        cpu: int(instance.read(f"per_cpu/cpu{cpu}/buffer_size_kb").split()[0]) * 1024 // (page_size - 16) + 2
        for cpu in readers
    }

    def drain_one(cpu: int) -> CpuDrain:
        return copy_pages(PageReader(instance, readers[cpu], page_size).fill, page_size, limits[cpu], cpu, writer)

    with ThreadPoolExecutor(max(1, min(len(readers), _MAX_THREADS, os.cpu_count() or 1))) as pool:
        return dict(zip(readers, pool.map(drain_one, readers)))


class Unreadable(TraceError):
    """The pages of the ring buffer have another size than before."""


class PageReader:
    """Reads pages of PAGE_SIZE bytes from FD, a trace_pipe_raw of INSTANCE.

    The kernel gives no word of it when somebody changes the size of its pages, and what it gives then fits no page of ours.
    """

    def __init__(self, instance: Instance, fd: int, page_size: int) -> None:
        self._instance = instance
        self._fd = fd
        self._page_size = page_size

    def fill(self, places: Sequence[memoryview]) -> int:
        """Fill PLACES, one page each, and return how many bytes; 0 where nothing more is there. Raises Unreadable for pages of another size."""
        try:
            size = os.readv(self._fd, places)
        except BlockingIOError:
            return 0
        if size and self._instance.read_page_size() != self._page_size:
            raise Unreadable("somebody changed the size of the ring buffer's pages")
        return size


def copy_pages(source: PageSource, page_size: int, limit: int, cpu: int, writer: SegmentWriter) -> CpuDrain:
    """Copy pages from SOURCE, LIMIT at most, into WRITER. An error ends it, and is told: what came before is nowhere else."""
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
    """How many of PLACES were filled, and what ended it; '' for the end of what there is."""
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
        if rest:  # the kernel has not touched the end of a page
            places[filled][rest:] = bytes(page_size - rest)
            filled += 1
    return filled, ""


def gen_pages(instance: Instance, cpu: int, page_size: int) -> Iterator[bytes]:
    """Yield the pages that CPU's buffer of INSTANCE holds, taken out of it one by one."""
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
