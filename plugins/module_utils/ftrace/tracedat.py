# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of trace.dat, versions 6 and 7: the one place that knows it, for writing on a host and reading on a controller.

A file is a head (formats of events, options, where each CPU's pages lie) padded to whole pages, and the raw
ring-buffer pages of each CPU in turn. In version 7 the head is made of sections, which an options section points to, and the
pages of a CPU may be compressed: a count, and so many chunks. Sources: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5); the
pages: the kernel's ring-buffer-design.rst and events/header_page.
"""

from __future__ import annotations

import io
import struct
import sys
from dataclasses import dataclass, field
from typing import BinaryIO, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import compression

VERSIONS = (6, 7)
OPTION_CPUSTAT = 2
OPTION_TRACECLOCK = 4
OPTION_UNAME = 5
# Options of version 7 that say where sections are; a section's own number is its option's.
_DONE = 0
_BUFFER = 3
_CPUCOUNT = 8
_HEADER_INFO, _FTRACE_EVENTS, _EVENT_FORMATS, _KALLSYMS, _PRINTK, _CMDLINES = range(16, 22)
_SECTIONS = range(16, 22)
_COMPRESSED = 1  # a section's flag

_MAGIC = b"\x17\x08\x44tracing"
_ENDIAN = b"\0" if sys.byteorder == "little" else b"\1"
_OPTIONS = b"options  \0"
_FLYRECORD = b"flyrecord\0"
_HEADER_PAGE = b"header_page\0"
_HEADER_EVENT = b"header_event\0"
_SECTION = struct.Struct("=HHIQ")  # number, flags, place of a description in the strings, bytes that follow
_CHUNK = struct.Struct("=II")  # bytes compressed and plain
CHUNK_HEADER_SIZE = _CHUNK.size
_MAX_SECTION = 64 << 20
_MAX_CHUNK = 16 << 20
_MAX_CPUS = 65536
BLOCK = 16 << 20

PAGE_HEADER_SIZE = 16
_COMMIT_MASK = (1 << 20) - 1
MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30
# Kinds of entries in a page beside events (ring-buffer: type_len).
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31


class TraceFileError(FleetError):
    """A file that is not a trace.dat of version 6 or 7, or is damaged or cut short."""


@dataclass(frozen=True)
class CpuPages:
    """Where the pages of one CPU lie in the file, in bytes; compressed they stand there as chunks."""

    cpu: int
    offset: int
    size: int


@dataclass
class Head:
    """What stands before the pages. Texts are as tracefs gives them; OPTIONS are (id, data).

    COMPRESSION is how a file of version 7 is compressed, and none for version 6.
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


def pack_head(head: Head, cpu_sizes: list[int]) -> bytes:
    """The bytes of HEAD, padded to whole pages, for CPU_SIZES bytes of pages of CPU 0, 1, … that follow.

    Where HEAD is of compressed pages, a size is that of a count and so many chunks, as pack_count and pack_chunk give them.
    """
    start = _MAGIC + b"%d\0" % head.version + _ENDIAN + bytes([struct.calcsize("P")]) + struct.pack("I", head.page_size)
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
        _OPTIONS,
        *(_pack_option(number, data) for number, data in head.options),
        struct.pack("H", _DONE),
        _FLYRECORD,
    ]
    packed = b"".join(parts)
    size = _round_up(len(packed) + 16 * len(cpu_sizes), head.page_size)
    places = b"".join(struct.pack("QQ", *place) for place in _find_places(size, cpu_sizes))
    return (packed + places).ljust(size, b"\0")


