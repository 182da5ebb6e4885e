# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files made to lead the compiled pass out of its tables, or to negative times; `make fuzz` looks for more of them."""

from __future__ import annotations

import io
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes, layouts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import make_state
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import parse_format
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

MANIFEST = {"syscalls": {"0": "read", "39": "getpid"}, "complete": True}


def trace_of(*events, **formats):
    made = [pages.pack_page(time, [pages.pack_event(record)]) for time, record in events]
    return Trace(io.BytesIO(pages.pack_trace([made], more_formats=formats)))


def describe(name, fields):
    """The text of a format; FIELDS has type and name in C, offset and size."""
    lines = "".join(f"\tfield:{what};\toffset:{offset};\tsize:{size};\tsigned:0;\n" for what, offset, size in fields)
    return f"name: {name}\nID: 999\n{lines}"


ENTER = [("int __syscall_nr", 8, 4), *((f"unsigned long a{number}", 16 + 8 * number, 8) for number in range(6))]
STATE = [
    *(("int oldstate", 8, 0), ("int newstate", 8, 0), ("u16 family", 8, 0), ("u16 protocol", 8, 0)),
    *(("u16 dport", 8, 0), ("u8 daddr[4]", 8, 0), ("u8 daddr_v6[16]", 8, 0)),
]
# What the pass reads of an event whatever the sizes are that its format tells.
READ = {
    "syscalls:sys_enter_read": (ENTER, 64),
    "task:task_newtask": ([("int pid", 8, 1), ("char comm[16]", 8, 1), ("u64 clone_flags", 8, 1)], 12),
    "task:task_rename": ([("int pid", 8, 1), ("char newcomm[16]", 8, 1)], 12),
    "sched:sched_process_exec": ([("__data_loc char[] filename", 20, 0), ("int pid", 8, 4), ("int old_pid", 8, 4)], 24),
    "sock:inet_sock_set_state": (STATE, 24),
    "signal:signal_deliver": ([("int sig", 8, 1), ("unsigned long sa_handler", 8, 1)], 12),
    "oom:mark_victim": ([("int pid", 8, 0)], 12),
    "io_uring:io_uring_submit_req": ([("u8 opcode", 8, 1), ("__data_loc char[] op_str", 12, 0)], 16),
    "io_uring:io_uring_create": ([("u32 flags", 8, 1)], 12),
}


@pytest.mark.parametrize("name", READ)
def test_of_an_event_no_byte_behind_its_record_is_read(name):
    fields, needed = READ[name]
    system, _colon, event = name.partition(":")
    formats = {name: parse_format(describe(event, fields), system)}
    state = make_state()
    layouts.fill_events(state, formats, 8, layouts.Selection(formats, {}, None))
    assert state.events[state.event_rows[999]][codes.PLACE] >= needed


def test_an_entry_without_its_arguments_is_no_call():
    text = pages.SYS_EXIT_EXECVE.replace("sys_exit_execve", "sys_enter_read").replace("877", "901")
    text = text.replace("field:long ret", "field:unsigned long fd").encode()
    calls = [
        list(gen_calls(trace_of((10, pages.make_record(901, 5, record)), syscalls=[text]), MANIFEST))
        for record in (struct.pack("i4xQ", 0, 3), struct.pack("i4x", 0))
    ]
    assert [len(found) for found in calls] == [1, 0]


@pytest.mark.parametrize("field", ["common_type;\toffset:0", "common_pid;\toffset:4"])
def test_fields_of_all_events_that_are_elsewhere_are_refused(field):
    data = pages.pack_trace([[pages.pack_page(1, [pages.pack_event(pages.make_enter(1, 1))])]])
    moved = data.replace(field.encode(), f"{field[:-1]}7".encode())
    assert moved != data
    with pytest.raises(TraceFileError, match="where no kernel has them"):
        summarize(Trace(io.BytesIO(moved)), MANIFEST)


@pytest.mark.parametrize("back", [10, 1 << 62, (1 << 64) - 5])
def test_a_clock_that_goes_back_makes_no_time_negative(back):
    events = ((10**9, pages.make_enter(5, 0)), (back, pages.make_exit(5, 0, 1)), (5, pages.make_enter(6, 39)))
    trace = trace_of(*events, (10**9, pages.make_exit(6, 39, 1)))
    table = summarize(trace, MANIFEST)
    assert all(row.total_ns >= 0 and row.p99_ns >= 0 for row in table.processes)
    assert all(call.duration_ns >= 0 for call in gen_calls(trace, MANIFEST))
    assert table.last_time >= table.first_time >= 0


def test_times_that_add_up_to_more_than_a_number_holds():
    events = []
    for tid in (5, 6, 7):
        events += [(1, pages.make_enter(tid, 39)), ((1 << 62) - 2, pages.make_exit(tid, 39, 1))] * 3
    (row,) = summarize(trace_of(*events), {**MANIFEST, "syscalls": {"39": "getpid"}}).programs
    assert row.total_ns > 1 << 62


def test_processors_without_pages_take_no_room():
    page = pages.pack_page(1, [pages.pack_event(pages.make_enter(1, 1))])
    trace = Trace(io.BytesIO(pages.pack_trace([*[[]] * 9000, [page]])))
    assert summarize(trace, MANIFEST).events == 1


def test_more_processors_than_there_are():
    page = pages.pack_page(1, [pages.pack_event(pages.make_enter(1, 1))])
    trace = Trace(io.BytesIO(pages.pack_trace([[page]] * 8193)))
    with pytest.raises(TraceFileError, match="8193 CPUs are not believable"):
        summarize(trace, MANIFEST)
