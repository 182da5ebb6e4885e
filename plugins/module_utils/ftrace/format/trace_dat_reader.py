# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read trace.dat files of versions 6 and 7 by any writer; every number in them is checked before it is used."""

from __future__ import annotations

import io
import re
import struct
import sys
from dataclasses import replace
from typing import BinaryIO, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import (
    BUFFER,
    CHUNK,
    CHUNK_HEADER_SIZE,
    CMDLINES,
    COMPRESSED,
    CPUCOUNT,
    DONE,
    EVENT_FORMATS,
    FLYRECORD,
    FTRACE_EVENTS,
    HEADER_EVENT,
    HEADER_INFO,
    HEADER_PAGE,
    KALLSYMS,
    MAGIC,
    OPTIONS,
    ORDERS,
    PRINTK,
    SECTION,
    CpuPages,
    Head,
    TraceFileError,
    find_clock,
    find_mark,
    read_current_clock,
)

_BUFFER_TEXT = 22
_SECTIONS = range(16, 22)
_LATENCY = b"latency  \0"
_COMMIT_SIZE = re.compile(rb"field: local_t commit;\s*offset:[0-9]+;\s*size:([0-9]{1,3});")
_MAX_CLOCKS = 256  # bytes of the kernel's list of clocks
_WORD_SIZES = (4, 8)
_READ_BY_TRACE_CMD = "read it by trace-cmd report"
_COUNT_SIZE = 4
_MAX_SECTION = 64 << 20
_MAX_HEAD = 256 << 20  # of all sections
_MAX_FORMATS = 65536  # an event's number has 16 bits
_MAX_CHUNK = 16 << 20
_MAX_CPUS = 65536  # in all buffers of a file
_MAX_BUFFERS = 1024
_MAX_OPTIONS = 131072  # each CPU of each buffer has one
BLOCK = 16 << 20
# Each page has its own time stamp and at least one event. Even well compressed these take some bytes.
_MIN_PAGE = 4
_MAX_USUAL_PAGE = 65536
_FREE_GROWTH = 64 << 20


class _Reader:
    """A reader of the fields of a head in turn, which checks every length before it is used."""

    def __init__(self, file: BinaryIO, order: str) -> None:
        self._file = file
        self._left = _MAX_HEAD
        self.order = order  # of the bytes of numbers: little or big

    def enter(self, data: bytes) -> _Reader:
        """Return a reader of DATA, a part of the head."""
        return _Reader(io.BytesIO(data), self.order)

    def seek(self, offset: int) -> None:
        if offset > self._file.seek(0, io.SEEK_END):
            raise TraceFileError("the trace is cut short: a section of it lies behind the end")
        self._file.seek(offset)

    def spend(self, count: int) -> None:
        """Count COUNT bytes against the bound of memory: a file may point to the same bytes again and again."""
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
        """Return COUNT bytes, or fewer at the file's end."""
        self.spend(count)
        return self._file.read(count)

    def expect(self, wanted: bytes) -> None:
        if self.take(len(wanted)) != wanted:
            raise TraceFileError(f"the trace is damaged: its head lacks {wanted[:-1].decode('ascii')}")

    def number(self, code: str) -> int:
        return self.numbers(code)[0]

    def numbers(self, codes: str) -> tuple[int, ...]:
        """Read numbers of the sizes that CODES tell struct, one behind the other."""
        packed = struct.Struct(find_mark(self.order) + codes)
        return packed.unpack(self.take(packed.size))

    def count(self, what: str, most: int) -> int:
        """Read the number of WHAT; raises TraceFileError for a number above MOST."""
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
        """Return the decompressed content of the chunk that begins here. METHOD is its compression."""
        packed, size = self.numbers(CHUNK)
        self.spend(size)
        return _decompress(method, self.take(packed), size)


def read_head(file: BinaryIO) -> Head:
    """Return the head of the only buffer in the trace.dat FILE, which is open at its start.

    Raises TraceFileError if the file is damaged, or holds another number of buffers.
    """
    heads = read_heads(file)
    if len(heads) != 1:
        raise TraceFileError(f"the trace holds {len(heads)} buffers instead of one")
    return heads[0]


