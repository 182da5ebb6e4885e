# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define the layout of trace.dat, versions 6 and 7, and write heads and chunks of such files.

A file is a head (formats of events, options, places of each CPU's pages), padded to whole pages, and the raw ring-buffer pages of each CPU
in turn. In version 7 an options section points to the other sections of the head, and the pages of a CPU may be compressed: a count, and
as many chunks. A file may hold several buffers, each with the pages of one instance. This collection writes files of one buffer.

A reader does not know who wrote a file. So it checks the head against the file's size, and bounds what a few bytes can expand to
(check_growth).

Sources: trace-cmd.dat.v6(5) and trace-cmd.dat.v7(5); files written by trace-cmd 3.1 to 3.3 for what these leave out; for the pages the
kernel's ring-buffer-design.rst and events/header_page.
"""

from __future__ import annotations

import re
import struct
import sys
from dataclasses import dataclass, field
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression

OPTION_CPUSTAT = 2
OPTION_TRACECLOCK = 4
OPTION_UNAME = 5
_TSC2NSEC = 14
# Options of version 7 that say where sections are; a section has the same number as its option.
DONE = 0
BUFFER = 3
CPUCOUNT = 8
HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES = range(16, 22)
COMPRESSED = 1  # a section's flag

MAGIC = b"\x17\x08\x44tracing"
ORDERS = {"little": b"\0", "big": b"\1"}
OPTIONS = b"options  \0"
FLYRECORD = b"flyrecord\0"
# The options with statistics follow each other buffer by buffer; one with the buffer's name precedes those of each buffer but the first.
_STATISTICS_OF = re.compile(rb"\nBuffer: (.*)\n\n\0")
_NOW = re.compile(rb"\nnow ts: +([0-9.]+)\n")
HEADER_PAGE = b"header_page\0"
HEADER_EVENT = b"header_event\0"
SECTION = "HHIQ"  # number, flags, offset of a description in the strings, bytes that follow
CHUNK = "II"  # bytes compressed, bytes without compression
CHUNK_HEADER_SIZE = struct.calcsize(CHUNK)
_SECTION_SIZE = struct.calcsize("=" + SECTION)
_WORD_SIZE = struct.calcsize("P")
_CLOCK = re.compile(rb"[ \w-]*\[([\w-]{1,32})\]")


class TraceFileError(FleetError):
    """An error for a file that is no trace.dat of version 6 or 7, or that is damaged. NEXT_STEP says what the user can do."""

    def __init__(self, reason: str, next_step: str = "fetch or record it again, or remove it") -> None:
        super().__init__(reason)
        self.next_step = next_step


@dataclass(frozen=True)
class CpuPages:
    """The place of one CPU's pages in the file, OFFSET and SIZE in bytes; compressed pages stand there as chunks."""

    cpu: int
    offset: int
    size: int


@dataclass
class Head:
    """The head of one buffer in a trace.dat. Texts are as tracefs gives them.

    PAGE_SIZE: bytes of a page of the ring buffer.
    HEADER_PAGE, HEADER_EVENT, KALLSYMS, PRINTK, CMDLINES: the texts of these sections.
    FTRACE_FORMATS, EVENT_FORMATS: formats of the kernel's own events; system → formats of its events.
    OPTIONS: pairs of number and data.
    CPUS: the places of the CPUs' pages.
    VERSION, COMPRESSION: the file's version, and its compression, which is none for version 6.
    BUFFER: the name of the buffer in a file that was read; '' for the main one, which other readers show by default.
    CLOCK: the clock of the time stamps in a file that was read; '' if the file names none.
    ORDER: the order of the bytes of all numbers, in the pages, too: little or big.
    WORD_SIZE: bytes of a word (long) of the kernel whose pages these are.
    """

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
    version: int = 6
    compression: str = compression.NONE
    buffer: str = ""
    clock: str = field(default="", compare=False)
    order: str = sys.byteorder
    word_size: int = _WORD_SIZE

    def pack(self, code: str, *values: int) -> bytes:
        """Return VALUES as struct.pack writes them by CODE, in the order of the file's bytes and without gaps."""
        return struct.pack(find_mark(self.order) + code, *values)

    def find_tsc_factor(self) -> tuple[int, int] | None:
        """Return the factor, and the bits to shift right after it, that turn the processor's ticks into nanoseconds.

        None if the file does not tell.
        """
        found = [data for number, data in self.options if number == _TSC2NSEC and len(data) >= 8]
        return struct.unpack(find_mark(self.order) + "II", found[-1][:8]) if found else None

    def has_seconds(self) -> bool | None:
        """Return True if the kernel's statistics of the buffer show seconds; None if there are no statistics.

        The kernel shows seconds if the clock counts nanoseconds.
        """
        name = b""
        for number, data in self.options:
            other = _STATISTICS_OF.match(data) if number == OPTION_CPUSTAT else None
            found = _NOW.search(data) if number == OPTION_CPUSTAT else None
            if other:
                name = other[1]
            elif found and name == self.buffer.encode("utf-8"):
                return b"." in found[1]
        return None


def find_mark(order: str) -> str:
    """Return the character by which struct knows ORDER, little or big."""
    return "<" if order == "little" else ">"


def pack_head(head: Head, cpu_sizes: list[int]) -> bytes:
    """Return the bytes of HEAD, padded to whole pages, for CPU_SIZES bytes of pages of CPU 0, 1, … that follow it.

    For compressed pages a size is that of a count and as many chunks, as pack_count and pack_chunk return them.
    """
    start = (
        MAGIC + b"%d\0" % head.version + ORDERS[head.order] + bytes([head.word_size]) + head.pack("I", head.page_size)
    )
    if head.version == 7:
        return _pack_head_7(head, cpu_sizes, start)
    parts = [
        start,
        _pack_header_info(head),
        _pack_formats(head, head.ftrace_formats),
        _pack_events(head),
        head.pack("I", len(head.kallsyms)) + head.kallsyms,
        head.pack("I", len(head.printk)) + head.printk,
        head.pack("Q", len(head.cmdlines)) + head.cmdlines,
        head.pack("I", len(cpu_sizes)),
        OPTIONS,
        *(_pack_option(head, number, data) for number, data in head.options),
        head.pack("H", DONE),
        FLYRECORD,
    ]
    packed = b"".join(parts)
    clock = f"[{find_clock(head)}]".encode("ascii")
    size = _round_up(len(packed) + 16 * len(cpu_sizes) + 8 + len(clock), head.page_size)
    places = b"".join(head.pack("QQ", *place) for place in _find_places(size, cpu_sizes))
    return (packed + places + head.pack("Q", len(clock)) + clock).ljust(size, b"\0")


def _round_up(size: int, page_size: int) -> int:
    return -(-size // page_size) * page_size


def _find_places(offset: int, sizes: list[int]) -> Iterator[tuple[int, int]]:
    for size in sizes:
        yield offset, size
        offset += size


def _pack_header_info(head: Head) -> bytes:
    page, event = head.header_page, head.header_event
    return HEADER_PAGE + head.pack("Q", len(page)) + page + HEADER_EVENT + head.pack("Q", len(event)) + event


def _pack_events(head: Head) -> bytes:
    systems = (
        system.encode("ascii") + b"\0" + _pack_formats(head, texts) for system, texts in head.event_formats.items()
    )
    return head.pack("I", len(head.event_formats)) + b"".join(systems)


def _pack_formats(head: Head, formats: list[bytes]) -> bytes:
    return head.pack("I", len(formats)) + b"".join(head.pack("Q", len(text)) + text for text in formats)


def _pack_option(head: Head, number: int, data: bytes) -> bytes:
    return head.pack("HI", number, len(data)) + data


def _pack_head_7(head: Head, cpu_sizes: list[int], start: bytes) -> bytes:
    """Return a head of version 7: START, the sections, the options that point to them, and the header of the pages' section."""
    start += head.compression.encode("ascii") + b"\0" + (b"\0" if head.compression == compression.NONE else b"1\0")
    contents = {
        HEADER_INFO: _pack_header_info(head),
        FTRACE_EVENTS: _pack_formats(head, head.ftrace_formats),
        EVENT_FORMATS: _pack_events(head),
        KALLSYMS: head.pack("I", len(head.kallsyms)) + head.kallsyms,
        PRINTK: head.pack("I", len(head.printk)) + head.printk,
        CMDLINES: head.pack("Q", len(head.cmdlines)) + head.cmdlines,
    }
    compress = compression.make_compressor(head.compression)
    options = list(head.options)
    sections = b""
    first = len(start) + 8  # the offset of the options section comes before it
    for number, data in contents.items():
        options.append((number, head.pack("Q", first + len(sections))))
        is_packed = head.compression != compression.NONE
        body = pack_chunk(compress(data), len(data), head.order) if is_packed else data
        sections += head.pack(SECTION, number, COMPRESSED if is_packed else 0, 0, len(body)) + body
    options.append((CPUCOUNT, head.pack("I", len(cpu_sizes))))
    clock = find_clock(head).encode("ascii")
    options_at = first + len(sections)

    def pack_rest(pages_at: int, offset: int) -> bytes:
        # Other readers show the buffer without a name by default.
        buffer = head.pack("Q", pages_at) + b"\0" + clock + b"\0" + head.pack("II", head.page_size, len(cpu_sizes))
        for cpu, place in enumerate(_find_places(offset, cpu_sizes)):
            buffer += head.pack("IQQ", cpu, *place)
        all_options = [*options, (BUFFER, buffer), (DONE, bytes(8))]
        body = b"".join(_pack_option(head, number, data) for number, data in all_options)
        flags = 0 if head.compression == compression.NONE else COMPRESSED
        pages = head.pack(SECTION, BUFFER, flags, 0, offset - pages_at - _SECTION_SIZE + sum(cpu_sizes))
        return head.pack(SECTION, DONE, 0, 0, len(body)) + body + pages

    size = options_at + len(pack_rest(0, 0x1000))
    offset = _round_up(size, head.page_size)
    packed = start + head.pack("Q", options_at) + sections + pack_rest(size - _SECTION_SIZE, offset)
    return packed.ljust(offset, b"\0")


def pack_count(chunks: int, order: str = sys.byteorder) -> bytes:
    """Return the count that stands before the CHUNKS of a CPU, with its bytes in ORDER (little or big)."""
    return struct.pack(find_mark(order) + "I", chunks)


def pack_chunk(packed: bytes, size: int, order: str = sys.byteorder) -> bytes:
    """Return a chunk: its two sizes, with bytes in ORDER (little or big), and the bytes PACKED, which are SIZE bytes without compression."""
    return struct.pack(find_mark(order) + CHUNK, len(packed), size) + packed


def find_clock(head: Head) -> str:
    """Return the clock that the options of HEAD name; '' if they name none."""
    return next((read_current_clock(data) for number, data in head.options if number == OPTION_TRACECLOCK), "")


def read_current_clock(text: bytes) -> str:
    """Return the clock in brackets in TEXT, the kernel's list of clocks; '' if none is in brackets."""
    found = _CLOCK.match(text)
    return found[1].decode("ascii") if found else ""
