# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write and read segments: a segment is a file with the pages that one drain has taken from one instance.

A host writes it, and a controller reads it. Its first line names the format and the compression. Frames follow: a number, the sizes of the
content compressed and plain, and the content. A CPU's number stands before a chunk of pages in the form of a trace.dat of version 7. Two
other numbers stand before the head of a trace.dat of version 6 without CPUs, and before documents in JSON.

A first document is written before the kernel gives up any page, and a last one at the end. So a segment whose writer was killed is still a
capture of the pages in it.
"""

from __future__ import annotations

import io
import json
import struct
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, BinaryIO, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    compression,
    trace_dat,
    trace_dat_reader,
)

_LINE = "crashcart segment 1 {}\n"
_LINE_SIZE = 64
_NUMBER = struct.Struct("=I")
_SIZES = struct.Struct("=II")
_HEAD, _DOCUMENT = 0xFFFFFFFE, 0xFFFFFFFF
_MAX_CPU = 65535
_MAX_FRAME = 64 << 20
MAX_CHUNK = 16 << 20


def find_stamp(name: str) -> str:
    """Return the name, without an ending, that the controller gives to the capture in segment NAME: the time of its drain in UTC."""
    seconds, nanoseconds = divmod(int(name.rpartition(".")[2]), 10**9)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S}.{nanoseconds // 1000:06d}Z"


class SegmentError(FleetError):
    """An error for a file that is no segment, or a damaged one."""


class SegmentWriter:
    """A writer of a segment to FILE; several threads may use it at once. METHOD is the compression."""

    def __init__(self, file: BinaryIO, method: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._method = method
        file.write(_LINE.format(method).encode("ascii").ljust(_LINE_SIZE, b" "))

    def make_compressor(self) -> Callable[[compression.Data], bytes]:
        """Return a function that compresses chunks for write_chunk; only one thread may use it."""
        return compression.make_compressor(self._method)

    def write_chunk(self, cpu: int, packed: bytes, size: int) -> None:
        """Add a chunk of CPU's pages: PACKED is the compressed chunk, SIZE its bytes before compression."""
        self._write(cpu, packed, size)

    def write_head(self, head: trace_dat.Head) -> None:
        """Add HEAD with the formats of events, which a reader needs for the pages."""
        self._write_packed(_HEAD, trace_dat.pack_head(head, []))

    def write_document(self, document: dict[str, Any]) -> None:
        """Add DOCUMENT, which holds the manifest and the tables of the capture; a later document replaces it."""
        self._write_packed(_DOCUMENT, json.dumps(document).encode("utf-8"))

    def _write_packed(self, number: int, data: bytes) -> None:
        self._write(number, self.make_compressor()(data), len(data))

    def _write(self, number: int, packed: bytes, size: int) -> None:
        with self._lock:
            self._file.write(_NUMBER.pack(number) + trace_dat.pack_chunk(packed, size))
            self._file.flush()  # data in the kernel's cache stay if this process is killed


@dataclass(frozen=True)
class Chunk:
    """The place of a chunk in a segment: at byte OFFSET its two sizes, then PACKED bytes, which are SIZE bytes without compression."""

    offset: int
    packed: int
    size: int


@dataclass
class Segment:
    """A segment that was read.

    FILE, COMPRESSION: the open file; the method of compression.
    HEAD: the head of a trace.dat without CPUs.
    DOCUMENT: the last document that was written.
    CHUNKS: CPU → its chunks, in the order of writing.
    """

    file: BinaryIO
    compression: str
    head: trace_dat.Head
    document: dict[str, Any]
    chunks: dict[int, list[Chunk]]

    def read_packed(self, chunk: Chunk) -> bytes:
        """Return CHUNK as it stands in the file: its two sizes and the compressed bytes."""
        self.file.seek(chunk.offset)
        return self.file.read(_SIZES.size + chunk.packed)

    def read_chunk(self, chunk: Chunk) -> bytes:
        """Return the pages of CHUNK; raises SegmentError if they cannot be decompressed."""
        return _read_frame(self.file, chunk, self.compression)


def read_segment(file: BinaryIO) -> Segment:
    """Read the segment in FILE, without its pages; a last frame that is cut short is passed over.

    Raises SegmentError for a file that is no segment, or a damaged one.
    """
    line = file.read(_LINE_SIZE)
    words = line.decode("ascii", "replace").split()
    if len(line) != _LINE_SIZE or words[:-1] != _LINE.split()[:-1]:
        raise SegmentError("this is no segment of a trace")
    size = file.seek(0, io.SEEK_END)
    method = words[-1]
    texts: dict[int, Chunk] = {}
    chunks: dict[int, list[Chunk]] = {}
    for number, chunk in _list_frames(file, size):
        if number in (_HEAD, _DOCUMENT):
            texts[number] = chunk  # the last one counts
        elif number <= _MAX_CPU and 0 < chunk.size <= MAX_CHUNK:
            chunks.setdefault(number, []).append(chunk)
        else:
            raise SegmentError(f"a segment has a frame of an impossible number or size ({number}, {chunk.size} bytes)")
    if len(texts) != 2:
        raise SegmentError("a segment holds no head or no document")
    head = _parse_head(_read_frame(file, texts[_HEAD], method))
    document = _parse_document(_read_frame(file, texts[_DOCUMENT], method))
    if any(chunk.size % head.page_size for found in chunks.values() for chunk in found):
        raise SegmentError("a chunk of a segment holds no whole pages")
    return Segment(file, method, head, document, chunks)


def _list_frames(file: BinaryIO, end: int) -> list[tuple[int, Chunk]]:
    frames = []
    place = _LINE_SIZE
    while place + _NUMBER.size + _SIZES.size <= end:
        file.seek(place)
        number, packed, size = struct.unpack("=III", file.read(_NUMBER.size + _SIZES.size))
        if max(packed, size) > _MAX_FRAME:
            raise SegmentError(
                f"a segment has a frame of {max(packed, size)} bytes, more than the {_MAX_FRAME} allowed"
            )
        place += _NUMBER.size
        if place + _SIZES.size + packed > end:
            break
        frames.append((number, Chunk(place, packed, size)))
        place += _SIZES.size + packed
    return frames


def _read_frame(file: BinaryIO, chunk: Chunk, method: str) -> bytes:
    file.seek(chunk.offset + _SIZES.size)
    try:
        return compression.decompress(method, file.read(chunk.packed), chunk.size)
    except compression.CompressionError as error:
        raise SegmentError(f"a frame of a segment cannot be read: {error}") from error


def _parse_head(data: bytes) -> trace_dat.Head:
    return trace_dat_reader.read_head(io.BytesIO(data))


def _parse_document(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SegmentError(f"a document of a segment is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SegmentError("a document of a segment is no JSON object")
    return document
