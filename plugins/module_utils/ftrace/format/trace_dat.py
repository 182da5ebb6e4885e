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

import io
import re
import struct
import sys
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression

VERSIONS = (6, 7)
OPTION_CPUSTAT = 2
OPTION_TRACECLOCK = 4
OPTION_UNAME = 5
_TSC2NSEC = 14
# Options of version 7 that say where sections are; a section's own number is its option's.
_DONE = 0
_BUFFER = 3
_CPUCOUNT = 8
_BUFFER_TEXT = 22
_HEADER_INFO, _FTRACE_EVENTS, _EVENT_FORMATS, _KALLSYMS, _PRINTK, _CMDLINES = range(16, 22)
_SECTIONS = range(16, 22)
_COMPRESSED = 1  # a section's flag

_MAGIC = b"\x17\x08\x44tracing"
_ENDIAN = b"\0" if sys.byteorder == "little" else b"\1"
_ORDERS = {b"\0": "little-endian", b"\1": "big-endian"}
_OPTIONS = b"options  \0"
_FLYRECORD = b"flyrecord\0"
_LATENCY = b"latency  \0"
_COMMIT_SIZE = re.compile(rb"field: local_t commit;\s*offset:[0-9]+;\s*size:([0-9]{1,3});")
_CLOCK = re.compile(rb"[ \w-]*\[([\w-]{1,32})\]")
# Statistics follow each other buffer by buffer, with a name before those of all but the first.
_STATISTICS_OF = re.compile(rb"\nBuffer: (.*)\n\n\0")
_NOW = re.compile(rb"\nnow ts: +([0-9.]+)\n")
_MAX_CLOCKS = 256  # bytes of the kernel's list of them
_WORD_SIZE = 8
_READ_BY_TRACE_CMD = "read it by trace-cmd report"
_HEADER_PAGE = b"header_page\0"
_HEADER_EVENT = b"header_event\0"
_SECTION = struct.Struct("=HHIQ")  # number, flags, place of a description in the strings, bytes that follow
_CHUNK = struct.Struct("=II")  # bytes compressed and plain
CHUNK_HEADER_SIZE = _CHUNK.size
_COUNT_SIZE = 4
_MAX_SECTION = 64 << 20
_MAX_HEAD = 256 << 20  # of all sections
_MAX_FORMATS = 65536  # an event's number has 16 bits
_MAX_CHUNK = 16 << 20
_MAX_CPUS = 65536  # in all buffers of a file
_MAX_BUFFERS = 1024
_MAX_OPTIONS = 131072  # there is one for each CPU of each buffer
BLOCK = 16 << 20
# A page has a time of its own, and an event at least. However well pages are compressed, that takes some bytes for each.
_MIN_PAGE = 4
_MAX_USUAL_PAGE = 65536
_FREE_GROWTH = 64 << 20

PAGE_HEADER_SIZE = 16
_COMMIT_MASK = (1 << 20) - 1
MISSED_EVENTS = 1 << 31
_MISSED_STORED = 1 << 30
# Kinds of entries in a page beside events (ring-buffer: type_len).
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31


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
    clock = f"[{_find_clock(head)}]".encode("ascii")
    size = _round_up(len(packed) + 16 * len(cpu_sizes) + 8 + len(clock), head.page_size)
    places = b"".join(struct.pack("QQ", *place) for place in _find_places(size, cpu_sizes))
    return (packed + places + struct.pack("Q", len(clock)) + clock).ljust(size, b"\0")