def read_heads(file: BinaryIO) -> list[Head]:
    """Return a head for each buffer in the trace.dat FILE, which is open at its start; the heads share what is common to all buffers.

    Raises TraceFileError if the file is damaged, or of a kind that is not supported.
    """
    reader = _Reader(file, sys.byteorder)
    head = _read_start(reader)
    heads = _read_sections(reader, head) if head.version == 7 else _read_head_6(reader, head)
    found = _COMMIT_SIZE.search(head.header_page)
    # The word size at the file's beginning is that of the program trace-cmd. For the pages that of the kernel counts.
    word_size = int(found[1]) if found else head.word_size
    if word_size not in _WORD_SIZES:
        raise TraceFileError(f"a kernel with words of {word_size} bytes is not believable")
    heads = [replace(one, word_size=word_size) for one in heads]
    # trace-cmd writes a buffer without a name into each file, even if it recorded in other buffers only.
    heads = [head for head in heads if head.buffer or any(place.size for place in head.cpus)] or heads[:1]
    if not heads:
        raise TraceFileError("the trace holds no buffer: nothing was recorded", "remove it")
    _check_places(file, heads)
    return heads


def _read_start(reader: _Reader) -> Head:
    """Read the first bytes; return a head with nothing but version, page size, order and word size. READER has the order from then on."""
    magic = reader.look(len(MAGIC))
    if not magic:
        raise TraceFileError("the file is empty", "remove it")
    if magic != MAGIC:
        raise TraceFileError("the file is no trace.dat of trace-cmd's", "move it elsewhere, or remove it")
    version = reader.text()
    if version not in ("6", "7"):
        raise TraceFileError(
            f"the file is not a trace.dat of version 6 or 7 (it says {version!r})",
            "let trace-cmd convert --file-version 7 make one of it",
        )
    mark = reader.take(1)
    found = [order for order, its_mark in ORDERS.items() if its_mark == mark]
    if not found:
        raise TraceFileError("the trace is damaged: it has no byte order")
    (reader.order,) = found
    word_size = reader.number("B")
    page_size = reader.number("I")
    _check_page_size(page_size)
    return Head(page_size, b"", b"", [], {}, version=int(version), order=reader.order, word_size=word_size)


def _check_page_size(page_size: int) -> None:
    if page_size < 512 or page_size > 1 << 20 or page_size & (page_size - 1):
        raise TraceFileError(f"a page size of {page_size} bytes is not believable")


def _read_head_6(reader: _Reader, head: Head) -> list[Head]:
    for number in _SECTIONS:
        _read_section(reader, head, number)
    cpus = reader.count("CPUs", _MAX_CPUS)
    buffers = []
    section = reader.take(len(OPTIONS))
    if section == OPTIONS:
        while True:
            number = reader.number("H")
            if number == DONE:
                break
            data = reader.take(reader.number("I"))
            if number == BUFFER:
                buffers.append(data)
            elif number == CPUCOUNT:
                cpus = reader.enter(data).count("CPUs", _MAX_CPUS)
            else:
                _add_option(head, number, data)
        section = reader.take(len(FLYRECORD))
    _check_counts(1 + len(buffers), (1 + len(buffers)) * cpus)
    heads = [_read_buffer_6(reader, section, cpus, head)]
    for data in buffers:
        option = reader.enter(data)
        offset, name = option.number("Q"), option.text()
        if offset:  # trace-cmd split leaves options of buffers without a place
            reader.seek(offset)
            heads.append(replace(_read_buffer_6(reader, reader.take(len(FLYRECORD)), cpus, head), buffer=name))
    return heads


