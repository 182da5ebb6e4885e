# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of trace.dat, versions 6 and 7: the one place that knows it, for writing on a host and reading on a controller.

A file is a head (formats of events, options, where each CPU's pages lie) padded to whole pages, and the raw
ring-buffer pages of each CPU in turn. In version 7 the head is made of sections, which an options section points to, and the
pages of a CPU may be compressed: a count, and so many chunks. A file may hold several buffers, each the pages of one
instance; we write files of one. Sources: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5), and of what these leave out the files that trace-cmd 3.1
to 3.3 write; the pages: the kernel's ring-buffer-design.rst and events/header_page.

Whoever reads a file does not know who wrote it. What the head says is checked against the file's size, and what a
few bytes may become is bounded (check_growth).
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
# Options of version 7 that say where sections are; a section's own number is its option's.
DONE = 0
BUFFER = 3
CPUCOUNT = 8
HEADER_INFO, FTRACE_EVENTS, EVENT_FORMATS, KALLSYMS, PRINTK, CMDLINES = range(16, 22)
COMPRESSED = 1  # a section's flag

MAGIC = b"\x17\x08\x44tracing"
ENDIAN = b"\0" if sys.byteorder == "little" else b"\1"
OPTIONS = b"options  \0"
FLYRECORD = b"flyrecord\0"
# Statistics follow each other buffer by buffer, with a name before those of all but the first.
_STATISTICS_OF = re.compile(rb"\nBuffer: (.*)\n\n\0")
_NOW = re.compile(rb"\nnow ts: +([0-9.]+)\n")
HEADER_PAGE = b"header_page\0"
HEADER_EVENT = b"header_event\0"
SECTION = struct.Struct("=HHIQ")  # number, flags, place of a description in the strings, bytes that follow
CHUNK = struct.Struct("=II")  # bytes compressed and plain
CHUNK_HEADER_SIZE = CHUNK.size
_CLOCK = re.compile(rb"[ \w-]*\[([\w-]{1,32})\]")


class TraceFileError(FleetError):
    """A file that is not a trace.dat of version 6 or 7, or is damaged or cut short. NEXT_STEP says what can be done about it."""

    def __init__(self, reason: str, next_step: str = "fetch or record it again, or remove it") -> None:
        super().__init__(reason)
        self.next_step = next_step


@dataclass(frozen=True)
class CpuPages:
    """Where the pages of one CPU lie in the file, in bytes; compressed they stand there as chunks."""

    cpu: int
    offset: int
    size: int


@dataclass
class Head:
    """What stands before the pages of a buffer. Texts are as tracefs gives them; OPTIONS are (id, data).

    COMPRESSION is how a file of version 7 is compressed, and none for version 6. Of a file that was read BUFFER is the name of its
    instance, '' for the one that a reader shows by itself, and CLOCK that of its time stamps, '' where the file names none.
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

    def find_tsc_factor(self) -> tuple[int, int] | None:
        """What makes nanoseconds of the processor's ticks: factor, and bits to shift right then; None where the file does not tell."""
        found = [data for number, data in self.options if number == _TSC2NSEC and len(data) >= 8]
        return struct.unpack("II", found[-1][:8]) if found else None

    def has_seconds(self) -> bool | None:
        """Whether the kernel's statistics of the buffer show seconds, as it does where its clock counts nanoseconds; None without them."""
        name = b""
        for number, data in self.options:
            other = _STATISTICS_OF.match(data) if number == OPTION_CPUSTAT else None
            found = _NOW.search(data) if number == OPTION_CPUSTAT else None
            if other:
                name = other[1]
            elif found and name == self.buffer.encode("utf-8"):
                return b"." in found[1]
        return None


def pack_head(head: Head, cpu_sizes: list[int]) -> bytes:
    """The bytes of HEAD, padded to whole pages, for CPU_SIZES bytes of pages of CPU 0, 1, … that follow.

    Where HEAD is of compressed pages, a size is that of a count and so many chunks, as pack_count and pack_chunk give them.
    """
    start = MAGIC + b"%d\0" % head.version + ENDIAN + bytes([struct.calcsize("P")]) + struct.pack("I", head.page_size)
    if head.version == 7:
        return _pack_head_7(head, cpu_sizes, start)
    parts = [
        start,
        _pack_header_info(head),
        _pack_formats(head.ftrace_formats),
        _pack_events(head),
        struct.pack("I", len(head.kallsyms)) + head.kallsyms,
        struct.pack("I", len(head.printk)) + head.printk,
        struct.pack("Q", len(head.cmdlines)) + head.cmdlines,
        struct.pack("I", len(cpu_sizes)),
        OPTIONS,
        *(_pack_option(number, data) for number, data in head.options),
        struct.pack("H", DONE),
        FLYRECORD,
    ]
    packed = b"".join(parts)
    clock = f"[{find_clock(head)}]".encode("ascii")
    size = _round_up(len(packed) + 16 * len(cpu_sizes) + 8 + len(clock), head.page_size)
    places = b"".join(struct.pack("QQ", *place) for place in _find_places(size, cpu_sizes))
    return (packed + places + struct.pack("Q", len(clock)) + clock).ljust(size, b"\0")