def _find_clock(head: Head) -> str:
    """The clock that the options of HEAD name, '' for none."""
    return next((_read_current_clock(data) for number, data in head.options if number == OPTION_TRACECLOCK), "")


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
    clock = _find_clock(head).encode("ascii")
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
        self._left = _MAX_HEAD

    def seek(self, offset: int) -> None:
        if offset > self._file.seek(0, io.SEEK_END):
            raise TraceFileError("the trace is cut short: a section of it lies behind the end")
        self._file.seek(offset)

    def spend(self, count: int) -> None:
        """Take COUNT bytes of memory into account: a file may point to the same ones again and again."""
        self._left -= count
        if count > _MAX_SECTION or self._left < 0:
            raise TraceFileError(f"a section of {count} bytes in the head of the trace is not believable")

    def take(self, count: int) -> bytes:
        self.spend(count)
        data = self._file.read(count)
        if len(data) != count:
            raise TraceFileError("the trace is cut short")
        return data

    def look(self, count: int) -> bytes:
        """COUNT bytes, or those that are left."""
        self.spend(count)
        return self._file.read(count)

    def expect(self, wanted: bytes) -> None:
        if self.take(len(wanted)) != wanted:
            raise TraceFileError(f"the trace is damaged: its head lacks {wanted[:-1].decode('ascii')}")

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def count(self, what: str, most: int) -> int:
        """The number of WHAT follows; raises TraceFileError for one above MOST."""
        count = self.number("I")
        if count > most:
            raise TraceFileError(f"{count} {what} in one trace are not believable")
        return count

    def text(self) -> str:
        name = bytearray()
        while True:
            byte = self.take(1)
            if byte == b"\0":
                return name.decode("utf-8", "replace")
            name += byte
            if len(name) > 256:
                raise TraceFileError("a name in the head of the trace does not end")

    def formats(self) -> list[bytes]:
        return [self.take(self.number("Q")) for _index in range(self.count("event formats", _MAX_FORMATS))]

    def chunk(self, method: str) -> bytes:
        """What the chunk here holds, compressed by METHOD."""
        packed, size = _CHUNK.unpack(self.take(_CHUNK.size))
        self.spend(size)
        return _decompress(method, self.take(packed), size)


def read_head(file: BinaryIO) -> Head:
    """The head of the trace.dat of one buffer, as we write it, that FILE, open at its start, holds. Raises TraceFileError."""
    heads = read_heads(file)
    if len(heads) != 1:
        raise TraceFileError(f"the trace holds {len(heads)} buffers, and is to hold one")
    return heads[0]


def read_heads(file: BinaryIO) -> list[Head]:
    """A head for each buffer that the trace.dat FILE, open at its start, holds; they share all that is not of one buffer only.

    Raises TraceFileError where it is not sound, or of a kind that is not supported.
    """
    reader = _Reader(file)
    head, word_size = _read_start(reader)
    heads = _read_sections(reader, head) if head.version == 7 else _read_head_6(reader, head)
    found = _COMMIT_SIZE.search(head.header_page)
    # The first byte that says so is of trace-cmd's own word; the pages are the kernel's.
    word_size = int(found[1]) if found else word_size
    if word_size != _WORD_SIZE:
        raise TraceFileError(
            f"the trace is of a kernel with words of {word_size} bytes, and only those of {_WORD_SIZE} are read here",
            _READ_BY_TRACE_CMD,
        )
    # trace-cmd gives each file a buffer without a name, also where all was recorded in others.
    heads = [one for one in heads if one.buffer or any(place.size for place in one.cpus)] or heads[:1]
    if not heads:
        raise TraceFileError("the trace holds no buffer: nothing was recorded", "remove it")
    _check_places(file, heads)
    return heads


def _read_start(reader: _Reader) -> tuple[Head, int]:
    """What the first bytes say: a head that lacks the rest, and the size of a word."""
    magic = reader.look(len(_MAGIC))
    if not magic:
        raise TraceFileError("the file is empty", "remove it")
    if magic != _MAGIC:
        raise TraceFileError("the file is no trace.dat of trace-cmd's", "move it elsewhere, or remove it")
    version = reader.text()
    if version not in ("6", "7"):
        raise TraceFileError(
            f"the file is not a trace.dat of version 6 or 7 (it says {version!r})",
            "let trace-cmd convert --file-version 7 make one of it",
        )
    order = reader.take(1)
    if order not in _ORDERS:
        raise TraceFileError("the trace is damaged: it has no byte order")
    if order != _ENDIAN:
        raise TraceFileError(
            f"the trace is of a {_ORDERS[order]} machine, and this one has another byte order", _READ_BY_TRACE_CMD
        )
    word_size = reader.number("B")
    page_size = reader.number("I")
    _check_page_size(page_size)
    return Head(page_size, b"", b"", [], {}, version=int(version)), word_size


def _check_page_size(page_size: int) -> None:
    if page_size < 512 or page_size > 1 << 20 or page_size & (page_size - 1):
        raise TraceFileError(f"a page size of {page_size} bytes is not believable")


