# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read segments on a controller; capture_file.py has the layout."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat, trace_dat_reader
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import (
    SIZES,
    Chunk,
    SegmentError,
    find_frames,
    parse_document,
    read_frame,
)


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
        return self.file.read(SIZES.size + chunk.packed)

    def read_chunk(self, chunk: Chunk) -> bytes:
        """Return the pages of CHUNK; raises SegmentError if they cannot be decompressed."""
        return read_frame(self.file, chunk, self.compression)


def read_segment(file: BinaryIO) -> Segment:
    """Read the segment in FILE, without its pages; a last frame that is cut short is passed over.

    Raises SegmentError for a file that is no segment, or a damaged one.
    """
    frames = find_frames(file)
    head = trace_dat_reader.read_head(io.BytesIO(read_frame(file, frames.head, frames.method)))
    document = parse_document(read_frame(file, frames.document, frames.method))
    if any(chunk.size % head.page_size for chunks in frames.chunks.values() for chunk in chunks):
        raise SegmentError("a chunk of a segment holds no whole pages")
    return Segment(file, frames.method, head, document, frames.chunks)
