# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Analyse one damaged capture as ftrace_report does, and check that the answer is a report or a clear error."""

from __future__ import annotations

import io
import json
import os

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import calls, capture_summary, decode, events
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import capture_pass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.search import Search
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_files import ReportWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat, trace_dat_reader
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

_MIN_EVENT = 12  # bytes: a header and a record with type and thread
_GROWTH = 1 << 26  # bytes of pages that a small compressed file may hold
_MAX_SLOT, _BEYOND = capture_pass._MAX_SLOT, capture_pass._BEYOND


class Fault(Exception):
    """The analysis has given an answer that must not be."""


def check(folder, data, manifest, number):
    """Check the capture of DATA and MANIFEST, two bytes objects, in FOLDER; NUMBER chooses among the ways to look. Raises Fault.

    Return True if there was a report.
    """
    path = os.path.join(folder, "x.dat")
    for name, content in ((path, data), (os.path.join(folder, "x.json"), manifest)):
        if content is not None:
            with open(name, "wb") as file:
                file.write(content)
        elif os.path.exists(name):
            os.unlink(name)
    # Where a CPU has room for one page only, what lies behind the last one is outside, so that checks of bounds notice it.
    capture_pass._MAX_SLOT, capture_pass._BEYOND = (_MAX_SLOT, _BEYOND) if number % 3 == 0 else (512, 0)
    search = Search()
    skipped = []
    least = 5 * 10**5 if number % 8 == 1 else 0
    if number % 8 == 2:
        try:
            entries = list(capture_summary.gen_source(path, skipped, least, search))
        except FleetError as error:
            _check_error(str(error))
            entries = []
    else:
        entries = list(capture_summary.gen_captures([path], folder, skipped, least, search))
    for entry in skipped:
        _check_error(entry["reason"])
        _check_error(entry["next_step"])
    _check_page(folder, entries, skipped, search, ["text"] if number % 4 else ["json", "text"])
    if search.problems:
        raise Fault(f"a rule fails: {search.problems}")
    most = _count_most(data)
    for entry in entries:
        _check_entry(entry, most, manifest or b"")
    if number % 4 == 3:
        _check_stream(data, manifest, entries)
    return bool(entries)


def _count_most(data):
    """Return how many events, or calls that began before, the file can hold at most."""
    is_packed = data[10:12] == b"7\0" and b"none\0" not in data[:64]
    return (_GROWTH if is_packed else len(data)) // _MIN_EVENT


def _check_error(text):
    if not text or not text.isprintable() or len(text) > 4096:
        raise Fault(f"an error is no printable line: {text!r}")
    if "it is damaged (" in text:
        raise Fault(f"an exception that nobody expected: {text}")


def _check_page(folder, entries, skipped, search, formats):
    """Check what people and programs get to see."""
    with ReportWriter(os.path.join(folder, "report"), formats, check_mode=False) as writer:
        for entry in entries:
            writer.add(entry)
        writer.finish(skipped, search)
        texts = list(writer.lines)
        for name, file in writer.files.items():
            with open(file, encoding="utf-8") as opened:
                if name == "text":
                    texts += opened.read().split("\n")
                else:
                    json.load(opened, parse_constant=_refuse)
    for line in texts:
        if not line.isprintable():
            raise Fault(f"a line is not printable: {line!r}")


def _refuse(constant):
    raise Fault(f"{constant} is no JSON")


def _check_entry(entry, most, manifest):
    events = entry["events"]
    if not 0 <= events <= most:
        raise Fault(f"{events} events in a file that holds {most} at most")
    if sum(entry["event_counts"].values()) != events or min(entry["event_counts"].values(), default=1) < 1:
        raise Fault(f"{events} events, and by name {entry['event_counts']}")
    if entry["duration_s"] < 0:
        raise Fault(f"a trace of {entry['duration_s']} s")
    counted = {**entry["functions"], **entry["io_uring"]["requests"]}
    if min(counted.values(), default=0) < 0 or max(counted.values(), default=0) > events:
        raise Fault(f"{events} events, and counted {counted}")
    most_calls = events + 2048 if events else 0  # the calls that processes were in may be as many as a table may hold
    for row in (*entry["programs"], *entry["processes"]):
        inner = [row["errors"], row["interrupted"], row["denied"], *(use["errors"] for use in row["paths"])]
        counts = [row[name] for name in ("calls", "measured", "unfinished", "continued", "failures", "process_count")]
        counts += [count for table in inner for count in table.values()]
        if min(counts) < 0 or max(counts) > (most_calls or 2048) or row["measured"] > row["calls"]:
            raise Fault(f"{events} events, and counts {counts} in {row}")
        if row["total_ns"] < 0 or (row["p99_ns"] or 0) < 0:
            raise Fault(f"times below zero in {row}")


def _check_stream(data, manifest, entries):
    """Check the stream of calls, and the events against a slow decoder."""
    try:
        known = capture_summary.read_manifest("/nonexistent") if manifest is None else json.loads(manifest)
    except (ValueError, RecursionError):
        known = {}
    if not capture_summary.is_sound(known):
        known = {}
    file = io.BytesIO(data)
    try:
        traces = decode.read_traces(file)
        for place, trace in enumerate(traces):
            about = capture_summary.add_tables(known, trace)
            _check_calls(calls.gen_calls(trace, about))
            found = sum(len(block.times) for block in events.gen_event_blocks(trace, about))
            if entries and found != entries[place]["events"]:
                raise Fault(f"{entries[place]['events']} events, and {found} in the stream of events")
            slowly = _count_slowly(file, trace)
            if slowly not in (None, found):
                raise Fault(f"{found} events, and by the slow decoder {slowly}")
    except trace_dat.TraceFileError as error:
        _check_error(str(error))


def _count_slowly(file, trace):
    """Return the number of events of TRACE, which FILE holds, by a decoder that takes one at a time; None where fields are at other places."""
    head = trace.head
    machine = pages.Machine(head.order, head.word_size, head.page_size)
    commit, content = capture_pass._COMMIT.search(head.header_page), capture_pass._DATA.search(head.header_page)
    if not commit or not content or int(content[1]) != machine.header_size:
        return None
    count = 0
    for place in head.cpus:
        for block in trace_dat_reader.gen_page_blocks(file, head, place):
            starts = range(0, len(block) - head.page_size + 1, head.page_size)
            count += sum(len(machine.decode_slowly(block[start : start + head.page_size])) for start in starts)
    return count


def _check_calls(stream):
    for call in stream:
        if call.duration_ns is not None and call.duration_ns < 0:
            raise Fault(f"a call of less than no time: {call}")
        if call.tid < -1 << 31 or not isinstance(call.program, str):
            raise Fault(f"a strange call: {call}")
