# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures on the controller → summary.json, and the same as a table to read."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, BinaryIO, Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace, read_traces
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import SyscallRow, TraceTable, summarize
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import tables
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.probes import GROUP_PREFIX, PATH_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tracedat import TraceFileError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private

_HEADINGS = ("PROCESS", "PID", "SYSCALL", "CALLS", "TOTAL ms", "P99 us", "ERRORS")
_NUMBERS = frozenset({"PID", "CALLS", "TOTAL ms", "P99 us"})
_MAX_TEXT_ROWS = 40
_MAX_LINES = 1000
# What every trace has: calls, which the table is of, and what processes have their names from.
_PATH_EVENT = re.compile(rf"{GROUP_PREFIX}\w*:{PATH_PREFIX}")
_OWN_EVENTS = ("raw_syscalls:", "sched:sched_process_exec", "task:task_", "syscalls:sys_exit_execve")
_CAPTURE = re.compile(r".\.dat(\.[0-9]+)?\Z")  # trace-cmd split numbers what it writes
_UNFINISHED = ".crashcart-"  # what a fetch is about to make, or was
_MAX_MANIFEST = 64 << 20  # the bound of a segment's documents, too
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class CaptureError(FleetError):
    """The file at PATH cannot be taken into a report, for REASON; NEXT_STEP says what can be done about it."""

    def __init__(self, path: str, reason: str, next_step: str) -> None:
        super().__init__(f"{path}: {reason}; {next_step}")
        self.path, self.reason, self.next_step = path, reason, next_step


def _explain(path: str, error: Exception) -> CaptureError:
    """ERROR, which the file at PATH has led to, whatever of the file's content did it."""
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
    """The trace.dat files below FOLDER in the order of their paths, and which folders cannot be read."""
    captures: list[str] = []
    unread: list[CaptureError] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: unread.append(_explain(error.filename, error))):
        folders[:] = [name for name in folders if not name.startswith(_UNFINISHED)]
        captures += [os.path.join(place, name) for name in names if _CAPTURE.search(name)]
    return sorted(captures), unread


def find_manifest(capture: str) -> str:
    """The path of the manifest that CAPTURE has, or would have."""
    return os.path.splitext(capture)[0] + ".json"


