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
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import describe_target
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.resources import Resources
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import name_call

_MIN_COUNT = 20
_MIN_SPAN = 0.5  # of the trace's time, or of the process's in it, within which the descriptors were opened
_MIDDLE = (0.2, 0.8)  # of that span, in which half of them were open
_MIN_TIME_NS = 1_000_000_000
_MIN_SHARE = 0.1  # of the openings that stay open: a shell makes five others for each redirection
_MIN_SHARE_UNSEEN = 0.25  # where nobody knows which of them stay open
_NAMED = 0.8  # of the new descriptors
_SEVERITY, _SEVERITY_NEAR = 60, 80
_NEAR_S = 3600.0  # to the limit
_PEER = re.compile(r"(.+):\d+( \(\w+\))?\Z")
_NUMBERS = re.compile(r"\d+")


class _Growth(NamedTuple):
    """Descriptors that a process has left open."""

    left: int
    thing: Thing | None
    share: int  # of LEFT, which are of THING
    certain: bool


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each process of CAPTURE whose descriptors grow in number."""
    resources = Resources(capture.manifest)
    by_process: dict[int, list[LeftOpen]] = defaultdict(list)
    for row in capture.left_open:
        by_process[row.who.pid].append(row)
    is_told = _records_closes(capture)
    for process in capture.processes.values():
        # The host's count also shows growth where closes are not in the trace.
        told = _find_told(capture, process, resources)
        if not is_told and (told or 0) < _MIN_COUNT:
            continue
        rows = by_process.get(process.pid, [])
        balance = process.opened - process.closed
        high = capture.high_opened.get(process.pid)
        if balance - sum(row.count for row in rows) < _MIN_COUNT:
            high = None
        growth = _measure(capture, process, rows, high, told)
        if growth:
            yield _make_finding(capture, process, [*rows, *([high] if high else [])], growth, resources)


def _records_closes(capture: Capture) -> bool:
    """Return True if CAPTURE has the calls that close descriptors; without them, everything seems to stay open."""
    wanted: dict[str, Any] = capture.manifest.get("specification") or {}
    if wanted.get("errors_only"):
        return False
    chosen = wanted.get("syscalls")
    if chosen is None:
        return any(cell.call == "close" for cell in capture.cells)
    numbers = chosen.get("native") or []
    is_all = not numbers and not chosen.get("compat")
    return is_all or any(name_call(number, capture.calls) == "close" for number in numbers)


def _find_told(capture: Capture, process: Process, resources: Resources) -> int | None:
    """Return by how many descriptors PROCESS has grown, as the host counted; None where it did not count, or the process is younger."""
    found = resources.find_process(process.pid, "open")
    is_older = process.begin_ns < capture.tables.start_ns
    return found.growth if is_older and found.first is not None and found.last is not None else None


def _measure(
    capture: Capture, process: Process, rows: Sequence[LeftOpen], high: LeftOpen | None, told: int | None
) -> _Growth | None:
    """Return what PROCESS, which left ROWS and some of HIGH open, has more than at its beginning; None where that does not grow.

    HIGH are descriptors that were not followed. TOLD is the growth that the host has counted, or None.
    """
    start, end = max(capture.tables.start_ns, process.begin_ns), capture.tables.end_ns
    left, balance = sum(row.count for row in rows), process.opened - process.closed
    count = balance if high else min(left, balance)
    count = count if told is None else min(count, told)
    least = _MIN_SHARE_UNSEEN if high and told is None else _MIN_SHARE
    if count < max(_MIN_COUNT, least * process.opened) or end - start < _MIN_TIME_NS:
        return None
    grown = _find_grown(rows, start, end, is_full=bool(high))
    if high:
        since = high.first_ns if left >= _MIN_COUNT else start  # the lower numbers were used up first
        if not _is_spread(high.first_ns, high.middle_ns, high.last_ns, end - since):
            return None
    elif grown is None:
        return None
    thing, share = grown or (None, 0)
    return _Growth(count, thing, min(share, count), certain=told is not None)


def _is_spread(first: int, middle: int, last: int, duration: int) -> bool:
    """Return True if descriptors, of which half were open at MIDDLE, were opened in all parts of DURATION."""
    span = last - first
    return span >= _MIN_SPAN * duration and _MIDDLE[0] * span <= middle - first <= _MIDDLE[1] * span


def _find_grown(rows: Sequence[LeftOpen], start: int, end: int, is_full: bool) -> tuple[Thing | None, int] | None:
    """Return the object, or the pattern of objects, of most descriptors in ROWS that were opened all the time between START and END.

    IS_FULL means that later descriptors are not known.
    """
    groups: dict[Thing, list[LeftOpen]] = defaultdict(list)
    for row in rows:
        for thing in dict.fromkeys((row.object or Thing("anon", "something not known"), _generalize(row.object))):
            groups[thing].append(row)
    found: list[tuple[int, bool, Thing]] = []
    for thing, members in groups.items():
        count = sum(row.count for row in members)
        first, last = min(row.first_ns for row in members), max(row.last_ns for row in members)
        middle = _find_middle(members)
        if count >= _MIN_COUNT and (is_full or _is_spread(first, middle, last, end - start)):
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
    rate = growth.left / seconds
    limit = resources.find_process(process.pid, "nofile").known or resources.guess_limit("nofile")
    held = resources.find_process(process.pid, "open").last or growth.left
    numbers = {"left": Number(growth.left, "sum"), "rate": Number(_round(rate), "sum")}
    thing = _name_by_host(capture, process.pid, growth.thing)
    is_all = growth.share >= _NAMED * growth.left or thing != growth.thing
    what = "descriptors" if thing is None else f"descriptors of {{object}}{'' if is_all else ' and others'}"
    template = f"{{program}} leaves {what} open: {{left}} in this trace, {{rate}} a second"
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
        program=process.program,
        object=thing,
        numbers=numbers,
        count=growth.left,
        of=max(process.opened, growth.left),
        confidence="certain" if growth.certain and not capture.loss else "likely",
        missing=missing,
        next=run_in(capture.place, "lsof", "-n", "-P", *chosen),
    )


def _name_by_host(capture: Capture, pid: int, thing: Thing | None) -> Thing | None:
    """Return THING, or, where the trace does not name it, what most of the new descriptors of process PID refer to, as the host saw it."""
    if thing is not None and thing.kind in ("path", "peer"):
        return thing
    table = capture.manifest.get("descriptors") or {}
    ends = [
        {entry["fd"]: entry["target"] for entry in table.get(when) or () if entry["pid"] == pid}
        for when in ("first", "last")
    ]
    new = [describe_target(target) for fd, target in ends[1].items() if ends[0].get(fd) != target]
    for counts in (Counter(new), Counter(map(_generalize, new))):
        found, count = max(counts.items(), key=lambda pair: (pair[1], pair[0]), default=(None, 0))
        if found is not None and count >= max(_MIN_COUNT, _NAMED * len(new)):
            return found
    return thing


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")


RULE = Rule(name="leaks", title="descriptors that are opened and not closed", find=find)