def _round_up(size: int, page_size: int) -> int:
    return -(-size // page_size) * page_size


def _find_places(offset: int, sizes: list[int]) -> Iterator[tuple[int, int]]:
    for size in sizes:
        yield offset, size
        offset += size


def _pack_header_info(head: Head) -> bytes:
    page, event = head.header_page, head.header_event
    return HEADER_PAGE + struct.pack("Q", len(page)) + page + HEADER_EVENT + struct.pack("Q", len(event)) + event


def _pack_events(head: Head) -> bytes:
    systems = (system.encode("ascii") + b"\0" + _pack_formats(texts) for system, texts in head.event_formats.items())
    return struct.pack("I", len(head.event_formats)) + b"".join(systems)


def _pack_formats(formats: list[bytes]) -> bytes:
    return struct.pack("I", len(formats)) + b"".join(struct.pack("Q", len(text)) + text for text in formats)


def _pack_option(number: int, data: bytes) -> bytes:
    return struct.pack("=HI", number, len(data)) + data


def _pack_head_7(head: Head, cpu_sizes: list[int], start: bytes) -> bytes:
    """The same of version 7: sections, the options that point to them, and the header of the section of the pages at the end."""
    start += head.compression.encode("ascii") + b"\0" + (b"\0" if head.compression == compression.NONE else b"1\0")
    contents = {
        HEADER_INFO: _pack_header_info(head),
        FTRACE_EVENTS: _pack_formats(head.ftrace_formats),
        EVENT_FORMATS: _pack_events(head),
        KALLSYMS: struct.pack("I", len(head.kallsyms)) + head.kallsyms,
        PRINTK: struct.pack("I", len(head.printk)) + head.printk,
        CMDLINES: struct.pack("Q", len(head.cmdlines)) + head.cmdlines,
    }
    compress = compression.make_compressor(head.compression)
    options = list(head.options)
    sections = b""
    first = len(start) + 8  # behind the place of the options
    for number, data in contents.items():
        options.append((number, struct.pack("Q", first + len(sections))))
        is_packed = head.compression != compression.NONE
        body = pack_chunk(compress(data), len(data)) if is_packed else data
        sections += SECTION.pack(number, COMPRESSED if is_packed else 0, 0, len(body)) + body
    options.append((CPUCOUNT, struct.pack("I", len(cpu_sizes))))
    clock = find_clock(head).encode("ascii")
    options_at = first + len(sections)

    def pack_rest(pages_at: int, offset: int) -> bytes:
        # The instance without a name is the one that a reader shows by itself.
        buffer = struct.pack("Q", pages_at) + b"\0" + clock + b"\0" + struct.pack("II", head.page_size, len(cpu_sizes))
        for cpu, place in enumerate(_find_places(offset, cpu_sizes)):
            buffer += struct.pack("=IQQ", cpu, *place)
        body = b"".join(_pack_option(*one) for one in [*options, (BUFFER, buffer), (DONE, bytes(8))])
        flags = 0 if head.compression == compression.NONE else COMPRESSED
        pages = SECTION.pack(BUFFER, flags, 0, offset - pages_at - SECTION.size + sum(cpu_sizes))
        return SECTION.pack(DONE, 0, 0, len(body)) + body + pages

    size = options_at + len(pack_rest(0, 0x1000))
    offset = _round_up(size, head.page_size)
    packed = start + struct.pack("Q", options_at) + sections + pack_rest(size - SECTION.size, offset)
    return packed.ljust(offset, b"\0")


def pack_count(chunks: int) -> bytes:
    """What stands before the CHUNKS of a CPU."""
    return struct.pack("I", chunks)


def pack_chunk(packed: bytes, size: int) -> bytes:
    """A chunk: the bytes PACKED, which are SIZE without compression."""
    return CHUNK.pack(len(packed), size) + packed


def find_clock(head: Head) -> str:
    """The clock that the options of HEAD name, '' for none."""
    return next((read_current_clock(data) for number, data in head.options if number == OPTION_TRACECLOCK), "")


def read_current_clock(text: bytes) -> str:
    """The clock in brackets in TEXT, the kernel's list of them; '' where there is none."""
    found = _CLOCK.match(text)
    return found[1].decode("ascii") if found else ""
