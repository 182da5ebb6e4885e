# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From events of entry and exit to calls, and from calls to a table."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import name_errno
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

NAMES = {"0": "read", "15": "rt_sigreturn", "56": "clone", "59": "execve", "257": "openat"}


def pair(enters, exits):
    """Calls as (thread, number, time, duration or None, result or None) of ENTERS (thread, time, number) and EXITS, by thread."""
    events = [(time, 0, pages.make_enter(tid, number)) for tid, time, number in enters]
    events += [(time, 1, pages.make_exit(tid, number, result)) for tid, time, number, result in exits]
    made = [pages.pack_page(time, [pages.pack_event(record)]) for time, _kind, record in sorted(events)]
    calls = gen_calls(Trace(io.BytesIO(pages.pack_trace([made]))), {"syscalls": NAMES})
    rows = [
        (call.tid, call.number, call.start_ns + (call.duration_ns or 0), call.duration_ns, call.result)
        for call in calls
    ]
    return sorted(rows, key=lambda row: (row[0], row[2]))


def test_nothing():
    assert pair([], []) == []


def test_an_entry_and_its_exit():
    assert pair([(5, 100, 0)], [(5, 130, 0, 42)]) == [(5, 0, 130, 30, 42)]


def test_calls_of_one_thread_in_turn():
    enters = [(5, 100, 0), (5, 200, 257), (5, 300, 0)]
    exits = [(5, 110, 0, 1), (5, 220, 257, -2), (5, 330, 0, 3)]
    assert pair(enters, exits) == [(5, 0, 110, 10, 1), (5, 257, 220, 20, -2), (5, 0, 330, 30, 3)]


def test_the_order_of_arrival_does_not_matter():
    enters = [(5, 300, 0), (5, 100, 0), (5, 200, 257)]
    exits = [(5, 220, 257, -2), (5, 330, 0, 3), (5, 110, 0, 1)]
    assert pair(enters, exits) == [(5, 0, 110, 10, 1), (5, 257, 220, 20, -2), (5, 0, 330, 30, 3)]


def test_threads_do_not_mix():
    enters = [(5, 100, 0), (6, 101, 0), (7, 102, 0)]
    exits = [(6, 103, 0, 6), (5, 104, 0, 5)]
    assert pair(enters, exits) == [(5, 0, 104, 4, 5), (6, 0, 103, 2, 6), (7, 0, 102, None, None)]


def test_an_exit_without_its_entry_is_a_call_without_a_time():
    assert pair([(5, 200, 0)], [(5, 100, 257, -2), (5, 210, 0, 1)]) == [(5, 257, 100, None, -2), (5, 0, 210, 10, 1)]


def test_an_entry_without_its_exit_is_a_call_without_a_result():
    assert pair([(5, 100, 0), (5, 200, 257)], [(5, 220, 257, 3)]) == [(5, 0, 100, None, None), (5, 257, 220, 20, 3)]


def test_an_exit_of_another_call_is_no_partner():
    # Between them events were lost.
    assert pair([(5, 100, 0)], [(5, 200, 257, -2)]) == [(5, 0, 100, None, None), (5, 257, 200, None, -2)]


def test_the_last_entry_of_one_thread_and_the_first_exit_of_the_next_are_no_pair():
    assert pair([(5, 100, 0)], [(6, 200, 0, 1)]) == [(5, 0, 100, None, None), (6, 0, 200, None, 1)]


def test_two_exits_in_a_row():
    assert pair([(5, 100, 0)], [(5, 110, 0, 1), (5, 120, 0, 2)]) == [(5, 0, 110, 10, 1), (5, 0, 120, None, 2)]


def test_the_return_from_a_signal_is_a_call():
    # Its exit bears the number -1 and what the interrupted code had in the register.
    assert pair([(5, 100, 15)], [(5, 105, -1, -1234)]) == [(5, 15, 105, 5, -1234)]


def test_a_return_from_a_signal_whose_entry_is_lost_is_no_call():
    assert pair([], [(5, 105, -1, -1234)]) == []
    assert pair([(5, 200, 0)], [(5, 105, -1, -4), (5, 210, 0, 1)]) == [(5, 0, 210, 10, 1)]