def _read_buffer_6(reader: _Reader, section: bytes, cpus: int, head: Head) -> Head:
    """Return HEAD with the places of the CPUs' pages and the clock of the buffer whose SECTION begins here.

    Older files of this collection lack the clock.
    """
    if section == _LATENCY:
        raise _make_text_error()
    if section != FLYRECORD:
        raise TraceFileError("the trace is of a kind other than one whole recording (flyrecord)")
    places = [CpuPages(cpu, reader.number("Q"), reader.number("Q")) for cpu in range(cpus)]
    rest = reader.look(8 + _MAX_CLOCKS)
    size = int.from_bytes(rest[:8], "little" if reader.order == "little" else "big")
    return replace(head, cpus=places, clock=read_current_clock(rest[8 : 8 + size]) or find_clock(head))


def _make_text_error() -> TraceFileError:
    return TraceFileError("the trace holds a latency tracer's text, and no events", _READ_BY_TRACE_CMD)


def _add_option(head: Head, number: int, data: bytes) -> None:
    head.options.append((number, data))
    if len(head.options) > _MAX_OPTIONS:
        raise TraceFileError(f"more than {_MAX_OPTIONS} options in one trace are not believable")


def _read_section(reader: _Reader, head: Head, number: int) -> None:
    """Read section NUMBER into HEAD; its content has the same form in both versions."""
    if number == HEADER_INFO:
        reader.expect(HEADER_PAGE)
        head.header_page = reader.take(reader.number("Q"))
        reader.expect(HEADER_EVENT)
        head.header_event = reader.take(reader.number("Q"))
    elif number == FTRACE_EVENTS:
        head.ftrace_formats = reader.formats()
    elif number == EVENT_FORMATS:
        for _system in range(reader.count("event systems", _MAX_FORMATS)):
            name = reader.text()
            head.event_formats[name] = reader.formats()
    elif number == KALLSYMS:
        head.kallsyms = reader.take(reader.number("I"))
    elif number == PRINTK:
        head.printk = reader.take(reader.number("I"))
    elif number == CMDLINES:
        head.cmdlines = reader.take(reader.number("Q"))


def _read_sections(reader: _Reader, head: Head) -> list[Head]:
    head.compression = reader.text()
    reader.text()  # the version of the compression library
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
        options = _open_section(reader, offset, DONE, head.compression)
        while True:
            number = options.number("H")
            data = options.take(options.number("I"))
            if number == _BUFFER_TEXT:
                raise _make_text_error()
            if number == DONE:
                offset = reader.enter(data).number("Q")
                break
            if number in _SECTIONS:
                sections[number] = reader.enter(data).number("Q")
            elif number == BUFFER:
                buffers.append(data)
            elif number != CPUCOUNT:
                _add_option(head, number, data)
    for number, offset in sections.items():
        _read_section(_open_section(reader, offset, number, head.compression), head, number)
    _check_counts(len(buffers), 0)
    heads = [_read_buffer_7(reader, reader.enter(data), head) for data in buffers]
    places = [place for own in heads for place in own.cpus]
    _check_counts(len(buffers), max([len(places), *(place.cpu for place in places)]))
    return heads


def _check_counts(buffers: int, cpus: int) -> None:
    if buffers > _MAX_BUFFERS or cpus > _MAX_CPUS:
        raise TraceFileError(f"a trace of {buffers} buffers and {cpus} CPUs in them is not believable")


def _open_section(reader: _Reader, offset: int, wanted: int, method: str) -> _Reader:
    """Return a reader of the content of section WANTED, which begins at OFFSET."""
    number, flags, size = _read_section_header(reader, offset)
    if number != wanted or size > _MAX_SECTION:
        raise TraceFileError(f"where section {wanted} of the trace should be is section {number} of {size} bytes")
    return reader.enter(reader.chunk(method) if flags & COMPRESSED else reader.take(size))


def _read_section_header(reader: _Reader, offset: int) -> tuple[int, int, int]:
    reader.seek(offset)
    number, flags, _description, size = reader.numbers(SECTION)
    return number, flags, size


def _decompress(method: str, packed: bytes, size: int) -> bytes:
    try:
        return compression.decompress(method, packed, size)
    except compression.CompressionError as error:
        raise TraceFileError(f"a compressed piece of the trace cannot be read: {error}") from error


