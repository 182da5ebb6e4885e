# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reader of a capture's events has to know and is too long for its manifest: tables of threads and of system calls, and parts of
the manifest itself where they are long.

They travel within the trace.dat, behind the text of the option that says who has written it: trace-cmd shows that text, and
passes over the rest.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError

OPTION_VERSION = 9
NAMES = ("first_tasks", "tasks", "syscalls", "compat_syscalls")
# Parts that a manifest may do without. A user chooses how much is in them, or a host by its size.
PARTS = ("container.labels", "events", "specification", "earlier_syscalls", "limits", "followed", "cpus")
_PARTS = "parts"
_WRITER = b"crashcart.fleet\0"
_MAX_BYTES = 64 << 20  # the bound of a segment's documents, too


def pack(document: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return an option of a trace.dat with the tables of DOCUMENT, and with PARTS of its manifest."""
    tables = {name: document[name] for name in NAMES if name in document}
    return OPTION_VERSION, _WRITER + zlib.compress(json.dumps({**tables, _PARTS: parts}).encode("utf-8"))


def split(manifest: Mapping[str, Any], max_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return MANIFEST without so many of PARTS, the longest first, that its JSON has MAX_SIZE characters at most; and these parts.

    Its `in_trace` tells of each part how many entries it has. Where the rest is longer than that, it is.
    """
    short = {**manifest, "in_trace": {}}
    parts: dict[str, Any] = {}
    found = {name: part for name in PARTS if (part := _find(manifest, name)) and isinstance(part, (dict, list))}
    sizes = {name: len(json.dumps(part)) for name, part in found.items()}
    for name in sorted(found, key=lambda name: -sizes[name]):
        if len(format_manifest(short)) <= max_size:
            break
        parts[name] = found[name]
        place, _dot, key = name.rpartition(".")
        if place:
            short[place] = {one: value for one, value in short[place].items() if one != key}
        else:
            del short[key]
        short["in_trace"] = {one: len(part) for one, part in parts.items()}
    return short, parts


def _find(manifest: Mapping[str, Any], name: str) -> Any:
    place, _dot, key = name.rpartition(".")
    within = manifest.get(place) if place else manifest
    return within.get(key) if isinstance(within, dict) else None


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """Return MANIFEST as JSON, a line for each thing that it says."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in manifest.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def unite(manifest: Mapping[str, Any], options: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    """Return MANIFEST with what OPTIONS of its trace.dat hold of it, unchecked. Raises TraceFileError where they lack a part of it.

    Tables that a manifest of an older version has stand.
    """
    found = read(options)
    parts = found.pop(_PARTS, None)
    whole = {**found, **manifest}
    in_trace = manifest.get("in_trace")
    for name in in_trace if isinstance(in_trace, dict) else ():
        place, _dot, key = name.rpartition(".")
        if name not in PARTS or not isinstance(parts, dict) or name not in parts:
            raise TraceFileError("its tables lack what its manifest says that they hold")
        if not place:
            whole[key] = parts[name]
        elif isinstance(whole.get(place), dict):
            whole[place] = {**whole[place], key: parts[name]}
    return whole


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
            return {name: tables[name] for name in (*NAMES, _PARTS) if name in tables}
    return {}