def read_manifest(path: str) -> dict[str, Any]:
    """The manifest at PATH; an empty one where there is none, as for a trace that trace-cmd recorded. Raises CaptureError."""
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
    """PATH open for reading, where it is a regular file: a pipe would keep us waiting, and a device never ends."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY))
    kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
    if kind != stat.S_IFREG:
        file.close()
        raise CaptureError(
            path, f"no regular file but {_KINDS.get(kind, 'a device')}", "move it elsewhere, or remove it"
        )
    return file


def is_sound(manifest: Any) -> bool:
    """Whether MANIFEST has the form that the analysis relies on: it came from a host."""
    if not isinstance(manifest, dict):
        return False
    offset, lost = manifest.get("clock_offset_ns"), manifest.get("lost")
    container = manifest.get("container")
    return (
        (offset is None or _is_int(offset))
        and (lost is None or _is_int(lost))
        and (manifest.get("entries") is None or _is_int(manifest["entries"]))
        and manifest.get("complete") in (None, True, False)
        and _are_texts(manifest.get("reasons", []))
        and (
            container is None
            or (isinstance(container, dict) and all(_is_text(container.get(n)) for n in ("id", "name")))
        )
        and all(_is_text(manifest.get(name)) for name in ("host", "inventory_hostname"))
        and all(_are_syscalls(manifest.get(name)) for name in ("syscalls", "compat_syscalls"))
        and all(_are_tasks(manifest.get(name)) for name in ("tasks", "first_tasks"))
        and _is_specification(manifest.get("specification"))
        and _are_selections(manifest.get("earlier_syscalls", []))
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_syscalls(names: Any) -> bool:
    return names is None or (
        isinstance(names, dict)
        and all(
            number.isascii() and number.isdigit() and len(number) < 10 and isinstance(name, str)
            for number, name in names.items()
        )
    )


def _are_tasks(tasks: Any) -> bool:
    return tasks is None or (isinstance(tasks, list) and all(map(_is_task, tasks)))


def _are_selections(selections: Any) -> bool:
    return isinstance(selections, list) and all(
        isinstance(one, dict) and _is_specification({"syscalls": one}) for one in selections
    )


def _is_specification(specification: Any) -> bool:
    if specification is None:
        return True
    if not isinstance(specification, dict) or not isinstance(specification.get("events") or [], (list, dict)):
        return False
    wanted = specification.get("syscalls")
    return wanted is None or (
        isinstance(wanted, dict)
        and all(
            isinstance(numbers, list) and all(_is_int(number) and 0 <= number < 1 << 30 for number in numbers)
            for numbers in (wanted.get("native", []), wanted.get("compat", []))
        )
    )


def _is_task(task: Any) -> bool:
    numbers = ("tid", "tgid", "container_tid")
    return isinstance(task, dict) and all(_is_int(task.get(n)) for n in numbers) and isinstance(task.get("comm"), str)


def summarize_capture(
    capture: str, manifest: dict[str, Any], root: str, min_latency_ns: int = 0
) -> list[dict[str, Any]]:
    """What summary.json says of CAPTURE, which MANIFEST tells of, one entry for each buffer; its path is given relative to ROOT.

    Raises CaptureError where it cannot be read.
    """
    name = os.path.relpath(capture, root)
    try:
        with _open_regular(capture) as file:
            return [
                _summarize_trace(trace, add_tables(manifest, trace), name, min_latency_ns)
                for trace in read_traces(file)
            ]
    except Exception as error:  # a stranger's file: whatever is wrong with it is its fault, and others wait
        raise _explain(capture, error) from error


def add_tables(manifest: dict[str, Any], trace: Trace) -> dict[str, Any]:
    """Return MANIFEST with the tables that TRACE carries; those of a manifest of an older version stand. Raises TraceFileError."""
    known = {**tables.read(trace.head.options), **manifest}
    if not is_sound(known):
        raise TraceFileError("its tables of threads and calls are not what ftrace_fetch writes")
    return known


def _summarize_trace(trace: Trace, manifest: dict[str, Any], name: str, min_latency_ns: int) -> dict[str, Any]:
    """What summary.json says of TRACE, one buffer of the capture called NAME."""
    table = summarize(trace, manifest, min_latency_ns)
    container = manifest.get("container") or {}
    reasons = [*manifest.get("reasons", []), *_compare(table.events, manifest)]
    return {
        "capture": name,
        "buffer": trace.head.buffer or None,
        "host": manifest.get("inventory_hostname") or manifest.get("host"),
        "container": container.get("name"),
        "container_id": container.get("id"),
        "complete": False if reasons else manifest.get("complete"),
        "lost": manifest.get("lost"),
        "reasons": reasons,
        "start": _real_time(table.first_time, manifest),
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


def _compare(events: int, manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong where a trace holds another number of EVENTS than the kernel counted, as MANIFEST says."""
    counted = manifest.get("entries")
    # Manifests without a version counted what waited when the fetch began.
    if counted is None or "version" not in manifest or counted == events:
        return []
    return [f"the file holds {events} events, and the kernel counted {counted}"]


def _describe(row: SyscallRow) -> dict[str, Any]:
    return {**asdict(row), "failures": row.failures}


def _describe_rings(table: TraceTable, manifest: dict[str, Any]) -> dict[str, Any]:
    """What is known of requests by io_uring, which are no system calls: whether they were RECORDED, which, and whether some
    could not be since the kernel POLLED for them."""
    wanted = manifest.get("specification") or {}
    recorded = bool(table.requests) or bool(wanted.get("io_uring"))
    return {"recorded": recorded, "requests": table.requests, "polled": table.has_polled}


def _sum_errors(table: TraceTable) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in table.processes:
        for name, count in row.errors.items():
            total[name] = total.get(name, 0) + count
    return total


