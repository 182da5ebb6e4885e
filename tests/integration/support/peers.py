# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare how the collection and trace-cmd read a trace.dat: its buffers, events and fields."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import read_traces
from support import every_kernel, host

# Event → fields with numbers that trace-cmd shows by name.
FIELDS = {
    "sched:sched_switch": ("prev_pid", "prev_prio", "prev_state", "next_pid", "next_prio"),
    "sched:sched_waking": ("pid", "prio", "target_cpu"),
    "raw_syscalls:sys_exit": ("id", "ret"),
    "syscalls:sys_enter_openat": ("dfd", "filename", "flags"),
    "syscalls:sys_exit_openat": ("ret",),
    "sock:inet_sock_set_state": ("skaddr", "oldstate", "newstate", "sport", "dport", "protocol"),
}
# A process that opens files, forks, and sends data to itself.
WORKLOAD = """
import os, socket
with socket.create_server(("127.0.0.1", 0)) as server:
    for number in range(20):
        client = socket.create_connection(server.getsockname())
        peer, _address = server.accept()
        client.send(b"x"); peer.recv(1); peer.close(); client.close()
        try: open("/nonesuch")
        except OSError: pass
        if os.fork() == 0: os._exit(0)
        os.wait()
"""
_LINE = re.compile(r"(?:(\S+): )? *.*-(\d+) +\[\d+\].* (\d+)\.(\d{9}): +(\w+): *(.*)")


def read_ours(path: str, event: str, fields: Sequence[str], buffer: str = "") -> list[tuple[int, ...]]:
    """Return time, thread and FIELDS of every EVENT in BUFFER of the trace.dat PATH, sorted, by the collection's decoder."""
    rows: list[tuple[int, ...]] = []
    with open(path, "rb") as file:
        (trace,) = (trace for trace in read_traces(file) if trace.head.buffer == buffer)
        known = trace.formats[event]
        for batch in trace.gen_batches():
            events = batch.select(known.id)
            columns = [batch.integers(events, known.field(field)).tolist() for field in fields]
            rows += zip(batch.times[events].tolist(), batch.tids[events].tolist(), *columns)
    return sorted(rows)


def list_lines(path: Path | str) -> list[str]:
    """Return the lines of `trace-cmd report -R -t` of PATH, without those about lost events.

    trace-cmd puts a buffer's name before such a line and not before the next event, which gets the name here.
    """
    text = host.run("trace-cmd", "report", "-R", "-t", str(path)).stdout
    return re.sub(r"^(\S+: )CPU:\d+ \[\d+ EVENTS DROPPED\]\n", r"\1", text, flags=re.M).splitlines()


def read_theirs(lines: Sequence[str], event: str, fields: Sequence[str], buffer: str = "") -> list[tuple[int, ...]]:
    """Return time, thread and FIELDS of every EVENT in BUFFER, sorted, from trace-cmd's LINES."""
    rows = []
    for found in filter(None, map(_LINE.fullmatch, lines)):
        if (found[1] or "", found[5]) == (buffer, event.partition(":")[2]):
            values = dict(re.findall(r"(\w+)=(-?\w+)", found[6]))
            rows.append((int(found[3] + found[4]), int(found[2]), *(_parse(values[field]) for field in fields)))
    return sorted(rows)


def _parse(text: str) -> int:
    number = int(text, 16 if text.startswith("0x") else 10)
    return number - (1 << 64) if number >= 1 << 63 else number


def check_reads_the_same(path: Path, dest: Path, tick_ns: int = 1) -> set[str]:
    """Check that the report of PATH has the same buffers, events and fields as trace-cmd's, and return the events of FIELDS in it.

    DEST is a folder for the report. TICK_NS is the number of nanoseconds that one nanosecond in trace-cmd's output stands for.
    """
    lines = list_lines(path)
    theirs = Counter((found[1] or "", found[5]) for found in map(_LINE.fullmatch, lines) if found)
    captures = every_kernel.report(path, dest)
    ours: Counter[tuple[str, str]] = Counter()
    for capture in captures:
        assert sum(capture["event_counts"].values()) == capture["events"]
        for name, count in capture["event_counts"].items():
            ours[(capture["buffer"] or "", name.partition(":")[2])] += count
    assert ours == theirs
    seen = set()
    for capture in captures:
        for event in FIELDS.keys() & capture["event_counts"].keys():
            buffer = capture["buffer"] or ""
            rows = read_theirs(lines, event, FIELDS[event], buffer)
            theirs_ns = [(time * tick_ns, *others) for time, *others in rows]
            assert read_ours(str(path), event, FIELDS[event], buffer) == theirs_ns
            seen.add(event)
    return seen