def test_an_entry_and_an_exit_of_the_same_time():
    assert pair([(5, 100, 0)], [(5, 100, 0, 7)]) == [(5, 0, 100, 0, 7)]


def test_no_event_is_counted_twice():
    rng = np.random.default_rng(5)
    for _round in range(200):
        count = int(rng.integers(1, 40))
        events = [
            (int(tid), time, int(number))
            for time, (tid, number) in enumerate(zip(rng.integers(1, 4, count), rng.integers(0, 3, count)))
        ]
        is_exit = rng.integers(0, 2, count).astype(bool)
        enters = [event for event, one in zip(events, is_exit) if not one]
        exits = [(*event, 1) for event, one in zip(events, is_exit) if one]
        # The same by hand: a thread's open call ends with its next event.
        expected, waiting = [], {}
        for (tid, time, number), one in zip(events, is_exit):
            begun = waiting.pop(tid, None)
            if one and begun is not None and begun[1] == number:
                expected.append((tid, number, time, time - begun[0], 1))
                continue
            if begun is not None:
                expected.append((tid, begun[1], begun[0], None, None))
            if one:
                expected.append((tid, number, time, None, 1))
            else:
                waiting[tid] = (time, number)
        expected += [(tid, number, time, None, None) for tid, (time, number) in waiting.items()]
        assert sorted(pair(enters, exits), key=str) == sorted(expected, key=str)


def test_names_of_errors():
    assert [name_errno(number) for number in (2, 11, 512, 514, 4000)] == [
        "ENOENT",
        "EAGAIN",
        "ERESTARTSYS",
        "ERESTARTNOHAND",
        "errno 4000",
    ]


def table_of(events, manifest=None, cmdlines=b""):
    """The table of EVENTS, each (time, record), spread over two CPUs."""
    cpus = [[], []]
    for index, (time, record) in enumerate(sorted(events, key=lambda event: event[0])):
        cpus[index % 3 == 0].append(pages.pack_page(time, [pages.pack_event(record)]))
    trace = Trace(io.BytesIO(pages.pack_trace(cpus, cmdlines=cmdlines)))
    return summarize(trace, {"syscalls": NAMES} if manifest is None else manifest)


def test_a_table():
    events = [
        (1000, pages.make_enter(5, 257)),
        (1200, pages.make_exit(5, 257, -2)),
        (1300, pages.make_enter(5, 257)),
        (1400, pages.make_exit(5, 257, -13)),
        (1500, pages.make_enter(6, 257)),
        (1600, pages.make_exit(6, 257, -2)),
        (2000, pages.make_enter(5, 0)),
        (2050, pages.make_exit(5, 0, 100)),
        (3000, pages.make_enter(5, 0)),
    ]
    manifest = {
        "syscalls": NAMES,
        "tasks": [
            {"tid": 5, "tgid": 5, "comm": "web", "container_tid": 1},
            {"tid": 6, "tgid": 6, "comm": "web", "container_tid": 7},
        ],
    }
    table = table_of(events, manifest)
    assert (table.events, table.first_time, table.last_time) == (9, 1000, 3000)
    rows = [(row.pids, row.container_pid, row.syscall, row.calls, row.errors) for row in table.processes]
    assert rows == [
        ([5], 1, "openat", 2, {"ENOENT": 1, "EACCES": 1}),
        ([6], 7, "openat", 1, {"ENOENT": 1}),
        ([5], 1, "read", 2, {}),
    ]
    reading = table.processes[2]
    assert (reading.measured, reading.total_ns, reading.p99_ns, reading.failures) == (1, 50, 50, 0)
    rows = [(row.name, row.pids, row.container_pid, row.syscall, row.calls, row.errors) for row in table.programs]
    assert rows == [
        ("web", [5, 6], None, "openat", 3, {"ENOENT": 2, "EACCES": 1}),
        ("web", [5], 1, "read", 2, {}),
    ]
    assert table.programs[0].total_ns == 400