def _real_time(time_ns: int, manifest: dict[str, Any]) -> str | None:
    offset = manifest.get("clock_offset_ns")
    if offset is None or not time_ns:
        return None
    return datetime.fromtimestamp((time_ns + offset) / 1e9, timezone.utc).isoformat(timespec="milliseconds")


def format_lines(summary: dict[str, Any]) -> list[str]:
    """The beginning of the text that a person reads, as much as a result may hold."""
    lines = format_summary(summary).splitlines()
    more = len(lines) - _MAX_LINES
    return lines if more <= 0 else [*lines[:_MAX_LINES], f"and {more} more lines in summary.txt"]


def format_summary(summary: dict[str, Any]) -> str:
    """The text that a person reads, for all captures of SUMMARY, and what was skipped."""
    lines = [line for one in summary["captures"] for line in _gen_lines(one)]
    if summary["skipped"]:
        lines += [*(f"Skipped: {_clean(describe_skipped(one))}" for one in summary["skipped"]), ""]
    return "\n".join(lines) if lines else "No capture: there is nothing to report on.\n"


def describe_skipped(one: dict[str, str]) -> str:
    """One line that says of an entry of `skipped` what it is, why, and what next."""
    return f"{one['path']}: {one['reason']}; {one['next_step']}"


def _explain_loss(one: dict[str, Any]) -> str:
    return "; ".join(one.get("reasons") or []) or f"{one['lost']} events lost"


def _gen_lines(one: dict[str, Any]) -> Iterator[str]:
    name = _clean(one["container"] or one["capture"]) + (f", buffer {_clean(one['buffer'])}" if one["buffer"] else "")
    host = _clean(one["host"] or "an unknown host")
    lost = {None: "loss unknown", True: "complete"}.get(one["complete"], f"INCOMPLETE: {_clean(_explain_loss(one))}")
    yield f"{name} on {host}: {one['events']} events in {one['duration_s']:.3f} s from {one['start'] or '?'}, {lost}"
    rows = one["programs"][:_MAX_TEXT_ROWS]
    if not rows:
        yield "  no system call was recorded"
    else:
        yield from _gen_table([_cells(row) for row in rows])
    yield from _gen_failed_paths(one["programs"])
    yield from _gen_rings(one["io_uring"], has_calls=bool(rows))
    if one["min_latency_ns"]:
        yield f"  only calls of {one['min_latency_ns'] / 1e6:g} ms and longer"
    others = [
        f"{_clean(_shorten(name))} {count}"
        for name, count in one["event_counts"].items()
        if not name.startswith(_OWN_EVENTS) and not _PATH_EVENT.match(name)
    ]
    if others:
        yield f"  other events: {', '.join(others)}"
    if one["functions"]:
        most = list(one["functions"].items())[:_MAX_TEXT_ROWS]
        yield f"  functions of the kernel: {', '.join(f'{_clean(name)} {count}' for name, count in most)}"
    if len(one["programs"]) > _MAX_TEXT_ROWS:
        yield f"  and {len(one['programs']) - _MAX_TEXT_ROWS} more rows in summary.json"
    yield ""


def _shorten(event: str) -> str:
    """EVENT, if a probe of ours, without the group that it has on its host."""
    system, _colon, name = event.partition(":")
    return f"probe {name}" if system.startswith(GROUP_PREFIX) else event


