# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in a trace.dat what is too long for the manifest: tables, and long parts of the manifest itself.

The tables are of threads, of what processes held and waited for (holdings.py), and of system calls.
They stand in the trace.dat's option of its writer, behind the writer's name. trace-cmd shows that name and passes over the rest.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError

OPTION_VERSION = 9
NAMES = ("first_tasks", "tasks", *holdings.NAMES, "syscalls", "compat_syscalls")
# Parts that can be left out of a manifest. Their length depends on the user's choices or on the size of the host.
PARTS = ("container.labels", "events", "specification", "earlier_syscalls", "limits", "followed", "cpus")
_PARTS = "parts"
_WRITER = b"crashcart.fleet\0"
_MAX_BYTES = 64 << 20  # the bound of a segment's documents, too


def pack(document: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return number and data of a trace.dat's option with the tables of DOCUMENT and with PARTS (name → value) of its manifest."""
    tables = {name: document[name] for name in NAMES if name in document}
    return OPTION_VERSION, _WRITER + zlib.compress(json.dumps({**tables, _PARTS: parts}).encode("utf-8"))


def split(manifest: Mapping[str, Any], max_size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return MANIFEST shortened to MAX_SIZE characters of JSON, and the parts (name → value) that were taken out of it.

    Only those in PARTS are taken out, the longest first; the rest may still be longer than MAX_SIZE. The key `in_trace` of the
    shortened manifest tells how many entries each of the parts has.
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
            short[place] = {entry: value for entry, value in short[place].items() if entry != key}
        else:
            del short[key]
        short["in_trace"] = {taken: len(part) for taken, part in parts.items()}
    return short, parts


def _find(manifest: Mapping[str, Any], name: str) -> Any:
    place, _dot, key = name.rpartition(".")
    within = manifest.get(place) if place else manifest
    return within.get(key) if isinstance(within, dict) else None


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """Return MANIFEST as JSON, with a line for each of its keys."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in manifest.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def unite(manifest: Mapping[str, Any], options: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    """Return MANIFEST with the tables and the parts that OPTIONS of its trace.dat hold; their content is not checked.

    A manifest of an older version has the tables itself, and keeps them. Raises TraceFileError if OPTIONS lack a part.
    """
    found = read(options)
    parts = found.pop(_PARTS, None)
    whole = {**found, **manifest}
    in_trace = manifest.get("in_trace")
    for name in in_trace if isinstance(in_trace, dict) else ():
        place, _dot, key = name.rpartition(".")
        if name not in PARTS or not isinstance(parts, dict) or name not in parts:
            raise TraceFileError("its tables lack a part that its manifest says is there")
        if not place:
            whole[key] = parts[name]
        elif isinstance(whole.get(place), dict):
            whole[place] = {**whole[place], key: parts[name]}
    return whole


def read(options: Sequence[tuple[int, bytes]]) -> dict[str, Any]:
    """Return the tables in OPTIONS, whose content is not checked; empty if another program has written the file.

    Raises TraceFileError for damaged tables.
    """
    for number, data in options:
        if number == OPTION_VERSION and data.startswith(_WRITER):
            unpacker = zlib.decompressobj()
            try:
                text = unpacker.decompress(data[len(_WRITER) :], _MAX_BYTES)
                tables = json.loads(text) if unpacker.eof else None
            except (zlib.error, ValueError, RecursionError) as error:
                raise TraceFileError(f"its tables of threads and calls are damaged: {str(error)[:200]}") from error
            if not isinstance(tables, dict):
                raise TraceFileError("its tables of threads and calls are cut short, or are no JSON object")
            return {name: tables[name] for name in (*NAMES, _PARTS) if name in tables}
    return {}
