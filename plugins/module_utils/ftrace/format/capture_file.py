# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A segment: what one drain has taken from one instance, as a file that a host writes and a controller reads.

A line says what it is and how it is compressed. Frames follow: the number of a CPU, the sizes of a chunk compressed and plain, and
the chunk, as a trace.dat of version 7 has it; other numbers stand for the head of a trace.dat of version 6 without CPUs and
for documents in JSON. A first document is written before the kernel gives anything away and a last one at the end, so that
a segment whose writer was killed is still a capture, of what it holds.
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
    """The name that the capture in the segment NAME has at home, without an ending: the time of its drain."""
    seconds, nanoseconds = divmod(int(name.rpartition(".")[2]), 10**9)
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return f"{moment:%Y%m%dT%H%M%S}.{nanoseconds // 1000:06d}Z"


class SegmentError(FleetError):
    """A segment that is none, or is damaged."""


class SegmentWriter:
    """Writes a segment to FILE, from several threads at once."""

    def __init__(self, file: BinaryIO, method: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._method = method
        file.write(_LINE.format(method).encode("ascii").ljust(_LINE_SIZE, b" "))

    def make_compressor(self) -> Callable[[compression.Data], bytes]:
        """What compresses chunks for write_chunk; it is for one thread."""
        return compression.make_compressor(self._method)

    def write_chunk(self, cpu: int, packed: bytes, size: int) -> None:
        """Add a chunk of CPU's pages, SIZE bytes before they were PACKED."""
        self._write(cpu, packed, size)

    def write_head(self, head: trace_dat.Head) -> None:
        """Add the formats, without which nobody could read the pages."""
        self._write_packed(_HEAD, trace_dat.pack_head(head, []))

    def write_document(self, document: dict[str, Any]) -> None:
        """Add what there is to be said of the capture."""
        self._write_packed(_DOCUMENT, json.dumps(document).encode("utf-8"))

    def _write_packed(self, number: int, data: bytes) -> None:
        self._write(number, self.make_compressor()(data), len(data))

    def _write(self, number: int, packed: bytes, size: int) -> None:
        with self._lock:
            self._file.write(_NUMBER.pack(number) + trace_dat.pack_chunk(packed, size))
            self._file.flush()  # what the kernel has nobody can kill


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies in the segment: from OFFSET on its sizes and then PACKED bytes, which are SIZE plain."""

    offset: int
    packed: int
    size: int


@dataclass
class Segment:
    """What a segment says: CHUNKS by CPU, in the order of their writing; DOCUMENT is the last one that was written."""

    file: BinaryIO
    compression: str
    head: trace_dat.Head
    document: dict[str, Any]
    chunks: dict[int, list[Chunk]]

    def read_packed(self, chunk: Chunk) -> bytes:
        """CHUNK as it is, with its sizes before it."""
        self.file.seek(chunk.offset)
        return self.file.read(_SIZES.size + chunk.packed)

    def read_chunk(self, chunk: Chunk) -> bytes:
        """The pages of CHUNK."""
        return _read_frame(self.file, chunk, self.compression)


def read_segment(file: BinaryIO) -> Segment:
    """The segment in FILE. Raises SegmentError for what is none; a last frame that is cut short is passed over."""
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
            raise SegmentError(f"a frame {number} of {chunk.size} bytes in a segment is not believable")
    if len(texts) != 2:
        raise SegmentError("a segment holds no head or no document")
    head = _parse_head(_read_frame(file, texts[_HEAD], method))
    document = _parse_document(_read_frame(file, texts[_DOCUMENT], method))
    if any(one.size % head.page_size for found in chunks.values() for one in found):
        raise SegmentError("a chunk of a segment holds no whole pages")
    return Segment(file, method, head, document, chunks)


def _list_frames(file: BinaryIO, end: int) -> list[tuple[int, Chunk]]:
    frames = []
    place = _LINE_SIZE
    while place + _NUMBER.size + _SIZES.size <= end:
        file.seek(place)
        number, packed, size = struct.unpack("=III", file.read(_NUMBER.size + _SIZES.size))
        if max(packed, size) > _MAX_FRAME:
            raise SegmentError(f"a frame of {max(packed, size)} bytes in a segment is not believable")
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
        raise SegmentError("a document of a segment is none")
    return document
