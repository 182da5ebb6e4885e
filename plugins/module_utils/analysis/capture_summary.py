# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarize captures on the controller, as entries of summary.json."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any, Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_files import (
    CaptureError,
    explain_error,
    find_manifest,
    list_captures,
    open_regular,
    read_manifest,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace, read_traces
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import Search
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.manifest_form import is_sound
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.real_time import format_real_time
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import read_names
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import (
    SyscallRow,
    TraceTable,
    make_all_tables,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import tables
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_surrogates


def summarize_capture(
    capture: str, manifest: dict[str, Any], root: str, min_latency_ns: int = 0, search: Search | None = None
) -> list[dict[str, Any]]:
    """Return the entries of summary.json for CAPTURE, one for each buffer, with the path relative to ROOT.

    MANIFEST describes CAPTURE. Calls shorter than MIN_LATENCY_NS are left out. SEARCH looks at all calls.
    Raises CaptureError when CAPTURE cannot be read.
    """
    name = os.path.relpath(capture, root)
    try:
        with open_regular(capture) as file:
            return [
                _summarize_trace(trace, add_tables(manifest, trace), name, min_latency_ns, search)
                for trace in read_traces(file)
            ]
    except Exception as error:  # the file may hold anything, and the other captures have to be read all the same
        raise explain_error(capture, error) from error


def add_tables(manifest: dict[str, Any], trace: Trace) -> dict[str, Any]:
    """Return MANIFEST together with the tables, and the parts of a manifest, that TRACE carries.

    Raises TraceFileError when the result is not what ftrace_fetch writes.
    """
    known = tables.unite(manifest, trace.head.options)
    if not is_sound(known):
        raise TraceFileError("its tables are not what ftrace_fetch writes")
    return known


def _summarize_trace(
    trace: Trace, manifest: dict[str, Any], name: str, min_latency_ns: int, search: Search | None
) -> dict[str, Any]:
    """Return the entry of summary.json for TRACE, one buffer of the capture called NAME; SEARCH looks at all its calls."""
    table, found = make_all_tables(trace, manifest, min_latency_ns)
    container = manifest.get("container") or {}
    reasons = [*manifest.get("reasons", []), *table.damage]
    if search is not None:
        search.add(Capture(name, found, read_names(manifest), manifest, reasons))
    return {
        "capture": name,
        "buffer": trace.head.buffer or None,
        "host": manifest.get("inventory_hostname") or manifest.get("host"),
        "container": container.get("name"),
        "container_id": container.get("id"),
        "complete": False if reasons else manifest.get("complete"),
        "lost": manifest.get("lost"),
        "reasons": reasons,
        "start": format_real_time(table.first_time, manifest) if table.first_time else None,
        "duration_s": (table.last_time - table.first_time) / 1e9,
        "events": table.events,
        "event_counts": table.counts,
        "functions": table.functions,
        "io_uring": _describe_rings(table, manifest),
        "min_latency_ns": min_latency_ns,
        "programs": [_describe(row) for row in table.programs],
        "processes": [_describe(row) for row in table.processes],
        "errors": _sum_errors(table),
    }


def _describe(row: SyscallRow) -> dict[str, Any]:
    return {**asdict(row), "failures": row.failures}


def _describe_rings(table: TraceTable, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the entry's part on io_uring: if requests were recorded, their numbers, and if the kernel polled for others."""
    wanted = manifest.get("specification") or {}
    recorded = bool(table.requests) or bool(wanted.get("io_uring"))
    return {"recorded": recorded, "requests": table.requests, "polled": table.has_polled}


def _sum_errors(table: TraceTable) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in table.processes:
        for name, count in row.errors.items():
            total[name] = total.get(name, 0) + count
    return total


def gen_source(
    source: str, skipped: list[dict[str, str]], min_latency_ns: int = 0, search: Search | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the entries of summary.json for each capture of SOURCE, a capture or a folder of captures.

    Only calls of MIN_LATENCY_NS and longer count. SEARCH looks at all calls. A part of a folder that cannot be read is added to SKIPPED.
    Raises CaptureError when SOURCE is a capture that cannot be read, and FleetError when it does not exist.
    """
    if not os.path.isdir(source):
        if not os.path.lexists(source):
            raise FleetError(f"there is no capture {source}")
        manifest = read_manifest(find_manifest(source))
        root = os.path.dirname(source) or "."
        yield from _escape_all(summarize_capture(source, manifest, root, min_latency_ns, search))
        return
    paths, errors = list_captures(source)
    skipped += [_describe_error(error, source) for error in errors]
    yield from gen_captures(paths, source, skipped, min_latency_ns, search)


def gen_captures(
    paths: Iterable[str],
    root: str,
    skipped: list[dict[str, str]],
    min_latency_ns: int = 0,
    search: Search | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the entries of summary.json for the captures at PATHS, named relative to ROOT; add those that cannot be read to SKIPPED.

    Only calls of MIN_LATENCY_NS and longer count. SEARCH looks at all calls.
    """
    for path in paths:
        try:
            manifest = read_manifest(find_manifest(path))
        except CaptureError as error:
            skipped.append(_describe_error(error, root))
            manifest = {}
        try:
            yield from _escape_all(summarize_capture(path, manifest, root, min_latency_ns, search))
        except CaptureError as error:
            skipped.append(_describe_error(error, root))


def _describe_error(error: CaptureError, root: str) -> dict[str, str]:
    found = {"path": os.path.relpath(error.path, root), "reason": error.reason, "next_step": error.next_step}
    return {name: escape_surrogates(text) for name, text in found.items()}


def _escape_all(value: Any) -> Any:
    """Return VALUE, which is to be written as JSON, with lone surrogates escaped in all its texts."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [_escape_all(item) for item in value]
    if isinstance(value, dict):
        return {_escape_all(name): _escape_all(item) for name, item in value.items()}
    return value
