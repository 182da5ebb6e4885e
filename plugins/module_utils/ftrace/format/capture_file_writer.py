# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write segments on a host; capture_file.py has the layout."""

from __future__ import annotations

import json
import threading
from typing import Any, BinaryIO, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression, trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import (
    DOCUMENT,
    HEAD,
    LINE,
    LINE_SIZE,
    NUMBER,
)


class SegmentWriter:
    """A writer of a segment to FILE; several threads may use it at once. METHOD is the compression."""

    def __init__(self, file: BinaryIO, method: str) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._method = method
        file.write(LINE.format(method).encode("ascii").ljust(LINE_SIZE, b" "))

    def make_compressor(self) -> Callable[[compression.Data], bytes]:
        """Return a function that compresses chunks for write_chunk; only one thread may use it."""
        return compression.make_compressor(self._method)

    def write_chunk(self, cpu: int, packed: bytes, size: int) -> None:
        """Add a chunk of CPU's pages: PACKED is the compressed chunk, SIZE its bytes before compression."""
        self._write(cpu, packed, size)

    def write_head(self, head: trace_dat.Head) -> None:
        """Add HEAD with the formats of events, which a reader needs for the pages."""
        self._write_packed(HEAD, trace_dat.pack_head(head, []))

    def write_document(self, document: dict[str, Any]) -> None:
        """Add DOCUMENT, which holds the manifest and the tables of the capture; a later document replaces it."""
        self._write_packed(DOCUMENT, json.dumps(document).encode("utf-8"))

    def _write_packed(self, number: int, data: bytes) -> None:
        self._write(number, self.make_compressor()(data), len(data))

    def _write(self, number: int, packed: bytes, size: int) -> None:
        with self._lock:
            self._file.write(NUMBER.pack(number) + trace_dat.pack_chunk(packed, size))
            self._file.flush()  # data in the kernel's cache stay if this process is killed