def _read_head_6(reader: _Reader, head: Head) -> list[Head]:
    for number in _SECTIONS:
        _read_section(reader, head, number)
    cpus = reader.count("CPUs", _MAX_CPUS)
    buffers = []
    section = reader.take(len(_OPTIONS))
    if section == _OPTIONS:
        while True:
            number = reader.number("H")
            if number == _DONE:
                break
            data = reader.take(reader.number("I"))
            if number == _BUFFER:
                buffers.append(data)
            elif number == _CPUCOUNT:
                cpus = _Reader(io.BytesIO(data)).count("CPUs", _MAX_CPUS)
            else:
                _add_option(head, number, data)
        section = reader.take(len(_FLYRECORD))
    _check_counts(1 + len(buffers), (1 + len(buffers)) * cpus)
    heads = [_read_buffer_6(reader, section, cpus, head)]
    for data in buffers:
        option = _Reader(io.BytesIO(data))
        offset, name = option.number("Q"), option.text()
        if offset:  # else trace-cmd split has left the place of one empty
            reader.seek(offset)
            heads.append(replace(_read_buffer_6(reader, reader.take(len(_FLYRECORD)), cpus, head), buffer=name))
    return heads


def _read_buffer_6(reader: _Reader, section: bytes, cpus: int, head: Head) -> Head:
    """HEAD for the buffer whose SECTION begins here: where each CPU's pages lie, and their clock, which our older files lack."""
    if section == _LATENCY:
        raise _make_text_error()
    if section != _FLYRECORD:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    places = [CpuPages(cpu, reader.number("Q"), reader.number("Q")) for cpu in range(cpus)]
    rest = reader.look(8 + _MAX_CLOCKS)
    size = int.from_bytes(rest[:8], sys.byteorder)
    return replace(head, cpus=places, clock=_read_current_clock(rest[8 : 8 + size]) or _find_clock(head))


def _read_current_clock(text: bytes) -> str:
    """The clock in brackets in TEXT, the kernel's list of them; '' where there is none."""
    found = _CLOCK.match(text)
    return found[1].decode("ascii") if found else ""


def _make_text_error() -> TraceFileError:
    return TraceFileError("the trace holds a latency tracer's text, and no events", _READ_BY_TRACE_CMD)


def _add_option(head: Head, number: int, data: bytes) -> None:
    head.options.append((number, data))
    if len(head.options) > _MAX_OPTIONS:
        raise TraceFileError(f"more than {_MAX_OPTIONS} options in one trace are not believable")


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
        for _system in range(reader.count("event systems", _MAX_FORMATS)):
            name = reader.text()
            head.event_formats[name] = reader.formats()
    elif number == _KALLSYMS:
        head.kallsyms = reader.take(reader.number("I"))
    elif number == _PRINTK:
        head.printk = reader.take(reader.number("I"))
    elif number == _CMDLINES:
        head.cmdlines = reader.take(reader.number("Q"))


def _read_sections(reader: _Reader, head: Head) -> list[Head]:
    head.compression = reader.text()
    reader.text()  # the version of what compressed it
    if head.compression not in (compression.NONE, *compression.list_available()):
        is_missing = head.compression == compression.ZSTD
        raise TraceFileError(
            f"the trace is compressed by {head.compression!r}, which cannot be read here",
            "install libzstd1 (or libzstd)"
            if is_missing
            else "let trace-cmd convert --compression none make one that can",
        )
    sections: dict[int, int] = {}
    buffers: list[bytes] = []
    offset = reader.number("Q")
    seen = set()
    while offset and offset not in seen:
        seen.add(offset)
        options = _open_section(reader, offset, _DONE, head.compression)
        while True:
            number = options.number("H")
            data = options.take(options.number("I"))
            if number == _BUFFER_TEXT:
                raise _make_text_error()
            if number == _DONE:
                offset = _Reader(io.BytesIO(data)).number("Q")
                break
            if number in _SECTIONS:
                sections[number] = _Reader(io.BytesIO(data)).number("Q")
            elif number == _BUFFER:
                buffers.append(data)
            elif number != _CPUCOUNT:
                _add_option(head, number, data)
    for number, offset in sections.items():
        _read_section(_open_section(reader, offset, number, head.compression), head, number)
    _check_counts(len(buffers), 0)
    heads = [_read_buffer_7(reader, _Reader(io.BytesIO(data)), head) for data in buffers]
    places = [place for one in heads for place in one.cpus]
    _check_counts(len(buffers), max([len(places), *(place.cpu for place in places)]))
    return heads


def _check_counts(buffers: int, cpus: int) -> None:
    if buffers > _MAX_BUFFERS or cpus > _MAX_CPUS:
        raise TraceFileError(f"a trace of {buffers} buffers and {cpus} CPUs in them is not believable")


def _open_section(reader: _Reader, offset: int, wanted: int, method: str) -> _Reader:
    """A reader of the section WANTED, which begins at OFFSET."""
    number, flags, size = _read_section_header(reader, offset)
    if number != wanted or size > _MAX_SECTION:
        raise TraceFileError(f"where section {wanted} of the trace should be is section {number} of {size} bytes")
    return _Reader(io.BytesIO(reader.chunk(method) if flags & _COMPRESSED else reader.take(size)))