def _read_buffer_7(reader: _Reader, option: _Reader, head: Head) -> Head:
    """Return HEAD with the name, the clock and the places of the buffer that OPTION describes."""
    number, flags, _size = _read_section_header(reader, option.number("Q"))
    if number != BUFFER:
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
        compression=head.compression if flags & COMPRESSED else compression.NONE,
    )


def _check_places(file: BinaryIO, heads: list[Head]) -> None:
    """Raise TraceFileError if the pages of HEADS cannot all be in FILE, or would expand to more than a kernel's pages can."""
    end = file.seek(0, io.SEEK_END)
    reached = packed = plain = 0
    found = [(place, head) for head in heads for place in head.cpus if place.size]
    for place, own in sorted(found, key=lambda pair: pair[0].offset):
        if place.offset + place.size > end:
            raise TraceFileError(
                f"the trace is cut short: the pages of CPU {place.cpu} end at byte {place.offset + place.size}, the file at {end}"
            )
        if place.offset < reached:
            raise TraceFileError(f"the trace is damaged: the pages of CPU {place.cpu} overlap those of another CPU")
        reached = place.offset + place.size
        if own.compression != compression.NONE:
            packed += place.size
            plain += sum(size for _at, _packed, size in _gen_chunks(file, place, own.order))
        elif place.size % own.page_size:
            raise TraceFileError(f"the trace is damaged: it holds no whole pages of CPU {place.cpu}")
    check_growth(packed, plain, max(head.page_size for head in heads))


def check_growth(packed: int, plain: int, page_size: int) -> None:
    """Raise TraceFileError if PACKED bytes would expand to more bytes, PLAIN, than a kernel's pages can.

    Each page has its own time stamp and at least one event, so its compression has a limit. PAGE_SIZE is in bytes.
    """
    most = _FREE_GROWTH + packed // _MIN_PAGE * min(page_size, _MAX_USUAL_PAGE)
    if plain > most:
        raise TraceFileError(
            f"{packed} bytes would expand to {plain}, and no kernel's pages compress so well ({most} at most)"
        )


def gen_page_blocks(file: BinaryIO, head: Head, place: CpuPages, block_size: int = BLOCK) -> Iterator[bytes]:
    """Yield the pages of the CPU at PLACE in blocks of whole pages, of BLOCK_SIZE bytes or somewhat more.

    A caller may read other parts of FILE between two blocks. Raises TraceFileError if the file does not hold the pages.
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


def _gen_chunks(file: BinaryIO, place: CpuPages, order: str) -> Iterator[tuple[int, int, int]]:
    """Yield for each chunk of the CPU at PLACE the offset of its data, and their bytes with and without compression.

    ORDER is that of the bytes of its numbers.
    """
    file.seek(place.offset)
    count = _Reader(file, order).number("I")
    at = place.offset + _COUNT_SIZE
    end = at + place.size  # trace-cmd's sizes leave out the count, those of this collection include it
    for _chunk in range(count):
        file.seek(at)
        packed, size = _Reader(file, order).numbers(CHUNK)
        if size > _MAX_CHUNK:
            raise TraceFileError(f"{size} bytes in one chunk of CPU {place.cpu} are not believable")
        if at + CHUNK_HEADER_SIZE + packed > end:
            raise TraceFileError(f"the chunks of CPU {place.cpu} reach beyond their end")
        yield at + CHUNK_HEADER_SIZE, packed, size
        at += CHUNK_HEADER_SIZE + packed


def _gen_chunk_blocks(file: BinaryIO, head: Head, place: CpuPages, block_size: int) -> Iterator[bytes]:
    # A decoder works best on many pages at once, and a chunk has only a few.
    gathered: list[bytes] = []
    for at, packed, size in _gen_chunks(file, place, head.order):
        if size % head.page_size:
            raise TraceFileError(f"a chunk of CPU {place.cpu} holds no whole pages")
        file.seek(at)
        gathered.append(_decompress(head.compression, _Reader(file, head.order).take(packed), size))
        if sum(map(len, gathered)) >= block_size:
            yield b"".join(gathered)
            gathered = []
    if gathered:
        yield b"".join(gathered)
