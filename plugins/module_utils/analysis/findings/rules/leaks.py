# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptors that a process opens and does not close, all the time.

Files that a server opens when it starts, and a pool of connections that stays as it is, do not grow: what is left open was opened in all parts
of the trace, and the process has opened more than it has closed by as much.
"""

from __future__ import annotations

import os.path
import re
from collections import Counter, defaultdict
from typing import Any, Iterator, NamedTuple, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import (
    Capture,
    LeftOpen,
    Process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.resources import Resources
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_MIN_COUNT = 20
_MIN_SPAN = 0.5  # of the trace's time, or of the process's in it, within which the descriptors were opened
_MIDDLE = (0.2, 0.8)  # of that span, in which half of them were open
_MIN_TIME_NS = 1_000_000_000
_MIN_SHARE = 0.25  # of the openings that stay open
_FOLLOWED = 256 - 16  # the pass follows the lowest 256 descriptors of a process
_SEVERITY, _SEVERITY_NEAR = 60, 80
_NEAR_S = 3600.0  # to the limit
_PEER = re.compile(r"(.+):\d+( \(\w+\))?\Z")
_NUMBERS = re.compile(r"\d+")


class _Growth(NamedTuple):
    """What a process has left open."""

    count: int
    thing: Thing | None
    share: int  # of COUNT, which are of THING
    certain: bool


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each process of CAPTURE whose descriptors grow in number."""
    if not _records_closes(capture):
        return
    resources = Resources(capture.manifest)
    by_process: dict[int, list[LeftOpen]] = defaultdict(list)
    for row in capture.left_open:
        by_process[row.who.pid].append(row)
    for pid, rows in by_process.items():
        process = capture.processes.get(pid)
        growth = _measure(capture, process, rows, resources) if process else None
        if process and growth:
            yield _make_finding(capture, process, rows, growth, resources)


def _records_closes(capture: Capture) -> bool:
    """Return True if CAPTURE has the calls that close descriptors; without them, everything seems to stay open."""
    wanted: dict[str, Any] = capture.manifest.get("specification") or {}
    return not wanted.get("errors_only") and any(cell.call == "close" for cell in capture.cells)


def _measure(capture: Capture, process: Process, rows: Sequence[LeftOpen], resources: Resources) -> _Growth | None:
    """Return what PROCESS, which left ROWS open, has more than at its beginning; None where that does not grow."""
    start, end = max(capture.tables.start_ns, process.begin_ns), capture.tables.end_ns
    left, balance = sum(row.count for row in rows), process.opened - process.closed
    is_full = left >= _FOLLOWED
    told = resources.find_process(process.pid, "open").growth
    count = max(balance, left) if is_full else min(max(balance, told), left) if balance < left else left
    if told > 0 and process.begin_ns < capture.tables.start_ns:
        count = min(count, told) if not is_full else told
    if count < _MIN_COUNT or balance < _MIN_COUNT or end - start < _MIN_TIME_NS or count < _MIN_SHARE * process.opened:
        return None
    grown = _find_grown(rows, start, end, is_full)
    if grown is None:
        return None
    thing, share = grown
    return _Growth(count, thing, min(share, count), certain=told >= _MIN_COUNT)


def _find_grown(rows: Sequence[LeftOpen], start: int, end: int, is_full: bool) -> tuple[Thing | None, int] | None:
    """Return the object, or the pattern of objects, of most descriptors in ROWS that were opened all the time between START and END.

    IS_FULL means that later descriptors are not known.
    """
    groups: dict[Thing, list[LeftOpen]] = defaultdict(list)
    for row in rows:
        for thing in {row.object or Thing("anon", "something not known"), _generalize(row.object)}:
            groups[thing].append(row)
    found: list[tuple[int, bool, Thing]] = []
    for thing, members in groups.items():
        count = sum(row.count for row in members)
        first, last = min(row.first_ns for row in members), max(row.last_ns for row in members)
        middle = _find_middle(members)
        span = last - first
        is_spread = is_full or (
            span >= _MIN_SPAN * (end - start) and _MIDDLE[0] * span <= middle - first <= _MIDDLE[1] * span
        )
        if count >= _MIN_COUNT and is_spread:
            found.append((count, len(members) == 1, thing))
    if not found:
        return None
    count, _is_one, thing = max(found)
    return thing, count


def _find_middle(rows: Sequence[LeftOpen]) -> int:
    """Return when half of the descriptors in ROWS were open."""
    counts: Counter[int] = Counter()
    for row in rows:
        counts[row.middle_ns] += row.count
    seen = 0
    for time in sorted(counts):
        seen += counts[time]
        if 2 * seen >= sum(counts.values()):
            return time
    return 0


def _generalize(thing: Thing | None) -> Thing:
    """Return the pattern of THING: the folder of a path, the host of a peer, a name without its numbers."""
    if thing is None:
        return Thing("anon", "something not known")
    if thing.kind == "path":
        return Thing("path", os.path.join(os.path.dirname(thing.text), "*"))
    if thing.kind == "peer":
        return Thing("peer", _PEER.sub(r"\1:*\2", thing.text))
    return Thing(thing.kind, _NUMBERS.sub("*", thing.text)) if thing.kind == "pipe" else thing


def _make_finding(
    capture: Capture, process: Process, rows: Sequence[LeftOpen], growth: _Growth, resources: Resources
) -> Finding:
    seconds = (capture.tables.end_ns - max(capture.tables.start_ns, process.begin_ns)) / 1e9
    rate = growth.count / seconds
    limit = resources.find_process(process.pid, "nofile").known or resources.guess_limit("nofile")
    held = resources.find_process(process.pid, "open").last or growth.count
    numbers = {"left": Number(growth.count, "sum"), "rate": Number(_round(rate), "sum")}
    what = "{object}" if growth.share >= 0.8 * growth.count else "{object} and others"
    template = f"{{program}} leaves descriptors of {what} open: {{left}} in this trace, {{rate}} a second"
    severity, missing = _SEVERITY, capture.loss
    if limit:
        left_s = max(0.0, (limit - held) / rate)
        numbers["limit"], numbers["left_s"] = Number(limit, "min"), Number(left_s * 1e9, "min", "ns")
        template += (
            "; its limit of {limit} (nofile) is reached in {left_s}"
            if limit > held
            else "; its limit is {limit} (nofile)"
        )
        severity = _SEVERITY_NEAR if left_s < _NEAR_S else _SEVERITY
    else:
        missing = missing or "its limit (nofile)"
    chosen = () if process.container_pid is None else ("-p", str(process.container_pid))
    return capture.make_finding(
        rows,
        rule="leaks",
        template=template,
        severity=severity,
        program=rows[-1].who.program,
        object=growth.thing,
        numbers=numbers,
        count=growth.count,
        of=max(process.opened, growth.count),
        confidence="certain" if growth.certain and not capture.loss else "likely",
        missing=missing,
        next=run_in(capture.place, "lsof", "-n", "-P", *chosen),
    )


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")


RULE = Rule(name="leaks", title="descriptors that are opened and not closed", find=find)
