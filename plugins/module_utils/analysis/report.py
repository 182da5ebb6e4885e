# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures on the controller → summary.json, and the same as a table to read."""

from __future__ import annotations

import json
import os
import re
import stat
import textwrap
from contextlib import suppress
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
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_surrogates

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
    """Return MANIFEST with the tables, and parts of its own, that TRACE carries. Raises TraceFileError."""
    known = tables.unite(manifest, trace.head.options)
    if not is_sound(known):
        raise TraceFileError("its tables of threads and calls are not what ftrace_fetch writes")
    return known


def _summarize_trace(trace: Trace, manifest: dict[str, Any], name: str, min_latency_ns: int) -> dict[str, Any]:
    """What summary.json says of TRACE, one buffer of the capture called NAME."""
    table = summarize(trace, manifest, min_latency_ns)
    container = manifest.get("container") or {}
    reasons = [*manifest.get("reasons", []), *table.damage]
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


def format_capture(one: dict[str, Any]) -> str:
    """The text that a person reads, for ONE entry of summary.json's captures."""
    return "".join(f"{line}\n" for line in _gen_lines(one))


def _format_skipped(skipped: list[dict[str, str]]) -> str:
    return "".join(f"Skipped: {_clean(describe_skipped(one))}\n" for one in skipped)


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
        str(row["pids"][0]) if row["process_count"] == 1 else f"{row['process_count']} of them",
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


def gen_source(source: str, skipped: list[dict[str, str]], min_latency_ns: int = 0) -> Iterator[dict[str, Any]]:
    """What summary.json says of each capture of SOURCE, a capture or a folder: of its calls those that took MIN_LATENCY_NS or longer.

    What of a folder cannot be read is added to SKIPPED; raises CaptureError for a capture that was asked for by itself.
    """
    if not os.path.isdir(source):
        if not os.path.lexists(source):
            raise FleetError(f"there is no capture {source}")
        manifest = read_manifest(find_manifest(source))
        yield from _escape_all(summarize_capture(source, manifest, os.path.dirname(source) or ".", min_latency_ns))
        return
    paths, errors = list_captures(source)
    skipped += [_describe_error(error, source) for error in errors]
    yield from gen_captures(paths, source, skipped, min_latency_ns)


def gen_captures(
    paths: Iterable[str], root: str, skipped: list[dict[str, str]], min_latency_ns: int = 0
) -> Iterator[dict[str, Any]]:
    """What summary.json says of each capture at PATHS, which it names relative to ROOT; what cannot be read is added to SKIPPED."""
    for path in paths:
        try:
            manifest = read_manifest(find_manifest(path))
        except CaptureError as error:
            skipped.append(_describe_error(error, root))
            manifest = {}
        try:
            yield from _escape_all(summarize_capture(path, manifest, root, min_latency_ns))
        except CaptureError as error:
            skipped.append(_describe_error(error, root))


def _describe_error(error: CaptureError, root: str) -> dict[str, str]:
    found = {"path": os.path.relpath(error.path, root), "reason": error.reason, "next_step": error.next_step}
    return {name: escape_surrogates(text) for name, text in found.items()}


def _escape_all(value: Any) -> Any:
    """VALUE, of which JSON is to be made, without lone surrogates."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [_escape_all(one) for one in value]
    if isinstance(value, dict):
        return {_escape_all(name): _escape_all(one) for name, one in value.items()}
    return value


class ReportWriter:
    """The files of a report below folder DEST, written capture by capture, so that one capture's rows are in memory at a time.

    FILES has their paths by format, LINES the beginning of the text, as much as a result may hold. With CHECK_MODE they are compared only.
    What is not finished leaves the files as they were. A report of nothing is not written.
    """

    def __init__(self, dest: str, formats: list[str], *, check_mode: bool) -> None:
        names = {"json": "summary.json", "text": "summary.txt"}
        self.files = {one: os.path.join(dest, names[one]) for one in formats}
        self._drafts = {one: _Draft(path, check_mode=check_mode) for one, path in self.files.items()}
        self._count = 0
        self._text: list[str] = []
        self._more = 0

    @property
    def lines(self) -> list[str]:
        return [*self._text, f"and {self._more} more lines in summary.txt"] if self._more else self._text

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(self, *_error: object) -> None:
        for draft in self._drafts.values():
            draft.close()

    def add(self, one: dict[str, Any]) -> None:
        """Write ONE entry of summary.json's captures."""
        if "json" in self._drafts:
            beginning = ",\n" if self._count else '{\n "captures": [\n'
            self._drafts["json"].write(beginning + textwrap.indent(json.dumps(one, indent=1), "  "))
        self._add_text(("\n" if self._count else "") + format_capture(one))
        self._count += 1

    def finish(self, skipped: list[dict[str, str]]) -> bool:
        """Write what was SKIPPED, and put the files in their places; whether one has changed."""
        if not self._count and not skipped:
            self.files = {}
            self._text = ["No capture: there is nothing to report on."]
            return False
        if "json" in self._drafts:
            captures_end = "\n ]" if self._count else '{\n "captures": []'
            last = textwrap.indent(json.dumps(skipped, indent=1), " ").lstrip()
            self._drafts["json"].write(f'{captures_end},\n "skipped": {last}\n}}\n')
        text = _format_skipped(skipped)
        self._add_text("\n" + text if text and self._count else text)
        changes = [draft.finish() for draft in self._drafts.values()]
        return any(changes)

    def _add_text(self, text: str) -> None:
        if "text" in self._drafts:
            self._drafts["text"].write(text)
        lines = text.splitlines()
        room = _MAX_LINES - len(self._text)
        self._text += lines[:room]
        self._more += len(lines[room:])


class _Draft:
    """What the file at PATH is to hold, written beside it and compared with it piece by piece."""

    def __init__(self, path: str, *, check_mode: bool) -> None:
        self._path = path
        self._temporary = path + ".part"
        self._check_mode = check_mode
        self._old: BinaryIO | None = None
        self._new: BinaryIO | None = None
        self._is_begun = False

    def write(self, text: str) -> None:
        if not self._is_begun:
            self._begin()
        data = text.encode("utf-8")
        if self._new is not None:
            self._new.write(data)
        if self._old is not None and self._old.read(len(data)) != data:
            self._drop_old()

    def finish(self) -> bool:
        """Put it in its place; whether that held something else."""
        is_same = self._old is not None and not self._old.read(1)
        if self._new is not None and not is_same:
            self._new.close()
            os.rename(self._temporary, self._path)
            self._new = None
        return not is_same

    def close(self) -> None:
        self._drop_old()
        if self._new is not None:
            self._new.close()
            os.unlink(self._temporary)
            self._new = None

    def _begin(self) -> None:
        self._is_begun = True
        with suppress(FileNotFoundError):
            self._old = open(self._path, "rb")
        if not self._check_mode:
            make_missing(os.path.dirname(self._path))
            self._new = open(self._temporary, "wb", opener=open_private)

    def _drop_old(self) -> None:
        if self._old is not None:
            self._old.close()
            self._old = None
