# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures on the controller → summary.json, and the same as a table to read."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import SyscallRow, TraceTable, summarize
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.probes import GROUP_PREFIX, PATH_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tracedat import TraceFileError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_missing, open_private

_HEADINGS = ("PROCESS", "PID", "SYSCALL", "CALLS", "TOTAL ms", "P99 us", "ERRORS")
_NUMBERS = frozenset({"PID", "CALLS", "TOTAL ms", "P99 us"})
_MAX_TEXT_ROWS = 40
# What every trace has: calls, which the table is of, and what processes have their names from.
_PATH_EVENT = re.compile(rf"{GROUP_PREFIX}\w*:{PATH_PREFIX}")
_OWN_EVENTS = ("raw_syscalls:", "sched:sched_process_exec", "task:task_", "syscalls:sys_exit_execve")


def list_captures(source: str) -> list[str]:
    """The trace.dat files that SOURCE, a file or a folder with captures below it, means, in the order of their paths."""
    if os.path.isdir(source):
        return sorted(
            os.path.join(folder, name)
            for folder, _folders, names in os.walk(source)
            for name in names
            if name.endswith(".dat")
        )
    if not os.path.exists(source):
        raise FleetError(f"there is no capture {source}")
    return [source]


def read_manifest(capture: str) -> dict[str, Any]:
    """The manifest beside CAPTURE; an empty one where there is none, as for a trace that trace-cmd recorded."""
    path = os.path.splitext(capture)[0] + ".json"
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FleetError(f"the manifest {path} is damaged: {error}") from error
    if not is_sound(manifest):
        raise FleetError(
            f"the manifest {path} is not what ftrace_fetch writes; fetch again, or remove it to do without"
        )
    return manifest  # type: ignore[no-any-return]


def is_sound(manifest: Any) -> bool:
    """Whether MANIFEST has the form that the analysis relies on: it came from a host."""
    if not isinstance(manifest, dict):
        return False
    offset, lost = manifest.get("clock_offset_ns"), manifest.get("lost")
    container = manifest.get("container")
    return (
        (offset is None or (_is_int(offset) and abs(offset) < 1 << 62))
        and (lost is None or _is_int(lost))
        and manifest.get("complete") in (None, True, False)
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
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


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


def summarize_capture(capture: str, root: str, min_latency_ns: int = 0) -> dict[str, Any]:
    """What summary.json says of CAPTURE; its path is given relative to ROOT."""
    manifest = read_manifest(capture)
    try:
        with open(capture, "rb") as file:
            table = summarize(Trace(file), manifest, min_latency_ns)
    except TraceFileError as error:
        raise FleetError(f"{capture}: {error}") from error
    container = manifest.get("container") or {}
    return {
        "capture": os.path.relpath(capture, root),
        "host": manifest.get("inventory_hostname") or manifest.get("host"),
        "container": container.get("name"),
        "container_id": container.get("id"),
        "complete": manifest.get("complete"),
        "lost": manifest.get("lost"),
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


def format_summary(summary: dict[str, Any]) -> str:
    """The text that a person reads, for all captures of SUMMARY."""
    if not summary["captures"]:
        return "No capture: nothing was recorded.\n"
    return "\n".join(line for one in summary["captures"] for line in _gen_lines(one))


def _gen_lines(one: dict[str, Any]) -> Iterator[str]:
    name = _clean(one["container"] or one["capture"])
    host = _clean(one["host"] or "an unknown host")
    lost = {None: "loss unknown", True: "complete"}.get(
        one["complete"], f"INCOMPLETE: {_clean(str(one['lost']))} events lost"
    )
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


def summarize_source(source: str, min_latency_ns: int = 0) -> dict[str, Any]:
    """What summary.json holds for SOURCE, a capture or a folder: of its calls those that took MIN_LATENCY_NS or longer."""
    root = source if os.path.isdir(source) else os.path.dirname(source) or "."
    captures = [summarize_capture(capture, root, min_latency_ns) for capture in list_captures(source)]
    return {"captures": captures}


def write_report(
    summary: dict[str, Any], dest: str, formats: list[str], *, check_mode: bool
) -> tuple[bool, dict[str, str]]:
    """Write SUMMARY below folder DEST as FORMATS say: whether a file changed, and the files by format."""
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
