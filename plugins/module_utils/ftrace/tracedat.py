# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of trace.dat, version 6: the one place that knows it, for writing on a host and reading on a controller.

A file is a head (formats of events, options, where each CPU's pages lie) padded to whole pages, and the raw
ring-buffer pages of each CPU in turn. Source: trace-cmd.dat.v6(5); the pages: the kernel's ring-buffer-design.rst
and events/header_page.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass, field
from typing import BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

OPTION_CPUSTAT = 2
OPTION_TRACECLOCK = 4
OPTION_UNAME = 5

_MAGIC = b"\x17\x08\x44tracing"
_VERSION = b"6\0"
_OPTIONS = b"options  \0"
_FLYRECORD = b"flyrecord\0"
_HEADER_PAGE = b"header_page\0"
_HEADER_EVENT = b"header_event\0"
_MAX_SECTION = 64 << 20

PAGE_HEADER_SIZE = 16
_COMMIT_MASK = (1 << 20) - 1
_MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30
# Kinds of entries in a page beside events (ring-buffer: type_len).
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31


class TraceFileError(FleetError):
    """A file that is not a trace.dat of version 6, or is cut short."""


@dataclass(frozen=True)
class CpuPages:
    """Where the pages of one CPU lie in the file, in bytes."""

    cpu: int
    offset: int
    size: int


@dataclass
class Head:
    """What stands before the pages. Texts are as tracefs gives them; OPTIONS are (id, data)."""

    page_size: int
    header_page: bytes
    header_event: bytes
    ftrace_formats: list[bytes]
    event_formats: dict[str, list[bytes]]
    kallsyms: bytes = b""
    printk: bytes = b""
    cmdlines: bytes = b""
    options: list[tuple[int, bytes]] = field(default_factory=list)
    cpus: list[CpuPages] = field(default_factory=list)


def pack_head(head: Head, cpu_sizes: list[int]) -> bytes:
    """The bytes of HEAD, padded to whole pages, for CPU_SIZES bytes of pages of CPU 0, 1, … that follow."""
    parts = [
        _MAGIC,
        _VERSION,
        b"\0" if sys.byteorder == "little" else b"\1",
        bytes([struct.calcsize("P")]),
        struct.pack("I", head.page_size),
        _HEADER_PAGE + struct.pack("Q", len(head.header_page)) + head.header_page,
        _HEADER_EVENT + struct.pack("Q", len(head.header_event)) + head.header_event,
        _pack_formats(head.ftrace_formats),
        struct.pack("I", len(head.event_formats)),
    ]
    for system, formats in head.event_formats.items():
        parts += [system.encode("ascii") + b"\0", _pack_formats(formats)]
    parts += [
        struct.pack("I", len(head.kallsyms)) + head.kallsyms,
        struct.pack("I", len(head.printk)) + head.printk,
        struct.pack("Q", len(head.cmdlines)) + head.cmdlines,
        struct.pack("I", len(cpu_sizes)),
        _OPTIONS,
    ]
    parts += [struct.pack("=HI", number, len(data)) + data for number, data in head.options]
    parts += [struct.pack("H", 0), _FLYRECORD]
    packed = b"".join(parts)
    unpadded = len(packed) + 16 * len(cpu_sizes)
    offset = -(-unpadded // head.page_size) * head.page_size
    places = []
    for size in cpu_sizes:
        places.append(struct.pack("QQ", offset, size))
        offset += size
    packed += b"".join(places)
    return packed.ljust(-(-unpadded // head.page_size) * head.page_size, b"\0")


def _pack_formats(formats: list[bytes]) -> bytes:
    return struct.pack("I", len(formats)) + b"".join(struct.pack("Q", len(text)) + text for text in formats)


class _Reader:
    """Reads the fields of a head in turn; every length is checked before it is believed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, count: int) -> bytes:
        if count > _MAX_SECTION:
            raise TraceFileError(f"a section of {count} bytes in the head of a trace is not believable")
        data = self._file.read(count)
        if len(data) != count:
            raise TraceFileError("the trace is cut short in its head")
        return data

    def expect(self, wanted: bytes) -> None:
        if self.take(len(wanted)) != wanted:
            raise TraceFileError("not a trace.dat of version 6 and this machine's byte order")

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        name = bytearray()
        while True:
            byte = self.take(1)
            if byte == b"\0":
                return name.decode("utf-8", "replace")
            name += byte
            if len(name) > 256:
                raise TraceFileError("a name in the head of a trace does not end")

    def formats(self) -> list[bytes]:
        count = self.number("I")
        if count > 65536:
            raise TraceFileError(f"{count} event formats in the head of a trace are not believable")
        return [self.take(self.number("Q")) for _index in range(count)]


def read_head(file: BinaryIO) -> Head:
    """The head of the trace.dat that FILE, open at its start, holds. Raises TraceFileError when it is not sound."""
    reader = _Reader(file)
    reader.expect(_MAGIC + _VERSION + (b"\0" if sys.byteorder == "little" else b"\1"))
    reader.number("B")
    page_size = reader.number("I")
    if page_size < 512 or page_size > 1 << 20 or page_size & (page_size - 1):
        raise TraceFileError(f"a page size of {page_size} bytes is not believable")
    reader.expect(_HEADER_PAGE)
    header_page = reader.take(reader.number("Q"))
    reader.expect(_HEADER_EVENT)
    header_event = reader.take(reader.number("Q"))
    ftrace_formats = reader.formats()
    event_formats: dict[str, list[bytes]] = {}
    for _system in range(reader.number("I")):
        name = reader.text()
        event_formats[name] = reader.formats()
    kallsyms = reader.take(reader.number("I"))
    head = Head(page_size, header_page, header_event, ftrace_formats, event_formats, kallsyms=kallsyms)
    head.printk = reader.take(reader.number("I"))
    head.cmdlines = reader.take(reader.number("Q"))
    cpus = reader.number("I")
    if cpus > 65536:
        raise TraceFileError(f"a trace of {cpus} CPUs is not believable")
    section = reader.take(len(_OPTIONS))
    if section == _OPTIONS:
        while True:
            number = reader.number("H")
            if number == 0:
                break
            head.options.append((number, reader.take(reader.number("I"))))
        section = reader.take(len(_FLYRECORD))
    if section != _FLYRECORD:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    head.cpus = [CpuPages(cpu, reader.number("Q"), reader.number("Q")) for cpu in range(cpus)]
    if any(place.offset + place.size >= 1 << 63 for place in head.cpus):
        raise TraceFileError("the pages of a CPU lie beyond any file's end")
    return head


def unpack_commit(commit: int) -> tuple[int, bool, bool]:
    """From a page's commit word: bytes of events, whether events were lost before them, whether their number is stored behind them."""
    return commit & _COMMIT_MASK, bool(commit & _MISSED_EVENTS), bool(commit & _MISSED_STORED)


def read_loss(page: bytes) -> tuple[int, bool]:
    """Events lost before PAGE as the kernel noted them, and whether that number is known."""
    commit = struct.unpack_from("Q", page, 8)[0]
    size, missed, stored = unpack_commit(commit)
    if not missed:
        return 0, True
    if not stored:
        return 0, False
    return int(struct.unpack_from("Q", page, PAGE_HEADER_SIZE + size)[0]), True


def count_events(pages: bytes, page_size: int) -> int:
    """How many events PAGES, whole ones of the ring buffer, hold; padding and time stamps of their own are none."""
    count = 0
    for start in range(0, len(pages) - page_size + 1, page_size):
        size, _missed, _stored = unpack_commit(struct.unpack_from("Q", pages, start + 8)[0])
        place = start + PAGE_HEADER_SIZE
        end = min(place + size, start + page_size)
        while place + 4 <= end:
            word = struct.unpack_from("I", pages, place)[0]
            is_little = sys.byteorder == "little"
            kind, delta = (word & 31, word >> 5) if is_little else (word >> 27, word & 0x7FFFFFF)
            if kind == _PADDING and delta == 0:
                break  # up to the page's end
            if kind in (_TIME_EXTEND, _TIME_STAMP):
                place += 8
                continue
            if kind in (0, _PADDING):
                if place + 8 > end:
                    break
                length = struct.unpack_from("I", pages, place + 4)[0]
                place += 4 + (length + 3 & ~3)
            else:
                place += 4 + 4 * kind
            count += kind != _PADDING
    return count