def _round_up(size: int, page_size: int) -> int:
    return -(-size // page_size) * page_size


def _find_places(offset: int, sizes: list[int]) -> Iterator[tuple[int, int]]:
    for size in sizes:
        yield offset, size
        offset += size


def _pack_header_info(head: Head) -> bytes:
    page, event = head.header_page, head.header_event
    return _HEADER_PAGE + struct.pack("Q", len(page)) + page + _HEADER_EVENT + struct.pack("Q", len(event)) + event


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
        _HEADER_INFO: _pack_header_info(head),
        _FTRACE_EVENTS: _pack_formats(head.ftrace_formats),
        _EVENT_FORMATS: _pack_events(head),
        _KALLSYMS: struct.pack("I", len(head.kallsyms)) + head.kallsyms,
        _PRINTK: struct.pack("I", len(head.printk)) + head.printk,
        _CMDLINES: struct.pack("Q", len(head.cmdlines)) + head.cmdlines,
    }
    compress = compression.make_compressor(head.compression)
    options = list(head.options)
    sections = b""
    first = len(start) + 8  # behind the place of the options
    for number, data in contents.items():
        options.append((number, struct.pack("Q", first + len(sections))))
        is_packed = head.compression != compression.NONE
        body = pack_chunk(compress(data), len(data)) if is_packed else data
        sections += _SECTION.pack(number, _COMPRESSED if is_packed else 0, 0, len(body)) + body
    options.append((_CPUCOUNT, struct.pack("I", len(cpu_sizes))))
    clocks = [data for number, data in head.options if number == OPTION_TRACECLOCK]
    clock = clocks[0].partition(b"[")[2].partition(b"]")[0] if clocks else b""
    options_at = first + len(sections)

    def pack_rest(pages_at: int, offset: int) -> bytes:
        # The instance without a name is the one that a reader shows by itself.
        buffer = struct.pack("Q", pages_at) + b"\0" + clock + b"\0" + struct.pack("II", head.page_size, len(cpu_sizes))
        for cpu, place in enumerate(_find_places(offset, cpu_sizes)):
            buffer += struct.pack("=IQQ", cpu, *place)
        body = b"".join(_pack_option(*one) for one in [*options, (_BUFFER, buffer), (_DONE, bytes(8))])
        flags = 0 if head.compression == compression.NONE else _COMPRESSED
        pages = _SECTION.pack(_BUFFER, flags, 0, offset - pages_at - _SECTION.size + sum(cpu_sizes))
        return _SECTION.pack(_DONE, 0, 0, len(body)) + body + pages

    size = options_at + len(pack_rest(0, 0x1000))
    offset = _round_up(size, head.page_size)
    packed = start + struct.pack("Q", options_at) + sections + pack_rest(size - _SECTION.size, offset)
    return packed.ljust(offset, b"\0")


def pack_count(chunks: int) -> bytes:
    """What stands before the CHUNKS of a CPU."""
    return struct.pack("I", chunks)


def pack_chunk(packed: bytes, size: int) -> bytes:
    """A chunk: the bytes PACKED, which are SIZE without compression."""
    return _CHUNK.pack(len(packed), size) + packed


