# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarize captures on the controller, as entries of summary.json."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict
from typing import Any, BinaryIO, Iterable, Iterator

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

_CAPTURE = re.compile(r".\.dat(\.[0-9]+)?\Z")  # trace-cmd split numbers the files that it writes
_UNFINISHED = ".crashcart-"  # prefix of folders of a fetch that runs, or was interrupted
_MAX_MANIFEST = 64 << 20  # bytes; the documents of a segment have the same bound
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class CaptureError(FleetError):
    """The file at PATH cannot go into a report, for REASON; NEXT_STEP is the advice to the user."""

    def __init__(self, path: str, reason: str, next_step: str) -> None:
        super().__init__(f"{path}: {reason}; {next_step}")
        self.path, self.reason, self.next_step = path, reason, next_step


def _explain(path: str, error: Exception) -> CaptureError:
    """Return the CaptureError for ERROR, an exception that opening or reading the file at PATH has raised."""
    if isinstance(error, CaptureError):
        return error
    if isinstance(error, TraceFileError):
        return CaptureError(path, str(error), error.next_step)
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return CaptureError(
            path, f"a link to {os.readlink(path)}, which is not there", "bring that back, or remove the link"
        )
    if isinstance(error, FileNotFoundError):
        return CaptureError(path, "it is not there", "fetch it again, or leave it out")
    if isinstance(error, OSError):
        return CaptureError(
            path, f"it cannot be read: {error.strerror or error}", "let this user read it, or remove it"
        )
    reason = f"it is damaged ({type(error).__name__}: {str(error)[:200]})"
    return CaptureError(path, reason, "fetch or record it again, or remove it")


def list_captures(folder: str) -> tuple[list[str], list[CaptureError]]:
    """Return the paths of the trace.dat files below FOLDER, sorted, and an error for each folder that cannot be read."""
    captures: list[str] = []
    unread: list[CaptureError] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: unread.append(_explain(error.filename, error))):
        folders[:] = [name for name in folders if not name.startswith(_UNFINISHED)]
        captures += [os.path.join(place, name) for name in names if _CAPTURE.search(name)]
    return sorted(captures), unread


def find_manifest(capture: str) -> str:
    """Return the path of the manifest of CAPTURE, which need not exist."""
    return os.path.splitext(capture)[0] + ".json"


def read_manifest(path: str) -> dict[str, Any]:
    """Return the manifest at PATH; {} when it does not exist, as for a trace that trace-cmd recorded.

    Raises CaptureError when it cannot be read, or is no manifest.
    """
    if not os.path.lexists(path):
        return {}
    remove = "fetch again, or remove it to do without"
    try:
        with _open_regular(path) as file:
            text = file.read(_MAX_MANIFEST + 1)
        manifest: dict[str, Any] | None = json.loads(text) if len(text) <= _MAX_MANIFEST else None
    except (ValueError, RecursionError) as error:
        raise CaptureError(path, f"the manifest is damaged: {str(error)[:200]}", remove) from error
    except OSError as error:
        raise _explain(path, error) from error
    if manifest is None or not is_sound(manifest):
        raise CaptureError(path, "it is no manifest that ftrace_fetch writes", remove)
    return manifest


def _open_regular(path: str) -> BinaryIO:
    """Open PATH for reading if it is a regular file, else raise CaptureError: a pipe would keep us waiting, and a device never ends."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise CaptureError(
            path, f"no regular file but {_KINDS.get(kind, 'a device')}", "move it elsewhere, or remove it"
        )
    return file


def summarize_capture(
    capture: str, manifest: dict[str, Any], root: str, min_latency_ns: int = 0, search: Search | None = None
) -> list[dict[str, Any]]:
    """Return the entries of summary.json for CAPTURE, one for each buffer, with the path relative to ROOT.

    MANIFEST describes CAPTURE. Calls shorter than MIN_LATENCY_NS are left out. SEARCH looks at all calls.
    Raises CaptureError when CAPTURE cannot be read.
    """
    name = os.path.relpath(capture, root)
    try:
        with _open_regular(capture) as file:
            return [
                _summarize_trace(trace, add_tables(manifest, trace), name, min_latency_ns, search)
                for trace in read_traces(file)
            ]
    except Exception as error:  # the file may hold anything, and the other captures have to be read all the same
        raise _explain(capture, error) from error


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
