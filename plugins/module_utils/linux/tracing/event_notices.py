# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Be woken when a trace event happens anywhere on the host, by perf_event_open(2), which leaves nothing behind when its process ends.

Source: include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from contextlib import ExitStack
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

# struct perf_event_attr in its first size: type, size, config, sample_period, sample_type, read_format, flags, wakeup_events, 0, 0
_ATTRIBUTES = struct.Struct("IIQQQQQIIQ")
_TYPE_TRACEPOINT = 2
_SAMPLE_TID = 2
_RECORD = struct.Struct("IHH")  # type, misc, size
_RECORD_LOST, _RECORD_SAMPLE = 2, 9
_TIDS = struct.Struct("II")  # process, thread
_HEAD, _TAIL = 1024, 1032  # in struct perf_event_mmap_page
_PLACE = struct.Struct("Q")
_ONLINE = "/sys/devices/system/cpu/online"


class EventNotices:
    """The happenings of EVENT (such as sched/sched_process_exec) that meet CONDITION (a filter as of tracefs), on all processors that are on.

    TRACING is any trace instance of the host. FDS are readable when there is a notice. HAS_LOST is True once a notice was lost since it found
    its processor's page full, for 256. Raises OSError or TraceError where the kernel does not let this process have them.
    """

    def __init__(self, tracing: Instance, event: str, condition: str) -> None:
        self._rings: list[tuple[int, mmap.mmap]] = []
        self.has_lost = False
        self._online = _read_online()
        with open(os.path.join(tracing.root, "events", event, "id"), encoding="ascii") as file:
            number = int(file.read())
        # Each notice wakes the reader.
        attributes = _ATTRIBUTES.pack(_TYPE_TRACEPOINT, _ATTRIBUTES.size, number, 1, _SAMPLE_TID, 0, 0, 1, 0, 0)
        with ExitStack() as failing:
            failing.callback(self.close)
            for cpu in tracing.list_cpus():
                try:
                    fd = syscalls.perf_event_open(attributes, cpu)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        continue  # the processor is off
                    raise
                try:
                    fcntl.ioctl(fd, syscalls.find_write_request("$", 6, "P"), condition.encode("ascii") + b"\0")
                    ring = mmap.mmap(fd, 2 * mmap.PAGESIZE)
                except OSError:
                    os.close(fd)
                    raise
                self._rings.append((fd, ring))
            failing.pop_all()

    def is_current(self) -> bool:
        """Return True if the same processors are on as at the beginning: one that was off meanwhile gives no notices any more."""
        return _read_online() == self._online

    @property
    def fds(self) -> list[int]:
        """Return the descriptors, one for each processor."""
        return [fd for fd, _ring in self._rings]

    def read(self) -> Iterator[int]:
        """Yield the process of each notice since the last call, without waiting; those of one processor are in their order."""
        for _fd, ring in self._rings:
            (head,) = _PLACE.unpack_from(ring, _HEAD)
            (tail,) = _PLACE.unpack_from(ring, _TAIL)
            while tail < head:
                # The page is a ring, but a record's size is a multiple of 8, and so its two parts are each in one piece.
                kind, _misc, size = _RECORD.unpack_from(ring, mmap.PAGESIZE + tail % mmap.PAGESIZE)
                if size < _RECORD.size:
                    break
                self.has_lost |= kind == _RECORD_LOST
                if kind == _RECORD_SAMPLE:
                    yield _TIDS.unpack_from(ring, mmap.PAGESIZE + (tail + _RECORD.size) % mmap.PAGESIZE)[0]
                tail += size
            _PLACE.pack_into(ring, _TAIL, head)

    def close(self) -> None:
        """Close the descriptors, which ends the notices; further calls do nothing."""
        for fd, ring in self._rings:
            ring.close()
            os.close(fd)
        self._rings = []


def _read_online() -> str:
    try:
        with open(_ONLINE, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""  # sysfs is not mounted
