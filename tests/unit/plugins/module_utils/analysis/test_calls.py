# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls from the kernel's entries and exits: denied calls, errors that are none, threads that exec, events of single calls."""

from __future__ import annotations

import io
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import read_names
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.ring_pages import MISSED_EVENTS
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

NAMES = {
    "0": "read",
    "15": "rt_sigreturn",
    "39": "getpid",
    "56": "clone",
    "59": "execve",
    "72": "fcntl",
    "100": "times",
}
MANIFEST = {"syscalls": NAMES, "arch": "x86_64", "complete": True}
EVERYTHING = {"native": [], "compat": []}


def make_own_format(name, number, *fields):
    """The format of an event of one call, with FIELDS of eight bytes behind the call's number."""
    text = pages.SYS_EXIT_EXECVE.replace("sys_exit_execve", name).replace("877", str(number))
    result = "\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n"
    lines = (
        f"\tfield:long {field};\toffset:{16 + 8 * index};\tsize:8;\tsigned:1;\n" for index, field in enumerate(fields)
    )
    return text.replace(result, "".join(lines)).encode()


def make_own(event, tid, number, *values):
    return pages.make_record(event, tid, struct.pack(f"i4x{len(values)}q", number, *values))


def make_enter_with(tid, number, *arguments):
    return pages.make_record(443, tid, struct.pack("q6q", number, *arguments, *[0] * (6 - len(arguments))))


def trace_of(events, more_formats=None, lost_before=()):
    """A trace of EVENTS, each (time, record), of one CPU; before the events at the times LOST_BEFORE others were lost."""
    made = []
    for time, record in events:
        packed = pages.pack_event(record)
        missed = MISSED_EVENTS if time in lost_before else 0
        made.append(pages.pack_page(time, [packed], commit=len(packed) | missed))
    return Trace(io.BytesIO(pages.pack_trace([made], more_formats=more_formats)))


def read(events, more_formats=None, lost_before=(), **manifest):
    return read_trace(trace_of(events, more_formats, lost_before), **manifest)


def read_trace(trace, **manifest):
    """The calls of TRACE, sorted by thread, and then by the times of their ends, which is the order they come in."""
    return sorted(gen_calls(trace, {**MANIFEST, **manifest}), key=lambda call: call.tid)


def list_calls(calls):
    """Thread, name, result and what is to be said of each call."""
    names = ("denied", "continued", "unfinished")
    return [
        (call.tid, call.call, call.result or 0, " ".join(name for name in names if getattr(call, name)))
        for call in calls
    ]


def list_errors(calls):
    return [call.error or "" for call in calls]


BEFORE = [(10, pages.make_enter(5, 0)), (20, pages.make_exit(5, 0, 1))]


def test_an_exit_without_an_entry_in_the_middle_was_denied():
    reading = read(
        [*BEFORE, (30, pages.make_exit(5, 39, -1)), (40, pages.make_exit(5, 0, 0)), (50, pages.make_exit(5, 39, 39))]
    )
    assert list_calls(reading)[1:] == [
        (5, "getpid", -1, "denied"),
        (5, "read", 0, "denied"),
        (5, "getpid", 39, "denied"),
    ]
    assert [call.trapped for call in reading] == [False, False, True, True]
    assert list_errors(reading) == ["", "EPERM", "", ""]


def test_a_denied_call_takes_no_entry_of_another():
    reading = read(
        [*BEFORE, (30, pages.make_exit(5, 39, -1)), (40, pages.make_enter(5, 39)), (50, pages.make_exit(5, 39, 7))]
    )
    assert list_calls(reading)[1:] == [(5, "getpid", -1, "denied"), (5, "getpid", 7, "")]


def test_behind_an_entry_without_its_exit_something_is_missing():
    # Busybox's shell starts an applet that is left out until it has named itself.
    events = [*BEFORE, (30, pages.make_enter(5, 59)), (40, pages.make_exit(5, 39, 0)), (50, pages.make_exit(5, 39, -1))]
    said = [(name, said) for _tid, name, _result, said in list_calls(read(events))]
    assert said[1:] == [("execve", "unfinished"), ("getpid", "continued"), ("getpid", "denied")]


def test_what_was_under_way_when_the_trace_began_was_not_denied():
    reading = read([(5, pages.make_exit(6, 0, -4)), *BEFORE])
    assert list_calls(reading) == [(5, "read", 1, ""), (6, "read", -4, "continued")]


def test_of_a_thread_that_was_born_in_the_trace_the_first_call_may_be_denied():
    born = [
        *BEFORE,
        (30, pages.make_newtask(5, 6, b"x")),
        (40, pages.make_exit(6, 56, 0)),
        (50, pages.make_exit(6, 39, -1)),
    ]
    assert list_calls(read(born))[1:] == [(6, "getpid", -1, "denied")]


