# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain the ring buffers of one instance to the files of one recording, within the recording's limits.

The recorder reads no more from the kernel than there is room for. So events that cannot be kept are lost in the kernel, which counts them.
"""

from __future__ import annotations

import os
import time
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import PageReader, Unreadable
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

_READ_BYTES = 1 << 20
_MAX_ROUNDS = 100


class Full(Exception):
    """A lack of room for the recording; the text says which limit was reached."""


@dataclass(frozen=True)
class _Finished:
    """A finished segment: its NUMBER, its SIZE in bytes, and when it ended by time.monotonic()."""

    number: int
    size: int
    ended_s: float


class RecordingWriter:
    """A writer that drains INSTANCE to the recording in folder PATH. While it is open, tracing stops if this process ends (free_buffer).

    WATCH tells of foreign access, which is noted in each segment. PAGE_SIZE is that of the ring buffer in bytes. BEGUN gets the folder of
    each segment that begins.
    SOURCES: CPU → descriptor of trace_pipe_raw, for poll.
    """

    def __init__(
        self,
        instance: Instance,
        path: str,
        limits: Limits,
        page_size: int,
        watch: Watch,
        begun: Callable[[str], None] = lambda _folder: None,
    ) -> None:
        self._watch = watch
        self._begun = begun
        self._instance = instance
        self.path = path
        self._limits = limits
        self._page_size = page_size
        self._buffer = bytearray(max(page_size, _READ_BYTES // page_size * page_size))
        view = memoryview(self._buffer)
        # Each place takes one page: the kernel fills one place at a time, and one system call (readv) fills all of them.
        self._places = [view[start : start + page_size] for start in range(0, len(view), page_size)]
        self._finished: deque[_Finished] = deque()
        self._finished_bytes = 0
        self._number = 0
        self._files: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._unwritten = 0
        self._is_failed = False
        folder = f"{instance.path}/per_cpu"
        self._guards = [os.open(f"{instance.path}/free_buffer", os.O_WRONLY | os.O_CLOEXEC)]
        self.sources: dict[int, int] = {}
        self._buffer_pages: dict[int, int] = {}
        with ExitStack() as undo:
            undo.callback(self.close_files)
            for cpu in instance.list_cpus():
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self.sources[cpu] = os.open(f"{folder}/cpu{cpu}/trace_pipe_raw", flags)
                size_kb = int(instance.read(f"per_cpu/cpu{cpu}/buffer_size_kb").split()[0])
                self._buffer_pages[cpu] = size_kb * 1024 // (page_size - ring_pages.PAGE_HEADER_SIZE) + 2
            # Earlier events in the buffers belong to the recording. If a buffer was never read, so do the events that it has lost.
            none = dict.fromkeys(("overrun", "dropped", "commit_overrun"), 0)
            self._counters = {
                cpu: counters if counters["read"] else {**counters, **none}
                for cpu, counters in recordings.read_counters(instance).items()
            }
            # In a buffer that a fetch has read, the pages tell what was lost since then, as long as nothing is traced yet.
            self._fetched = {
                int(cpu) for cpu, counters in self._counters.items() if counters["read"] and counters["entries"]
            }
            self._is_exact = True
            recordings.begin(path)
            self._begin_segment()
            if self._fetched:
                try:
                    self.drain()
                except Full:  # the first check of the limits raises it again
                    self._is_exact = False
                    self._write_begin()
                self._fetched = set()
            undo.pop_all()

    @property
    def _reserve(self) -> int:
        """Return how many bytes of pages the ring buffers may hold."""
        return sum(self._buffer_pages.values()) * self._page_size

    @property
    def _current_bytes(self) -> int:
        return sum(self._sizes.values())

    def _begin_segment(self) -> None:
        self._number += 1
        self._folder = os.path.join(self.path, recordings.format_number(self._number))
        os.mkdir(self._folder, 0o700)
        self._write_begin()
        self._begun(self._folder)
        self._begun_s = time.monotonic()
        self._sizes = {}

    def _write_begin(self) -> None:
        begin = {"time": time.time(), "cpus": self._counters, "exact": self._is_exact}
        recordings.write_json(os.path.join(self._folder, recordings.BEGIN), begin)

    def _count_lost_before(self, cpu: int, pages: list[memoryview]) -> None:
        """Count the events lost before PAGES, the first since a fetch of CPU's ring, among the losses of the recording."""
        for lost, is_known in map(ring_pages.read_loss, pages):
            self._counters[str(cpu)]["overrun"] -= lost
            self._is_exact &= is_known
        self._write_begin()

    def drain(self) -> None:
        """Read the pages of all CPUs, of each CPU no more than its buffer holds; raises Full if there is no room for them.

        Raises Unreadable if the ring buffer's pages have another size now.
        """
        self._make_room()
        for cpu in self.sources:
            self._drain_cpu(cpu)
        if self._current_bytes >= self._limits.rotate_bytes:
            self.finish_segment()

    def _drain_cpu(self, cpu: int) -> None:
        left = self._buffer_pages[cpu]
        reader = PageReader(self._instance, self.sources[cpu], self._page_size)
        while left > 0:
            size = reader.fill(self._places[:left])
            pages = size // self._page_size
            if pages and cpu in self._fetched:
                self._count_lost_before(cpu, self._places[:pages])
            if size:
                self._write(cpu, memoryview(self._buffer)[:size])
            left -= pages
            if pages < len(self._places):
                return

    def _write(self, cpu: int, pages: memoryview) -> None:
        done = 0
        try:
            if cpu not in self._files:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
                self._files[cpu] = os.open(os.path.join(self._folder, f"cpu{cpu}"), flags, 0o600)
                self._sizes[cpu] = 0
            while done < len(pages):
                done += os.write(self._files[cpu], pages[done:])
        except OSError as error:
            done -= done % self._page_size
            if cpu in self._files:
                os.ftruncate(self._files[cpu], self._sizes[cpu] + done)
            # The pages are gone from the kernel, so their events have to be counted here.
            self._is_failed = True
            self._unwritten += ring_pages.count_events(bytes(pages[done:]), self._page_size)
            raise Full(f"writing to {recordings.FOLDER} failed: {error.strerror}") from error
        finally:
            if cpu in self._sizes:
                self._sizes[cpu] += done

    def finish_segment(self) -> None:
        """Finish the segment and begin the next; a segment without pages and losses goes on."""
        counters = recordings.read_counters(self._instance)
        if not self._current_bytes and not any(
            recordings.subtract(after, self._counters[cpu]) for cpu, after in counters.items()
        ):
            self._begun_s = time.monotonic()
            return
        self._finish(counters)
        self._begin_segment()

    def _finish(self, counters: dict[str, recordings.Counters]) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files = {}
        touched = self._watch.list_reasons()
        end = {"time": time.time(), "cpus": counters, "unwritten": self._unwritten, "touched": touched}
        recordings.write_json(os.path.join(self._folder, recordings.END), end)
        self._watch.settle()
        self._finished.append(_Finished(self._number, self._current_bytes, time.monotonic()))
        self._finished_bytes += self._current_bytes
        self._counters = counters
        self._is_exact = True
        self._unwritten = 0

    def tend(self) -> None:
        """Finish the segment if its time is over or a fetch asks for it, and remove segments that are too old."""
        if time.monotonic() - self._begun_s >= self._limits.rotate_s:
            self.drain()
            self.finish_segment()
        if recordings.is_asked_to_finish(self.path):
            self.drain()
            self.finish_segment()
            recordings.answer_finish(self.path)
        age_s = self._limits.max_age_s
        while age_s and self._finished and time.monotonic() - self._finished[0].ended_s > age_s:
            if not self._rotate_oldest():
                return

    def _make_room(self) -> None:
        """Make room for all that the ring buffers may hold, now and once more at the end; raises Full if that is not possible.

        With when_full=rotate the oldest segments are removed.
        """
        while True:
            why = self._find_shortage()
            if why is None:
                return
            if self._limits.when_full == "stop":
                raise Full(why)
            if not self._finished:
                self.finish_segment()
            if not self._finished:
                raise Full(f"{why}, and nothing of this recording is left to make room")
            if not self._rotate_oldest():
                return  # a fetch reads the segment just now, and removes it then

    def _find_shortage(self) -> str | None:
        if self._find_size() > self._limits.max_bytes:
            self._forget_fetched()
        if self._find_size() > self._limits.max_bytes:
            return f"it reached max_size ({self._limits.max_bytes} bytes)"
        free = recordings.find_free(self.path)
        if free < self._limits.min_free:
            return (
                f"{recordings.FOLDER} has {free >> 20} MiB free, less than min_free ({self._limits.min_free >> 20} MiB)"
            )
        return None

    def _find_size(self) -> int:
        """Return how many bytes the recording may have after this round and the last round at its end."""
        return self._finished_bytes + self._current_bytes + 2 * self._reserve

    def _forget_fetched(self) -> None:
        """Forget the segments that a fetch has removed, which take no room any more."""
        left = [
            segment
            for segment in self._finished
            if os.path.isdir(os.path.join(self.path, recordings.format_number(segment.number)))
        ]
        self._finished = deque(left)
        self._finished_bytes = sum(segment.size for segment in left)

    def _rotate_oldest(self) -> bool:
        if not recordings.rotate(self.path, self._finished[0].number):
            return False
        self._finished_bytes -= self._finished.popleft().size
        return True

    def close(self, end: Mapping[str, Any]) -> None:
        """Write the rest of the stopped buffers, as far as there is room, then END into the recording, and close all files.

        The kernel shrinks the buffers then.
        """
        recordings.free_reserve(self.path)
        try:
            for _round in range(0 if self._is_failed else _MAX_ROUNDS):
                for cpu in self.sources:
                    self._drain_cpu(cpu)
                if not any(counters["entries"] for counters in recordings.read_counters(self._instance).values()):
                    break
        except (Full, Unreadable):
            pass  # the rest is lost when the buffers shrink, and the kernel counts it
        counters = recordings.read_counters(self._instance)
        if self._current_bytes or self._unwritten:
            self._finish(counters)
        else:
            self._counters = counters
            with suppress(OSError):
                os.unlink(os.path.join(self._folder, recordings.BEGIN))
                os.rmdir(self._folder)
        touched = self._watch.list_reasons()
        self.close_files()
        # The events that did not fit were lost when the buffers shrank.
        last = recordings.read_counters(self._instance)
        lost = sum(recordings.subtract(after, self._counters[cpu]) for cpu, after in last.items())
        recordings.write_end(self.path, {**end, "lost": max(0, lost), "touched": touched})
        recordings.answer_finish(self.path)

    def close_files(self) -> None:
        """Close all files; the kernel shrinks the buffers then. A second call does nothing."""
        for fd in (*self._files.values(), *self.sources.values(), *self._guards):
            os.close(fd)
        self._files, self.sources, self._guards = {}, {}, []
