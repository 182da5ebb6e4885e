# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a thread ran a 32-bit program."""

from __future__ import annotations

import io

import numpy as np

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

CLONE, EXEC, EXIT_OF_EXEC = "clone", "exec", "exit of exec"


def trace_of(events):
    """A trace of EVENTS: (time, tid, kind, child's tid or record), a page for each."""
    makers = {
        CLONE: lambda tid, child: pages.make_newtask(tid, child, b"sh"),
        EXEC: lambda tid, _child: pages.make_exec(tid, b"/bin/x"),
        EXIT_OF_EXEC: lambda tid, _child: pages.make_exit_of_exec(tid),
        "enter": pages.make_enter,
        "exit": lambda tid, result: pages.make_exit(tid, *result),
    }
    made = [pages.pack_page(time, [pages.pack_event(makers[kind](tid, value))]) for time, tid, kind, value in events]
    return Trace(io.BytesIO(pages.pack_trace([made])))


def find(events, first=(), last=()):
    trace = trace_of(events)
    found = CompatTasks(
        [{"tid": tid, "compat": compat} for tid, compat in first],
        [{"tid": tid, "compat": compat} for tid, compat in last],
    )
    for batch in trace.gen_batches():
        found.feed(batch, trace.formats)
    found.finish()
    return found


def is_compat(found, tid, time):
    numbers = np.array([7])
    found.mark(np.array([tid]), np.array([time]), numbers)
    return {7: False, 7 + COMPAT: True}[int(numbers[0])]


def test_nothing_is_known():
    found = find([])
    assert found.intervals == {}


def test_who_is_there_from_the_start_to_the_end():
    found = find([], first=[(5, True), (6, False)], last=[(5, True), (6, False), (7, True)])
    assert [is_compat(found, tid, 100) for tid in (5, 6, 7, 8)] == [True, False, True, False]


def test_an_exec_that_nothing_follows_is_of_a_32_bit_program():
    events = [
        (100, 5, EXEC, 0),
        (200, 6, EXEC, 0),
        (210, 6, EXIT_OF_EXEC, 0),
        (300, 5, EXEC, 0),
        (310, 5, EXIT_OF_EXEC, 0),
    ]
    found = find(events, last=[(5, False), (6, False)])
    assert [is_compat(found, 5, time) for time in (99, 100, 299, 300)] == [False, True, True, False]
    assert not is_compat(found, 6, 250)


def test_a_child_is_what_its_parent_is():
    events = [
        *((100, 5, CLONE, 6), (200, 5, EXEC, 0), (300, 5, CLONE, 7), (400, 7, CLONE, 8)),
        *((500, 7, EXEC, 0), (510, 7, EXIT_OF_EXEC, 0), (600, 7, CLONE, 9)),
    ]
    found = find(events)
    assert [is_compat(found, tid, 700) for tid in (6, 7, 8, 9)] == [False, False, True, False]
    assert is_compat(found, 7, 350)


def test_calls_are_named_by_their_architecture():
    events = [
        *((100, 5, "enter", 59), (110, 5, EXEC, 0), (120, 5, "exit", (11, 0))),  # execve of a 32-bit program
        *((200, 5, "enter", 5), (210, 5, "exit", (5, -2))),
        *((300, 6, "enter", 5), (310, 6, "exit", (5, 0))),
    ]
    manifest = {
        "syscalls": {"5": "fstat", "59": "execve", "11": "munmap"},
        "compat_syscalls": {"5": "open", "11": "execve"},
    }
    table = summarize(trace_of(events), manifest)
    rows = [(row.pids, row.syscall, row.compat, row.calls, row.errors, row.measured) for row in table.processes]
    assert sorted(rows) == [
        ([5], "execve", False, 1, {}, 1),
        ([5], "open", True, 1, {"ENOENT": 1}, 1),
        ([6], "fstat", False, 1, {}, 1),
    ]


def test_calls_that_only_share_a_number_with_those_asked_for_are_left_out():
    events = [
        *((110, 5, EXEC, 0), (200, 5, "enter", 5), (210, 5, "exit", (5, 0)), (220, 5, "exit", (2, 0))),
        *((300, 6, "enter", 5), (310, 6, "exit", (5, 0)), (320, 6, "exit", (2, 0))),
    ]
    manifest = {
        "syscalls": {"2": "open", "5": "fstat"},
        "compat_syscalls": {"2": "fork", "5": "open"},
        "specification": {"syscalls": {"native": [2], "compat": [5]}},
    }
    table = summarize(trace_of(events), manifest)
    assert sorted((row.pids, row.syscall, row.calls) for row in table.processes) == [([5], "open", 1), ([6], "open", 1)]
    assert table.counts["raw_syscalls:sys_exit"] == 4


def test_short_calls_are_left_out():
    events = [
        *((100, 5, "enter", 1), (199, 5, "exit", (1, 0)), (200, 5, "enter", 1), (300, 5, "exit", (1, 0))),
        (400, 5, "enter", 1),
    ]
    (row,) = summarize(trace_of(events), {}, min_latency_ns=100).processes
    assert (row.calls, row.total_ns) == (1, 100)
