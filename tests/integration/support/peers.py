# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare how the collection and trace-cmd read a trace.dat: its buffers, events and fields."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import add_tables
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import read_traces
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import EventBlock, gen_event_blocks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.histories import Histories
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
# The buffer, the thread's name and number, the CPU, seconds and nanoseconds, the event and its fields.
_BYTES, _TEXT = re.compile("[us]8"), re.compile(rb"[\t-\r -~]*(\0|\Z)")
_NO_NAME = "<...>"
_LINE = re.compile(r"(?:(\S+): )? *(.*)-(\d+) +\[(\d+)\].*? (\d+)\.(\d{9}): +(\w+): *(.*)")


class Event(NamedTuple):
    """An event as a reader shows it."""

    buffer: str
    time: int
    cpu: int
    tid: int
    name: str
    fields: tuple[tuple[str, object], ...]  # names and values: numbers without a sign, texts, or bytes


def read_ours(path: str, event: str, fields: Sequence[str], buffer: str = "") -> list[tuple[int, ...]]:
    """Return time, thread and FIELDS of every EVENT in BUFFER of the trace.dat PATH, sorted, by the collection's decoder."""
    rows: list[tuple[int, ...]] = []
    with open(path, "rb") as file:
        (trace,) = (trace for trace in read_traces(file) if trace.head.buffer == buffer)
        known = trace.formats[event]
        for block in gen_event_blocks(trace, {}):
            events = block.select(known.id)
            columns = [block.integers(events, known.field(field)).tolist() for field in fields]
            rows += zip(block.times[events].tolist(), block.tids[events].tolist(), *columns)
    return sorted(rows)


def list_our_events(path: Path | str) -> list[tuple[Event, set[str]]]:
    """Return all events of the trace.dat PATH, by the collection, each with the names of its thread at its time and at the trace's end."""
    found = []
    with open(path, "rb") as file:
        for trace in read_traces(file):
            by_number = {known.id: known for known in trace.formats.values()}
            manifest = add_tables({}, trace)
            histories = Histories(CapturePass(trace, manifest).run(), manifest)
            for block in gen_event_blocks(trace, manifest):
                columns = (block.times, block.cpus, block.tids, block.types)
                for index, (time, cpu, tid, number) in enumerate(zip(*(column.tolist() for column in columns))):
                    known = by_number[number]
                    fields = [
                        (field.name, _read_field(block, index, field))
                        for field in known.fields.values()
                        if not field.name.startswith("common_")
                    ]
                    names = {histories.find_name(tid, moment) for moment in (time, 1 << 62)}
                    found.append((Event(trace.head.buffer, time, cpu, tid, known.name, tuple(fields)), names))
    return found


def _is_text(field: Field) -> bool:
    return "char" in field.type and (field.is_array or field.is_dynamic)


def _read_field(block: EventBlock, index: int, field: Field) -> object:
    if _is_text(field):
        return block.text(index, field).strip()
    if field.is_array or field.size not in (1, 2, 4, 8):
        start = int(block.records[index]) + field.offset
        return _cut(block.data[start : start + field.size].tobytes(), field)
    return int(block.integers(np.array([index]), field)[0]) & ((1 << 8 * field.size) - 1)


def _cut(raw: bytes, field: Field) -> bytes:
    """Return as much of RAW, the content of FIELD, as trace-cmd always shows: it shows bytes as a text where they may be one."""
    is_text = _BYTES.search(field.type) is not None and _TEXT.match(raw) is not None
    return raw.partition(b"\0")[0] if is_text else raw


def list_their_events(path: Path | str) -> list[tuple[Event, str]]:
    """Return all events of the trace.dat PATH, each with the name of its thread, by trace-cmd."""
    with open(path, "rb") as file:
        formats = {known.name: known for known in read_traces(file)[0].formats.values()}
    found = []
    for line in list_lines(path):
        parts = _LINE.fullmatch(line)
        if parts:
            fields = [field for field in formats[parts[7]].fields.values() if not field.name.startswith("common_")]
            values = re.fullmatch(" ".join(rf"{field.name}=(.*?)" for field in fields), parts[8].strip(), re.S)
            assert values, line
            read = tuple((field.name, _parse_field(text, field)) for field, text in zip(fields, values.groups()))
            event = Event(parts[1] or "", int(parts[5] + parts[6]), int(parts[4]), int(parts[3]), parts[7], read)
            found.append((event, parts[2]))
    return found


def _parse_field(text: str, field: Field) -> object:
    text = text.strip()
    if _is_text(field):
        return text
    if text.startswith("ARRAY["):
        return _cut(bytes(int(part, 16) for part in text[6:-1].split(", ")), field)
    if field.is_array:
        return text.encode()
    return int(text, 16 if text.startswith("0x") else 10) & ((1 << 8 * field.size) - 1)


def check_shows_the_same(path: Path | str) -> set[str]:
    """Check that the collection reads time, CPU, thread, name and all fields of each event of PATH as trace-cmd shows them.

    Return the names of the events. trace-cmd knows the last name of a thread only, and of some none.
    """
    ours, theirs = list_our_events(path), list_their_events(path)

    def find_place(pair: tuple[Event, object]) -> tuple[object, ...]:
        return pair[0].buffer, pair[0].time, pair[0].cpu

    ours, theirs = sorted(ours, key=find_place), sorted(theirs, key=find_place)
    assert len(ours) == len(theirs) > 0
    for (event, names), (their_event, their_name) in zip(ours, theirs):
        assert event == their_event
        assert their_name in {*names, _NO_NAME}
    assert any(name != _NO_NAME for _event, name in theirs)
    return {event.name for event, _names in ours}


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
        if (found[1] or "", found[7]) == (buffer, event.partition(":")[2]):
            values = dict(re.findall(r"(\w+)=(-?\w+)", found[8]))
            rows.append((int(found[5] + found[6]), int(found[3]), *(_parse(values[field]) for field in fields)))
    return sorted(rows)


def _parse(text: str) -> int:
    number = int(text, 16 if text.startswith("0x") else 10)
    return number - (1 << 64) if number >= 1 << 63 else number


def check_reads_the_same(path: Path, dest: Path, tick_ns: int = 1) -> set[str]:
    """Check that the report of PATH has the same buffers, events and fields as trace-cmd's, and return the events of FIELDS in it.

    DEST is a folder for the report. TICK_NS is the number of nanoseconds that one nanosecond in trace-cmd's output stands for.
    """
    lines = list_lines(path)
    theirs = Counter((found[1] or "", found[7]) for found in map(_LINE.fullmatch, lines) if found)
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
