# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Captures made by hand, as rules see them."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings import capture_columns
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture

OFFSET_NS = 1795302898 * 10**9  # the clock began at 2026-11-21T23:14:58Z
SECOND = 10**9


@dataclass
class Call:
    """Calls that were alike, by process PID of PROGRAM. OBJECT is a pair of kind and text; a plain text is a path."""

    call: str
    object: object = None
    error: str = ""
    count: int = 1
    program: str = "web"
    pid: int = 4711
    flags: int = 0
    first: float = 2.0  # seconds of the trace's clock
    last: float = 2.0
    total: float = 0.001
    longest: float = 0.001
    args: tuple = ()
    result: int = 0
    is_long: bool = False  # a row of the long calls, and not of the cells


def make_capture(
    *calls, host="web1", container="api", file=None, left_open=(), high_opened=(), processes=None, **manifest
):
    """Return the Capture that holds CALLS.

    LEFT_OPEN has (pid, object, count) of descriptors, and when the first, the last and half of them were opened. HIGH_OPENED has
    the same of those with high numbers. PROCESSES has by pid what is known of a process: begin, end (seconds), status, opened, closed.
    """
    builder = _Builder()
    for call in calls:
        builder.add(call)
    about = {
        "inventory_hostname": host,
        "container": {"name": container, "image": manifest.pop("image", None)},
        "clock_offset_ns": OFFSET_NS,
        "lost": 0,
        **manifest,
    }
    return Capture(
        file=file or f"{host}/{container}/x.dat",
        tables=builder.build(left_open, high_opened, processes or {}),
        calls=dict(enumerate(builder.numbers)),
        manifest=about,
        reasons=manifest.get("reasons", ()),
    )


class _Builder:
    def __init__(self):
        self.numbers, self.pids = {}, {}
        self.begins = {}
        self.tasks, self.objects = {}, {("", ""): 0, (None, None): 1}
        self.cells, self.long_calls = [], []

    def add(self, call):
        error = getattr(errno, call.error, None) or int(call.error or 0)
        # A process has another name from the first call under that name on.
        begin = codes.NEVER if call.pid not in self.pids else round(call.first * SECOND)
        process = self.pids.setdefault(call.pid, len(self.pids))
        self.begins.setdefault((call.program, call.pid, process), begin)
        key = (
            self.tasks.setdefault((call.program, call.pid, process), len(self.tasks)),
            self.numbers.setdefault(call.call, len(self.numbers)),
            error | call.flags,
            self.find(call.object),
        )
        if call.is_long:
            times = (round(call.first * SECOND), round(call.longest * SECOND))
            self.long_calls.append((*times, key[0], key[1], call.args, call.result, *key[2:]))
        else:
            times = [round(time * SECOND) for time in (call.first, call.last, call.total, call.longest)]
            self.cells.append((*key, call.count, *times))

    def find(self, thing):
        pair = ("path", thing) if isinstance(thing, str) else thing or ("", "")
        return self.objects.setdefault(pair, len(self.objects))

    def list_opened(self, rows):
        return [
            (self.pids[pid], self.find(thing), count, *(round(time * SECOND) for time in times or (1, 2, 2)))
            for pid, thing, count, *times in rows
        ]

    def build(self, left_open, high_opened, processes):
        rows, high = self.list_opened(left_open), self.list_opened(high_opened)
        known = [
            {"begin": None, "end": 0, "status": -1, "opened": 0, "closed": 0, **processes.get(pid, {})}
            for pid in self.pids
        ]
        return capture_columns.CaptureTables(
            capture_columns.Tasks(*transpose(self.tasks, 3), list(self.begins.values())),
            capture_columns.Processes(
                list(self.pids),
                [pid % 1000 for pid in self.pids],
                [-1] * len(self.pids),
                [codes.NEVER if one["begin"] is None else round(one["begin"] * SECOND) for one in known],
                [one["opened"] for one in known],
                [one["closed"] for one in known],
                [round(one["end"] * SECOND) for one in known],
                [one["status"] for one in known],
            ),
            [(kind or "", text or "") for kind, text in self.objects],
            capture_columns.Cells(*transpose(self.cells, 9)),
            capture_columns.LongCalls(*transpose(self.long_calls, 8)),
            capture_columns.Descriptors(*transpose(rows, 6)),
            capture_columns.Descriptors(*transpose(high, 6)),
            start_ns=0,
            end_ns=10 * SECOND,
        )


def transpose(rows, width):
    """Return ROWS of WIDTH entries as columns."""
    return [list(column) for column in zip(*rows)] or [[] for _column in range(width)]
