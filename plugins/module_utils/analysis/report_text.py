# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of a capture, as lines that a person reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Iterator, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import GROUP_PREFIX, PATH_PREFIX

_Cells = Tuple[str, ...]  # of one row, as many as there are headings

_HEADINGS = ("PROCESS", "PID", "SYSCALL", "CALLS", "TOTAL ms", "P99 us", "ERRORS")
_NUMBERS = frozenset({"PID", "CALLS", "TOTAL ms", "P99 us"})
_MAX_TEXT_ROWS = 40
# What every trace has: calls, which the table is of, and what processes have their names from.
_PATH_EVENT = re.compile(rf"{GROUP_PREFIX}\w*:{PATH_PREFIX}")
_OWN_EVENTS = ("raw_syscalls:", "sched:sched_process_exec", "task:task_", "syscalls:sys_exit_execve")


@dataclass(frozen=True)
class Brief:
    """What is said of a capture among many: the line that names it, its first ROWS as cells, and HOW_MANY rows it has."""

    title: str
    rows: list[_Cells]
    how_many: int


def describe_briefly(one: dict[str, Any], count: int) -> Brief:
    """The title of ONE entry of summary.json's captures, and its first COUNT rows, each with the path that failed most often."""
    rows = []
    for row in one["programs"][:count]:
        *cells, errors = _cells(row)
        failed = max(row["paths"], key=lambda use: sum(use["errors"].values()), default=None)
        path = f": {_clean(failed['path'])!r}" if failed is not None and failed["errors"] else ""
        rows.append((*cells, errors + path))
    return Brief(_describe_capture(one), rows, len(one["programs"]))


def format_briefs(briefs: list[Brief], count: int) -> list[str]:
    """The lines of a table that BRIEFS share, with at most COUNT rows of each."""
    heading, *lines = _gen_table([row for brief in briefs for row in brief.rows[:count]])
    found = [heading]
    for brief in briefs:
        more = brief.how_many - count
        found.append(brief.title + (f" ({more} more rows)" if more > 0 else ""))
        found += [lines.pop(0) for _row in brief.rows[:count]]
    return found


def format_capture(one: dict[str, Any]) -> str:
    """The text that a person reads, for ONE entry of summary.json's captures."""
    return "".join(f"{line}\n" for line in _gen_lines(one))


def format_skipped(skipped: list[dict[str, str]]) -> str:
    """A line for each of what was SKIPPED."""
    return "".join(f"Skipped: {_clean(describe_skipped(one))}\n" for one in skipped)


def describe_skipped(one: dict[str, str]) -> str:
    """One line that says of an entry of `skipped` what it is, why, and what next."""
    return f"{one['path']}: {one['reason']}; {one['next_step']}"


def _explain_loss(one: dict[str, Any]) -> str:
    return "; ".join(one.get("reasons") or []) or f"{one['lost']} events lost"


def _describe_capture(one: dict[str, Any]) -> str:
    name = _clean(one["container"] or one["capture"]) + (f", buffer {_clean(one['buffer'])}" if one["buffer"] else "")
    host = _clean(one["host"] or "an unknown host")
    lost = {None: "loss unknown", True: "complete"}.get(one["complete"], f"INCOMPLETE: {_clean(_explain_loss(one))}")
    return f"{name} on {host}: {one['events']} events in {one['duration_s']:.3f} s from {one['start'] or '?'}, {lost}"


def _gen_lines(one: dict[str, Any]) -> Iterator[str]:
    yield _describe_capture(one)
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
