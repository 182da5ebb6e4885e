# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reader of a capture's events has to know and is too long for its manifest: tables of threads and of system calls.

They travel within the trace.dat, behind the text of the option that says who has written it: trace-cmd shows that text, and
passes over the rest.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tracedat import TraceFileError

OPTION_VERSION = 9
NAMES = ("first_tasks", "tasks", "syscalls", "compat_syscalls")
_WRITER = b"crashcart.fleet\0"
_MAX_BYTES = 64 << 20  # the bound of a segment's documents, too


def pack(document: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return an option of a trace.dat with the tables of DOCUMENT."""
    tables = {name: document[name] for name in NAMES if name in document}
    return OPTION_VERSION, _WRITER + zlib.compress(json.dumps(tables).encode("utf-8"))


def read(options: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    """Return the tables that OPTIONS hold, unchecked; none where another has written the file. Raises TraceFileError for damaged ones."""
    for number, data in options:
        if number == OPTION_VERSION and data.startswith(_WRITER):
            unpacker = zlib.decompressobj()
            try:
                text = unpacker.decompress(data[len(_WRITER) :], _MAX_BYTES)
                tables = json.loads(text) if unpacker.eof else None
            except (zlib.error, ValueError, RecursionError) as error:
                raise TraceFileError(f"its tables of threads and calls are damaged: {str(error)[:200]}") from error
            if not isinstance(tables, dict):
                raise TraceFileError("its tables of threads and calls are cut short, or none")
            return {name: tables[name] for name in NAMES if name in tables}
    return {}