class _Reader:
    """Reads the fields of a head in turn; every length is checked before it is believed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, count: int) -> bytes:
        if count > _MAX_SECTION:
            raise TraceFileError(f"a section of {count} bytes in the head of a trace is not believable")
        data = self._file.read(count)
        if len(data) != count:
            raise TraceFileError("the trace is cut short")
        return data

    def expect(self, wanted: bytes) -> None:
        if self.take(len(wanted)) != wanted:
            raise TraceFileError("not a trace.dat of this machine's byte order")

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
    reader.expect(_MAGIC)
    version = reader.take(2)
    if version not in (b"6\0", b"7\0"):
        raise TraceFileError(f"not a trace.dat of version 6 or 7 (it says {version!r})")
    reader.expect(_ENDIAN)
    reader.number("B")
    page_size = reader.number("I")
    if page_size < 512 or page_size > 1 << 20 or page_size & (page_size - 1):
        raise TraceFileError(f"a page size of {page_size} bytes is not believable")
    head = Head(page_size, b"", b"", [], {}, version=int(version[:1]))
    if head.version == 7:
        _read_sections(file, reader, head)
    else:
        _read_head_6(reader, head)
    if len(head.cpus) > _MAX_CPUS or any(one.cpu >= _MAX_CPUS for one in head.cpus):
        raise TraceFileError(f"a trace of {len(head.cpus)} CPUs is not believable")
    if any(place.offset + place.size >= 1 << 63 for place in head.cpus):
        raise TraceFileError("the pages of a CPU lie beyond any file's end")
    return head


def _read_head_6(reader: _Reader, head: Head) -> None:
    for number in _SECTIONS:
        _read_section(reader, head, number)
    cpus = reader.number("I")
    if cpus > _MAX_CPUS:
        raise TraceFileError(f"a trace of {cpus} CPUs is not believable")
    section = reader.take(len(_OPTIONS))
    if section == _OPTIONS:
        while True:
            number = reader.number("H")
            if number == _DONE:
                break
            head.options.append((number, reader.take(reader.number("I"))))
        section = reader.take(len(_FLYRECORD))
    if section != _FLYRECORD:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    head.cpus = [CpuPages(cpu, reader.number("Q"), reader.number("Q")) for cpu in range(cpus)]


def _read_section(reader: _Reader, head: Head, number: int) -> None:
    """Take into HEAD what section NUMBER says; both versions write it in the same way."""
    if number == _HEADER_INFO:
        reader.expect(_HEADER_PAGE)
        head.header_page = reader.take(reader.number("Q"))
        reader.expect(_HEADER_EVENT)
        head.header_event = reader.take(reader.number("Q"))
    elif number == _FTRACE_EVENTS:
        head.ftrace_formats = reader.formats()
    elif number == _EVENT_FORMATS:
        for _system in range(reader.number("I")):
            name = reader.text()
            head.event_formats[name] = reader.formats()
    elif number == _KALLSYMS:
        head.kallsyms = reader.take(reader.number("I"))
    elif number == _PRINTK:
        head.printk = reader.take(reader.number("I"))
    elif number == _CMDLINES:
        head.cmdlines = reader.take(reader.number("Q"))


def _read_sections(file: BinaryIO, reader: _Reader, head: Head) -> None:
    head.compression = reader.text()
    reader.text()  # the version of what compressed it
    buffers: list[_Reader] = []
    offset = reader.number("Q")
    seen = set()
    while offset and offset not in seen:
        seen.add(offset)
        options = _open_section(file, offset, _DONE, head.compression)
        offset = 0
        while True:
            number = options.number("H")
            data = options.take(options.number("I"))
            own = _Reader(io.BytesIO(data))
            if number == _DONE:
                offset = own.number("Q")
                break
            if number in _SECTIONS:
                _read_section(_open_section(file, own.number("Q"), number, head.compression), head, number)
            elif number == _BUFFER:
                buffers.append(own)
            elif number != _CPUCOUNT:
                head.options.append((number, data))
    if len(buffers) != 1:
        raise TraceFileError(f"the trace holds {len(buffers)} recordings, and is to hold one")
    _read_buffer(file, buffers[0], head)


def _open_section(file: BinaryIO, offset: int, wanted: int, method: str) -> _Reader:
    """A reader of the section WANTED, which begins at OFFSET of FILE."""
    number, flags, size = _read_section_header(file, offset)
    if number != wanted or size > _MAX_SECTION:
        raise TraceFileError(f"where section {wanted} of a trace should be is section {number} of {size} bytes")
    if not flags & _COMPRESSED:
        return _Reader(io.BytesIO(_Reader(file).take(size)))
    return _Reader(io.BytesIO(_read_chunk(_Reader(file), method, _MAX_SECTION)))


def _read_section_header(file: BinaryIO, offset: int) -> tuple[int, int, int]:
    if offset >= 1 << 63:
        raise TraceFileError("a section of a trace lies beyond any file's end")
    file.seek(offset)
    number, flags, _description, size = _SECTION.unpack(_Reader(file).take(_SECTION.size))
    return number, flags, size


def _read_chunk(reader: _Reader, method: str, most: int) -> bytes:
    packed, size = _CHUNK.unpack(reader.take(_CHUNK.size))
    if size > most or packed > most + 4096:
        raise TraceFileError(f"{size} bytes in one piece of a trace are not believable")
    try:
        return compression.decompress(method, reader.take(packed), size)
    except compression.CompressionError as error:
        raise TraceFileError(f"a compressed piece of the trace cannot be read: {error}") from error


def _read_buffer(file: BinaryIO, option: _Reader, head: Head) -> None:
    """Where the pages of each CPU lie, from the option of the one recording."""
    number, flags, _size = _read_section_header(file, option.number("Q"))
    if number != _BUFFER:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    option.text()  # the instance
    option.text()  # its clock
    option.number("I")
    cpus = option.number("I")
    head.cpus = [CpuPages(option.number("I"), option.number("Q"), option.number("Q")) for _cpu in range(cpus)]
    if not flags & _COMPRESSED:
        head.compression = compression.NONE


def gen_page_blocks(file: BinaryIO, head: Head, place: CpuPages, block_size: int = BLOCK) -> Iterator[bytes]:
    """The pages of one CPU, in blocks of whole pages, of BLOCK_SIZE bytes or somewhat more. FILE may be read for others between two.

    Raises TraceFileError where the file does not hold them.
    """
    if head.compression == compression.NONE:
        for start in range(place.offset, place.offset + place.size, block_size):
            file.seek(start)
            wanted = min(block_size, place.offset + place.size - start)
            block = file.read(wanted)
            if len(block) < max(wanted, head.page_size):
                raise TraceFileError(f"the trace is cut short in the pages of CPU {place.cpu}")
            yield block
    elif place.size:
        yield from _gen_chunk_blocks(file, head, place, block_size)


def _gen_chunk_blocks(file: BinaryIO, head: Head, place: CpuPages, block_size: int) -> Iterator[bytes]:
    # A decoder works best on many pages at once, and a chunk has few.
    reader = _Reader(file)
    file.seek(place.offset)
    left = reader.number("I")
    at = file.tell()
    while left:
        file.seek(at)
        gathered: list[bytes] = []
        while left and sum(map(len, gathered)) < block_size:
            gathered.append(_read_chunk(reader, head.compression, _MAX_CHUNK))
            left -= 1
        at = file.tell()
        block = b"".join(gathered)
        if len(block) % head.page_size:
            raise TraceFileError(f"a chunk of CPU {place.cpu} holds no whole pages")
        if at > place.offset + place.size:
            raise TraceFileError(f"the chunks of CPU {place.cpu} reach beyond their end")
        if block:
            yield block


def unpack_commit(commit: int) -> tuple[int, bool, bool]:
    """From a page's commit word: bytes of events, whether events were lost before them, whether their number is stored behind them."""
    return commit & _COMMIT_MASK, bool(commit & MISSED_EVENTS), bool(commit & _MISSED_STORED)


def read_loss(page: bytes | memoryview) -> tuple[int, bool]:
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
