# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the pages of all CPUs of an instance, each CPU by a thread of its own, as compressed chunks, and see what was lost before each page.

A page comes once: what is read from trace_pipe_raw is gone from the kernel.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import tracedat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.segments import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import CpuStatistics, Instance

_CHUNK_BYTES = 256 << 10
_MAX_THREADS = 8
# Fills whole pages, each given as a place of its own; the bytes filled, 0 at the end.
PageSource = Callable[[Sequence[memoryview]], int]


@dataclass(frozen=True)
class CpuLoss:
    """What happened to the events of one CPU in this capture. EXACT is false when more than LOST may be gone."""

    pages: int
    lost: int
    exact: bool


@dataclass(frozen=True)
class CpuDrain:
    """What was found in the pages of one CPU: LOST events, and pages before which an UNKNOWN number was. ERROR says why it ended early."""

    pages: int = 0
    lost: int = 0
    unknown: int = 0
    error: str = ""

    def judge(self, before: CpuStatistics) -> CpuLoss:
        """What is lost, by what the kernel counted BEFORE, too."""
        if self.unknown and before.read == 0:
            # Nobody has read before us: the kernel's counter since the start is the number.
            return CpuLoss(self.pages, max(self.lost, before.overrun), not self.error)
        return CpuLoss(self.pages, self.lost, self.unknown == 0 and not self.error)


def drain(instance: Instance, cpus: Sequence[int], page_size: int, writer: SegmentWriter) -> dict[int, CpuDrain]:
    """Copy what the buffers of CPUS hold into WRITER. Tracing may go on; each ends after one buffer's length at the latest."""
    limits = {
        cpu: int(instance.read(f"per_cpu/cpu{cpu}/buffer_size_kb").split()[0]) * 1024 // (page_size - 16) + 2
        for cpu in cpus
    }
    with ThreadPoolExecutor(min(len(cpus), _MAX_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(cpus, pool.map(lambda cpu: _drain_ring(instance, cpu, page_size, limits[cpu], writer), cpus)))


def _drain_ring(instance: Instance, cpu: int, page_size: int, limit: int, writer: SegmentWriter) -> CpuDrain:
    path = f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return CpuDrain(error=f"{path}: {error.strerror}")

    def read(places: Sequence[memoryview]) -> int:
        try:
            return os.readv(fd, places)
        except BlockingIOError:
            return 0

    try:
        return copy_pages(read, page_size, limit, cpu, writer)
    finally:
        os.close(fd)


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
                missed, is_known = tracedat.read_loss(place)
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
        if not size:
            break
        full, rest = divmod(size, page_size)
        filled += full
        if rest:  # the kernel has not touched the end of a page
            places[filled][rest:] = bytes(page_size - rest)
            filled += 1
    return filled, ""


def gen_pages(instance: Instance, cpu: int, page_size: int) -> Iterator[bytes]:
    """The pages that CPU's buffer of INSTANCE holds, taken out of it one by one."""
    fd = os.open(f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                page = os.read(fd, page_size)
            except BlockingIOError:
                return
            if not page:
                return
            yield page.ljust(page_size, b"\0")
    finally:
        os.close(fd)