def test_a_call_that_waits_over_a_fetch_is_counted_once_when_captures_are_added_up():
    task = {"syscalls": NAMES, "tasks": [{"tid": 5, "tgid": 5, "comm": "web", "container_tid": 1}]}
    first = table_of(
        [(100, pages.make_enter(5, 0)), (200, pages.make_exit(5, 0, 1)), (300, pages.make_enter(5, 0))], task
    )
    second = table_of([(400, pages.make_exit(5, 0, 1))], task)
    (row,), (later,) = first.processes, second.processes
    assert (row.calls, row.unfinished, row.continued) == (2, 1, 0)
    assert (later.calls, later.unfinished, later.continued) == (1, 0, 1)
    # Where no beginnings are recorded an end is a call.
    only_ends = {**task, "specification": {"errors_only": True}}
    assert table_of([(400, pages.make_exit(5, 0, -2))], only_ends).processes[0].continued == 0


def test_threads_of_a_process_are_one_row():
    events = [
        (100, pages.make_newtask(5, 6, b"web", pages.CLONE_THREAD)),
        (200, pages.make_enter(5, 0)),
        (300, pages.make_exit(5, 0, 1)),
        (400, pages.make_enter(6, 0)),
        (500, pages.make_exit(6, 0, 1)),
    ]
    table = table_of(events, cmdlines=b"5 web\n")
    assert [(row.name, row.pids, row.calls) for row in table.processes] == [("web", [5], 2)]


def test_a_process_that_becomes_another_program_gives_a_row_for_each():
    events = [
        (100, pages.make_enter(5, 0)),
        (110, pages.make_exit(5, 0, 1)),
        (200, pages.make_rename(5, b"sh", b"ls")),
        (300, pages.make_enter(5, 0)),
        (310, pages.make_exit(5, 0, 1)),
        (320, pages.make_enter(5, 0)),
        (330, pages.make_exit(5, 0, 1)),
    ]
    table = table_of(events, cmdlines=b"5 ls\n")
    assert [(row.name, row.calls) for row in table.programs] == [("ls", 2), ("sh", 1)]


def test_results_that_are_no_errors():
    events = [
        (time, pages.make_exit(5, 0, result)) for time, result in enumerate([-4095, -4096, -(1 << 40), 0, 1 << 40])
    ]
    (row,) = table_of(events).processes
    assert row.calls == 5
    assert row.errors == {"errno 4095": 1}
    assert (row.measured, row.total_ns, row.p99_ns) == (0, 0, None)


def test_the_birth_of_a_child_is_no_call_of_it():
    events = [
        (100, pages.make_enter(5, 56)),
        (110, pages.make_exit(6, 56, 0)),
        (120, pages.make_exit(5, 56, 6)),
    ]
    table = table_of(events)
    assert [(row.pids, row.syscall, row.calls, row.measured) for row in table.processes] == [([5], "clone", 1, 1)]


def test_a_call_without_a_name_keeps_its_number():
    (row,) = table_of([(1, pages.make_exit(5, 999, -1))], {}).processes
    assert (row.name, row.syscall, row.errors) == ("?", "syscall_0x3e7", {"EPERM": 1})


def test_an_empty_trace():
    table = summarize(Trace(io.BytesIO(pages.pack_trace([[]]))), {})
    assert (table.processes, table.programs, table.events, table.first_time, table.last_time) == ([], [], 0, 0, 0)


def test_a_trace_of_other_events_only():
    table = table_of([(100, pages.make_record(77, 5, b"x" * 8)), (200, pages.make_record(78, 5))])
    assert (table.events, table.first_time, table.last_time, table.processes) == (2, 100, 200, [])


@pytest.mark.parametrize(
    "field", [b"long id;", b"long ret;", b"u64 clone_flags;", b"char newcomm[16];", b"char comm[16];"]
)
def test_a_trace_whose_formats_lack_a_field_is_refused(field):
    records = [
        pages.make_newtask(1, 5, b"x"),
        pages.make_rename(5, b"x", b"y"),
        pages.make_enter(5, 0),
        pages.make_exit(5, 0, 1),
    ]
    page = pages.pack_page(0, [pages.pack_event(record) for record in records])
    data = pages.pack_trace([[page]])
    assert field in data
    with pytest.raises(TraceFileError):
        summarize(Trace(io.BytesIO(data.replace(field, b"?" * len(field)))), {})