def _read_section_header(reader: _Reader, offset: int) -> tuple[int, int, int]:
    reader.seek(offset)
    number, flags, _description, size = _SECTION.unpack(reader.take(_SECTION.size))
    return number, flags, size


def _decompress(method: str, packed: bytes, size: int) -> bytes:
    try:
        return compression.decompress(method, packed, size)
    except compression.CompressionError as error:
        raise TraceFileError(f"a compressed piece of the trace cannot be read: {error}") from error


def _read_buffer_7(reader: _Reader, option: _Reader, head: Head) -> Head:
    """HEAD for the buffer that OPTION tells of."""
    number, flags, _size = _read_section_header(reader, option.number("Q"))
    if number != _BUFFER:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    name, clock = option.text(), option.text()
    page_size = option.number("I")
    _check_page_size(page_size)
    cpus = option.count("CPUs", _MAX_CPUS)
    return replace(
        head,
        buffer=name,
        clock=clock,
        page_size=page_size,
        cpus=[CpuPages(option.number("I"), option.number("Q"), option.number("Q")) for _cpu in range(cpus)],
        compression=head.compression if flags & _COMPRESSED else compression.NONE,
    )


def _check_places(file: BinaryIO, heads: list[Head]) -> None:
    """Raise TraceFileError where the pages of HEADS cannot all be in FILE, or would become more than any kernel's do."""
    end = file.seek(0, io.SEEK_END)
    reached = packed = plain = 0
    found = [(place, head) for head in heads for place in head.cpus if place.size]
    for place, own in sorted(found, key=lambda pair: pair[0].offset):
        if place.offset + place.size > end:
            raise TraceFileError(
                f"the trace is cut short: the pages of CPU {place.cpu} end at byte {place.offset + place.size}, the file at {end}"
            )
        if place.offset < reached:
            raise TraceFileError(f"the trace is damaged: the pages of CPU {place.cpu} are another one's, too")
        reached = place.offset + place.size
        if own.compression != compression.NONE:
            packed += place.size
            plain += sum(size for _at, _packed, size in _gen_chunks(file, place))
        elif place.size % own.page_size:
            raise TraceFileError(f"the trace is damaged: it holds no whole pages of CPU {place.cpu}")
    check_growth(packed, plain, max(head.page_size for head in heads))


def check_growth(packed: int, plain: int, page_size: int) -> None:
    """Raise TraceFileError where PLAIN bytes of pages in PACKED bytes cannot be a kernel's: a page has a time of its own, and an event."""
    most = _FREE_GROWTH + packed // _MIN_PAGE * min(page_size, _MAX_USUAL_PAGE)
    if plain > most:
        raise TraceFileError(
            f"{packed} bytes would become {plain}, and no kernel's pages are so much alike ({most} at most)"
        )


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


def _gen_chunks(file: BinaryIO, place: CpuPages) -> Iterator[tuple[int, int, int]]:
    """Of each chunk of the CPU at PLACE where its data begin, and how many bytes they are compressed and plain."""
    file.seek(place.offset)
    count = _Reader(file).number("I")
    at = place.offset + _COUNT_SIZE
    end = at + place.size  # trace-cmd's sizes are without the count, ours with it
    for _chunk in range(count):
        file.seek(at)
        packed, size = _CHUNK.unpack(_Reader(file).take(_CHUNK.size))
        if size > _MAX_CHUNK:
            raise TraceFileError(f"{size} bytes in one chunk of CPU {place.cpu} are not believable")
        if at + _CHUNK.size + packed > end:
            raise TraceFileError(f"the chunks of CPU {place.cpu} reach beyond their end")
        yield at + _CHUNK.size, packed, size
        at += _CHUNK.size + packed


def _gen_chunk_blocks(file: BinaryIO, head: Head, place: CpuPages, block_size: int) -> Iterator[bytes]:
    # A decoder works best on many pages at once, and a chunk has few.
    gathered: list[bytes] = []
    for at, packed, size in _gen_chunks(file, place):
        if size % head.page_size:
            raise TraceFileError(f"a chunk of CPU {place.cpu} holds no whole pages")
        file.seek(at)
        gathered.append(_decompress(head.compression, _Reader(file).take(packed), size))
        if sum(map(len, gathered)) >= block_size:
            yield b"".join(gathered)
            gathered = []
    if gathered:
        yield b"".join(gathered)


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
