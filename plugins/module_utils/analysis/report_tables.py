# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Format the entries of a report (summary.json) as text for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterator, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.columns import align
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import GROUP_PREFIX, PATH_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import mask

_Cells = Tuple[str, ...]  # of one row, as many as there are headings

_HEADINGS = ("PROCESS", "PID", "SYSCALL", "CALLS", "TOTAL ms", "P99 us", "ERRORS")
_NUMBERS = frozenset(map(_HEADINGS.index, ("PID", "CALLS", "TOTAL ms", "P99 us")))
_MAX_TEXT_ROWS = 40
# Events that every trace has: calls, which the table shows, and the sources of processes' names. They are not listed as others.
_PATH_EVENT = re.compile(rf"{GROUP_PREFIX}\w*:{PATH_PREFIX}")
_OWN_EVENTS = ("raw_syscalls:", "sched:sched_process_exec", "task:task_", "syscalls:sys_exit_execve")


@dataclass(frozen=True)
class Brief:
    """The short form of a capture in a page about several."""

    title: str  # the line that describes the capture
    rows: list[_Cells]  # its first rows
    how_many: int  # number of all its rows


def describe_briefly(entry: dict[str, Any], count: int) -> Brief:
    """Return the title and the first COUNT rows of ENTRY, an entry of summary.json's captures.

    Each row ends with the path that its calls failed on most often.
    """
    rows = []
    for row in entry["programs"][:count]:
        *cells, errors = _cells(row)
        failed = max(row["paths"], key=lambda use: sum(use["errors"].values()), default=None)
        path = f": {mask(failed['path'])!r}" if failed is not None and failed["errors"] else ""
        rows.append((*cells, errors + path))
    return Brief(_describe_capture(entry), rows, len(entry["programs"]))


def format_briefs(briefs: list[Brief], count: int) -> list[str]:
    """Return the lines of one table for all BRIEFS, with at most COUNT rows of each."""
    heading, *lines = _make_table([row for brief in briefs for row in brief.rows[:count]])
    found = [heading]
    for brief in briefs:
        more = brief.how_many - count
        found.append(brief.title + (f" ({more} more rows)" if more > 0 else ""))
        found += [lines.pop(0) for _row in brief.rows[:count]]
    return found


def format_capture(entry: dict[str, Any]) -> str:
    """Return the text for ENTRY, an entry of summary.json's captures."""
    return "".join(f"{line}\n" for line in _gen_lines(entry))


def format_skipped(skipped: list[dict[str, str]]) -> str:
    """Return one line of text for each entry of SKIPPED, the files that could not be read."""
    return "".join(f"Skipped: {mask(describe_skipped(entry))}\n" for entry in skipped)


def describe_skipped(entry: dict[str, str]) -> str:
    """Return one line for ENTRY, an entry of `skipped`: the file, the reason and the next step."""
    return f"{entry['path']}: {entry['reason']}; {entry['next_step']}"


def _explain_loss(entry: dict[str, Any]) -> str:
    return "; ".join(entry.get("reasons") or []) or f"{entry['lost']} events lost"


def _describe_capture(entry: dict[str, Any]) -> str:
    buffer = f", buffer {mask(entry['buffer'])}" if entry["buffer"] else ""
    name = mask(entry["container"] or entry["capture"]) + buffer
    host = mask(entry["host"] or "an unknown host")
    incomplete = f"INCOMPLETE: {mask(_explain_loss(entry))}"
    lost = {None: "loss unknown", True: "complete"}.get(entry["complete"], incomplete)
    size = f"{entry['events']} events in {entry['duration_s']:.3f} s"
    return f"{name} on {host}: {size} from {entry['start'] or '?'}, {lost}"


def _gen_lines(entry: dict[str, Any]) -> Iterator[str]:
    yield _describe_capture(entry)
    rows = entry["programs"][:_MAX_TEXT_ROWS]
    if not rows:
        yield "  no system call was recorded"
    else:
        yield from _make_table([_cells(row) for row in rows])
    yield from _gen_failed_paths(entry["programs"])
    yield from _gen_rings(entry["io_uring"], has_calls=bool(rows))
    if entry["min_latency_ns"]:
        yield f"  only calls of {entry['min_latency_ns'] / 1e6:g} ms and longer"
    others = [
        f"{mask(_shorten(name))} {count}"
        for name, count in entry["event_counts"].items()
        if not name.startswith(_OWN_EVENTS) and not _PATH_EVENT.match(name)
    ]
    if others:
        yield f"  other events: {', '.join(others)}"
    if entry["functions"]:
        most = list(entry["functions"].items())[:_MAX_TEXT_ROWS]
        yield f"  functions of the kernel: {', '.join(f'{mask(name)} {count}' for name, count in most)}"
    if len(entry["programs"]) > _MAX_TEXT_ROWS:
        yield f"  and {len(entry['programs']) - _MAX_TEXT_ROWS} more rows in summary.json"


def _shorten(event: str) -> str:
    """Return the name of EVENT; of one of our probes, without the group, which differs from container to container."""
    system, _colon, name = event.partition(":")
    return f"probe {name}" if system.startswith(GROUP_PREFIX) else event


def _gen_failed_paths(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield lines with the paths that calls failed on, most failures first."""
    failed = [(row, use) for row in rows for use in row["paths"] if use["errors"]]
    failed.sort(key=lambda pair: -sum(pair[1]["errors"].values()))
    if failed:
        yield "  paths of calls that failed:"
    for row, use in failed[:_MAX_TEXT_ROWS]:
        errors = ", ".join(f"{name} {count}" for name, count in use["errors"].items())
        yield f"    {mask(row['name'])} {mask(row['syscall'])} {mask(use['path'])!r}: {errors}"


def _gen_rings(rings: dict[str, Any], *, has_calls: bool) -> Iterator[str]:
    """Yield lines about requests through io_uring, which are no system calls."""
    if rings["requests"]:
        requests = ", ".join(f"{mask(name)} {count}" for name, count in rings["requests"].items())
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
        mask(row["name"]),
        str(row["pids"][0]) if row["process_count"] == 1 else f"{row['process_count']} of them",
        mask(row["syscall"]),
        str(row["calls"]),
        f"{row['total_ns'] / 1e6:.3f}" if row["measured"] else "-",
        f"{row['p99_ns'] / 1e3:.1f}" if row["measured"] else "-",
        errors or "-",
    )


def _make_table(rows: list[_Cells]) -> list[str]:
    return [f"  {line}" for line in align([_HEADINGS, *rows], _NUMBERS)]