def _gen_failed_paths(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Lines with the paths that calls failed on, most failures first."""
    failed = [(row, use) for row in rows for use in row["paths"] if use["errors"]]
    failed.sort(key=lambda pair: -sum(pair[1]["errors"].values()))
    if failed:
        yield "  paths of calls that failed:"
    for row, use in failed[:_MAX_TEXT_ROWS]:
        errors = ", ".join(f"{name} {count}" for name, count in use["errors"].items())
        yield f"    {_clean(row['name'])} {_clean(row['syscall'])} {_clean(use['path'])!r}: {errors}"


def _gen_rings(rings: dict[str, Any], *, has_calls: bool) -> Iterator[str]:
    """What can be said of requests by io_uring, beside calls."""
    if rings["requests"]:
        requests = ", ".join(f"{_clean(name)} {count}" for name, count in rings["requests"].items())
        yield f"  io_uring, no system calls: {requests}"
    if rings["polled"]:
        yield "  io_uring: the kernel polls for requests (SQPOLL); those could not be seen"
    if has_calls and not rings["recorded"]:
        yield "  io_uring: requests were not recorded and could not be seen (ftrace_instance's profiles record them)"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    words = [f"{name} {count}" for name, count in (*row["errors"].items(), *row["interrupted"].items())]
    words += [f"denied {name} {count}" for name, count in row["denied"].items()]
    errors = ", ".join(words)
    return (
        _clean(row["name"]),
        str(row["pids"][0]) if len(row["pids"]) == 1 else f"{len(row['pids'])} of them",
        _clean(row["syscall"]),
        str(row["calls"]),
        f"{row['total_ns'] / 1e6:.3f}" if row["measured"] else "-",
        f"{row['p99_ns'] / 1e3:.1f}" if row["measured"] else "-",
        errors or "-",
    )


def _gen_table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    lines = [_HEADINGS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)
            for heading, cell, width in zip(_HEADINGS, line, widths)
        ]
        yield ("  " + "  ".join(cells)).rstrip()


def _clean(text: str) -> str:
    """TEXT with '?' for what a terminal might obey or hide."""
    return "".join(character if character.isprintable() else "?" for character in text)


def summarize_captures(paths: Iterable[str], root: str, min_latency_ns: int = 0) -> dict[str, Any]:
    """What summary.json holds for the captures at PATHS, which it names relative to ROOT; what cannot be read is SKIPPED."""
    return _summarize_all(dict.fromkeys(paths), root, min_latency_ns, [])


def summarize_source(source: str, min_latency_ns: int = 0) -> dict[str, Any]:
    """What summary.json holds for SOURCE, a capture or a folder: of its calls those that took MIN_LATENCY_NS or longer.

    What of a folder cannot be read is SKIPPED; raises CaptureError for a capture that was asked for by itself.
    """
    if not os.path.isdir(source):
        if not os.path.lexists(source):
            raise FleetError(f"there is no capture {source}")
        manifest = read_manifest(find_manifest(source))
        return {
            "captures": summarize_capture(source, manifest, os.path.dirname(source) or ".", min_latency_ns),
            "skipped": [],
        }
    paths, skipped = list_captures(source)
    return _summarize_all(paths, source, min_latency_ns, skipped)


def _summarize_all(paths: Iterable[str], root: str, min_latency_ns: int, skipped: list[CaptureError]) -> dict[str, Any]:
    captures: list[dict[str, Any]] = []
    for path in paths:
        try:
            manifest = read_manifest(find_manifest(path))
        except CaptureError as error:
            skipped.append(error)
            manifest = {}
        try:
            captures += summarize_capture(path, manifest, root, min_latency_ns)
        except CaptureError as error:
            skipped.append(error)
    return {
        "captures": captures,
        "skipped": [
            {"path": os.path.relpath(one.path, root), "reason": one.reason, "next_step": one.next_step}
            for one in skipped
        ],
    }


def write_report(
    summary: dict[str, Any], dest: str, formats: list[str], *, check_mode: bool
) -> tuple[bool, dict[str, str]]:
    """Write SUMMARY below folder DEST as FORMATS say: whether a file changed, and the files by format. One of nothing is not written."""
    if not summary["captures"] and not summary["skipped"]:
        return False, {}
    texts = {"json": json.dumps(summary, indent=1) + "\n", "text": format_summary(summary)}
    names = {"json": "summary.json", "text": "summary.txt"}
    files = {one: os.path.join(dest, names[one]) for one in formats}
    stale = [one for one, path in files.items() if _read_text(path) != texts[one]]
    if stale and not check_mode:
        make_missing(dest)
        for one in stale:
            temporary = files[one] + ".part"
            with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
                file.write(texts[one])
            os.rename(temporary, files[one])
    return bool(stale), files


def _read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