def test_of_a_program_that_began_in_the_trace_the_first_call_may_be_denied():
    # As of what docker exec starts: before that it was the runtime's, and is left out.
    begun = [(5, pages.make_enter(9, 0)), (10, pages.make_exec(5, b"/bin/x")), (11, pages.make_exit_of_exec(5))]
    reading = read([*begun, (12, pages.make_exit(5, 59, 0)), (50, pages.make_exit(5, 39, -1))])
    assert list_calls(reading)[:-1] == [(5, "execve", 0, "continued"), (5, "getpid", -1, "denied")]
    reading = read([*begun, (50, pages.make_exit(5, 39, -1))], specification={"syscalls": EVERYTHING})
    assert list_calls(reading)[:-1] == [(5, "getpid", -1, "denied")]


def test_a_number_that_is_used_again_after_its_thread_left():
    events = [
        *BEFORE,
        (30, pages.make_enter(5, 59)),
        (40, pages.make_newtask(1, 5, b"x")),
        (50, pages.make_exit(5, 39, -1)),
    ]
    assert list_calls(read(events))[1:] == [(5, "execve", 0, "unfinished"), (5, "getpid", -1, "denied")]


@pytest.mark.parametrize(
    "reason",
    [
        {"lost_before": [30]},
        # The other end is recorded for no call.
        {"specification": {"syscalls": EVERYTHING, "errors_only": True}},
        # The trace was stopped, or recorded other calls, between the two.
        {"time": {"changed": {"real_time_ns": 1025, "offset_ns": 1000}}},
    ],
)
def test_where_an_entry_may_be_missing_nothing_is_denied(reason):
    events = [*BEFORE, (30, pages.make_exit(5, 39, -1)), (40, pages.make_enter(5, 0)), (50, pages.make_exit(5, 0, 1))]
    assert "denied" in [row[3] for row in list_calls(read(events))]
    assert "denied" not in [row[3] for row in list_calls(read(events, **reason))]


def test_a_gap_hides_only_what_is_beside_it():
    events = [*BEFORE, (30, pages.make_enter(5, 0)), (40, pages.make_exit(5, 0, 1)), (50, pages.make_exit(5, 39, -1))]
    assert list_calls(read(events, lost_before=[30]))[-1] == (5, "getpid", -1, "denied")
    assert list_calls(read(events, lost_before=[50]))[-1] == (5, "getpid", -1, "continued")


def test_of_an_incomplete_trace_the_begin_is_a_gap():
    early = (
        pages.pack_page(10, [pages.pack_event(pages.make_enter(5, 0))]),
        pages.pack_page(20, [pages.pack_event(pages.make_exit(5, 0, 1))]),
    )
    late = [pages.pack_page(30, [pages.pack_event(pages.make_exit(5, 39, -1))])]
    for complete, said in ((True, "denied"), (False, "continued")):
        trace = Trace(io.BytesIO(pages.pack_trace([early, late])))
        assert list_calls(read_trace(trace, complete=complete))[-1] == (5, "getpid", -1, said)


def test_an_owner_below_zero_is_no_error():
    get_owner = [(30, make_enter_with(5, 72, 3, 9)), (40, pages.make_exit(5, 72, -1))]
    bad = [(50, make_enter_with(5, 72, 3, 9)), (60, pages.make_exit(5, 72, -9))]
    other = [(70, make_enter_with(5, 72, 3, 8)), (80, pages.make_exit(5, 72, -3))]
    assert list_errors(read([*get_owner, *bad, *other])) == ["", "EBADF", "ESRCH"]


def test_ticks_below_zero_are_no_error():
    events = [
        (10, pages.make_enter(5, 100)),
        (20, pages.make_exit(5, 100, -5)),
        (30, pages.make_enter(5, 100)),
        (40, pages.make_exit(5, 100, -14)),
    ]
    assert list_errors(read(events)) == ["", "EFAULT"]


def test_the_registers_that_a_return_from_a_handler_brings_back_are_no_error():
    reading = read([(10, pages.make_enter(5, 15)), (20, pages.make_exit(5, -1, -4))])
    assert (list_calls(reading), list_errors(reading)) == ([(5, "rt_sigreturn", -4, "")], [""])


def test_a_program_may_call_any_number():
    events = []
    numbers = (65536 + 56, 0x40000000 + 39, 0x40000000 + 520, 1000, -1, -5)
    for place, number in enumerate(numbers):
        events += [(10 * place + 1, pages.make_enter(5, number)), (10 * place + 2, pages.make_exit(5, number, -38))]
    assert [row[1:] for row in list_calls(read(events))] == [
        ("syscall_0x10038", -38, ""),
        ("getpid (x32)", -38, ""),
        ("syscall_0x40000208", -38, ""),
        ("syscall_0x3e8", -38, ""),
        ("syscall_0xffffffffffffffff", -38, ""),
        ("syscall_0xfffffffffffffffb", -38, ""),
    ]


def test_other_machines_have_no_x32():
    assert 0x40000000 + 39 not in read_names({"syscalls": NAMES, "arch": "aarch64"})


