# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layout of a segment and the documents in it: a segment is a file with the pages that one drain has taken from one instance.

A host writes it (capture_file_writer.py) in the order of its bytes, and a controller reads it (capture_file_reader.py). Its first line names
the format and the compression. Frames follow: a number, the sizes of the content compressed and plain, and the content. A CPU's number stands
before a chunk of pages in the form of a trace.dat of version 7. Two other numbers stand before the head of a trace.dat of version 6 without
CPUs, and before documents in JSON.

A first document is written before the kernel gives up any page, and a last one at the end. So a segment whose writer was killed is still a
capture of the pages in it.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression

LINE = "crashcart segment 1 {}\n"
LINE_SIZE = 64
NUMBER = struct.Struct("=I")
SIZES = struct.Struct("=II")
_FRAME = "III"  # number and sizes
HEAD, DOCUMENT = 0xFFFFFFFE, 0xFFFFFFFF
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


@dataclass(frozen=True)
class Chunk:
    """The place of a chunk in a segment: at byte OFFSET its two sizes, then PACKED bytes, which are SIZE bytes without compression."""

    offset: int
    packed: int
    size: int


@dataclass
class Frames:
    """The frames of a segment: METHOD, the method of compression; HEAD and DOCUMENT, the last of each; CHUNKS, CPU → its chunks in order."""

    method: str
    head: Chunk
    document: Chunk
    chunks: dict[int, list[Chunk]]


def find_frames(file: BinaryIO) -> Frames:
    """Return the frames of the segment in FILE; a last frame that is cut short is passed over.

    Raises SegmentError for a file that is no segment, or a damaged one.
    """
    line = file.read(LINE_SIZE)
    words = line.decode("ascii", "replace").split()
    if len(line) != LINE_SIZE or words[:-1] != LINE.split()[:-1]:
        raise SegmentError("this is no segment of a trace")
    texts: dict[int, Chunk] = {}
    chunks: dict[int, list[Chunk]] = {}
    end = file.seek(0, io.SEEK_END)
    for number, chunk in _list_frames(file, end, _find_mark(file, end)):
        if number in (HEAD, DOCUMENT):
            texts[number] = chunk  # the last one counts
        elif number <= _MAX_CPU and 0 < chunk.size <= MAX_CHUNK:
            chunks.setdefault(number, []).append(chunk)
        else:
            raise SegmentError(f"a segment has a frame of an impossible number or size ({number}, {chunk.size} bytes)")
    if len(texts) != 2:
        raise SegmentError("a segment holds no head or no document")
    return Frames(words[-1], texts[HEAD], texts[DOCUMENT], chunks)


def read_document(file: BinaryIO) -> dict[str, Any]:
    """Return the last document of the segment in FILE. Raises SegmentError for a file that is no segment, or a damaged one."""
    frames = find_frames(file)
    return parse_document(read_frame(file, frames.document, frames.method))


def _find_mark(file: BinaryIO, end: int) -> str:
    """Return the character by which struct knows the order of the bytes of the host that has written FILE, which ends at END."""
    other = ">" if sys.byteorder == "little" else "<"
    file.seek(LINE_SIZE)
    start = file.read(NUMBER.size + SIZES.size)
    if len(start) == NUMBER.size + SIZES.size:
        for mark in ("=", other):
            number, packed, size = struct.unpack(mark + _FRAME, start)
            if (number in (HEAD, DOCUMENT) or number <= _MAX_CPU) and max(packed, size) <= _MAX_FRAME and packed <= end:
                return mark
    return "="


def _list_frames(file: BinaryIO, end: int, mark: str) -> list[tuple[int, Chunk]]:
    frames = []
    place = LINE_SIZE
    while place + NUMBER.size + SIZES.size <= end:
        file.seek(place)
        number, packed, size = struct.unpack(mark + _FRAME, file.read(NUMBER.size + SIZES.size))
        if max(packed, size) > _MAX_FRAME:
            raise SegmentError(
                f"a segment has a frame of {max(packed, size)} bytes, more than the {_MAX_FRAME} allowed"
            )
        place += NUMBER.size
        if place + SIZES.size + packed > end:
            break
        frames.append((number, Chunk(place, packed, size)))
        place += SIZES.size + packed
    return frames


def read_frame(file: BinaryIO, chunk: Chunk, method: str) -> bytes:
    """Return the content of the frame CHUNK, which METHOD has compressed. Raises SegmentError if it cannot be decompressed."""
    file.seek(chunk.offset + SIZES.size)
    try:
        return compression.decompress(method, file.read(chunk.packed), chunk.size)
    except compression.CompressionError as error:
        raise SegmentError(f"a frame of a segment cannot be read: {error}") from error


def parse_document(data: bytes) -> dict[str, Any]:
    """Return the object that DATA hold as JSON. Raises SegmentError if they hold none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SegmentError(f"a document of a segment is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SegmentError("a document of a segment is no JSON object")
    return document