def test_a_thread_that_execs_ends_its_call_as_the_process():
    moved = pages.make_record(365, 5, struct.pack("HHii", 20, 4, 5, 6) + b"new\0")
    events = [
        (10, pages.make_enter(6, 59)),
        (15, pages.make_enter(5, 0)),
        (20, pages.make_exit(5, 0, -512)),
        (30, moved),
        (39, pages.make_exit_of_exec(5)),
        (40, pages.make_exit(5, 59, 0)),
        (50, pages.make_enter(5, 39)),
        (60, pages.make_exit(5, 39, 5)),
    ]
    reading = read(events)
    assert list_calls(reading) == [(5, "read", -512, ""), (5, "execve", 0, ""), (5, "getpid", 5, "")]
    assert [call.duration_ns for call in reading] == [5, 29, 10]  # the first of two events for one end counts


ENTER_READ, EXIT_READ = make_own_format("sys_enter_read", 901, "fd"), make_own_format("sys_exit_read", 902, "ret")
OWN = {"syscalls": [ENTER_READ, EXIT_READ, pages.SYS_EXIT_EXECVE.encode()]}
ONE_READ = [(10, make_own(901, 5, 0, 3)), (20, make_own(902, 5, 0, -9))]
ASKED = ["syscalls:sys_enter_read", "syscalls:sys_exit_read"]


def test_events_of_single_calls_are_calls():
    specification = {"syscalls": None, "events": ASKED}
    reading = read([*ONE_READ, (30, pages.make_exit_of_exec(5))], OWN, specification=specification)
    assert (list_calls(reading), list_errors(reading)) == ([(5, "read", -9, "")], ["EBADF"])
    assert [call.duration_ns for call in reading] == [10]


def test_events_that_nobody_asked_for_are_no_calls():
    assert list_calls(read(ONE_READ, OWN, specification={"syscalls": None, "events": []})) == []


def test_of_calls_whose_one_end_is_recorded_nothing_is_missing():
    exits = read([ONE_READ[1]], OWN, specification={"syscalls": None, "events": ASKED[1:]})
    enters = read([ONE_READ[0]], OWN, specification={"syscalls": None, "events": ASKED[:1]})
    assert (list_calls(exits), list_calls(enters)) == ([(5, "read", -9, "")], [(5, "read", 0, "")])


def test_what_two_events_tell_is_one_call():
    both = [
        (10, pages.make_enter(5, 0)),
        (11, make_own(901, 5, 0, 3)),
        (19, make_own(902, 5, 0, -9)),
        (20, pages.make_exit(5, 0, -9)),
        # Denied: two exits without an entry.
        (30, pages.make_exit(5, 0, -1)),
        (31, make_own(902, 5, 0, -1)),
    ]
    reading = read(both, OWN, specification={"syscalls": EVERYTHING, "events": ASKED})
    assert list_calls(reading) == [(5, "read", -9, ""), (5, "read", -1, "denied")]


def test_beside_selected_calls_those_of_events_stay():
    events = [*ONE_READ, (30, pages.make_enter(5, 39)), (40, pages.make_exit(5, 39, 5)), (50, pages.make_enter(5, 72))]
    reading = read(events, OWN, specification={"syscalls": {"native": [39], "compat": [72]}, "events": ASKED})
    assert [row[1] for row in list_calls(reading)] == ["read", "getpid"]


RING_FORMATS = {
    "io_uring": [
        pages.make_path_format("io_uring_submit_req", 950, "op_str").replace(
            b"unsigned long __probe_ip;\toffset:8;\tsize:8;", b"u8 opcode;\toffset:8;\tsize:1;"
        ),
        pages.make_path_format("io_uring_create", 951).replace(
            b"unsigned long __probe_ip;\toffset:8;\tsize:8;", b"u32 flags;\toffset:8;\tsize:4;"
        ),
    ]
}


def make_request(code, name):
    place = 8 + 8 + 4 + 4
    return pages.make_record(950, 5, struct.pack("B7xHH", code, place - 4, len(name) + 1) + name + b"\0")


def test_the_name_of_a_request_may_count_from_its_field():
    relative = {"io_uring": [text.replace(b"__data_loc", b"__rel_loc") for text in RING_FORMATS["io_uring"]]}
    made = [(10, pages.make_record(950, 5, struct.pack("B7xHH", 18, 0, 7) + b"OPENAT\0"))]
    assert summarize(trace_of(made, relative), MANIFEST).requests == {"OPENAT": 1}


def test_requests_by_io_uring_are_counted():
    events = [(10, make_request(18, b"OPENAT")), (20, make_request(0, b"NOP")), (30, make_request(18, b"OPENAT"))]
    table = summarize(trace_of(events, RING_FORMATS), MANIFEST)
    assert (table.requests, table.has_polled) == ({"OPENAT": 2, "NOP": 1}, False)
    for flags, polled in ((1, False), (2 | 4, True)):
        made = [(10, pages.make_record(951, 5, struct.pack("I4x", flags)))]
        assert summarize(trace_of(made, RING_FORMATS), MANIFEST).has_polled is polled
