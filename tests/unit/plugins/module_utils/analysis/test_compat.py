# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a thread ran a 32-bit program."""

from __future__ import annotations

import io

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import gen_event_blocks
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


def find(events, *questions, first=(), last=()):
    """Return for each of QUESTIONS, a thread and a time, if that thread ran a 32-bit program then; it enters a call to show it."""
    trace = trace_of(sorted([*events, *((time, tid, "enter", 7) for tid, time in questions)], key=lambda one: one[0]))
    manifest = {
        "first_tasks": [make_task(tid, compat) for tid, compat in first],
        "tasks": [make_task(tid, compat) for tid, compat in last],
    }
    hints = CapturePass(trace, manifest).run().hints
    known = trace.formats["raw_syscalls:sys_enter"].id
    found = {}
    for block in gen_event_blocks(trace, manifest, hints=hints):
        for event in block.select(known).tolist():
            found[(int(block.tids[event]), int(block.times[event]))] = bool(block.compats[event])
    return [found[question] for question in questions]


def make_task(tid, compat):
    return {"tid": tid, "tgid": tid, "comm": "x", "container_tid": 1, "compat": compat}


def test_nothing_is_known():
    assert find([], (5, 100)) == [False]


def test_who_is_there_from_the_start_to_the_end():
    questions = [(tid, 100 + tid) for tid in (5, 6, 7, 8)]
    found = find([], *questions, first=[(5, True), (6, False)], last=[(5, True), (6, False), (7, True)])
    assert found == [True, False, True, False]


def test_who_is_another_at_the_end_became_so_by_an_exec():
    found = find([(100, 5, EXEC, 0)], (5, 99), (5, 101), last=[(5, True)])
    assert found == [False, True]


def test_an_exec_that_nothing_follows_is_of_a_32_bit_program():
    events = [
        (100, 5, EXEC, 0),
        (200, 6, EXEC, 0),
        (210, 6, EXIT_OF_EXEC, 0),
        (300, 5, EXEC, 0),
        (310, 5, EXIT_OF_EXEC, 0),
    ]
    questions = [(5, 99), (5, 101), (5, 299), (5, 311), (6, 250)]
    assert find(events, *questions, last=[(5, False), (6, False)]) == [False, True, True, False, False]


def test_a_child_is_what_its_parent_is():
    events = [
        *((100, 5, CLONE, 6), (200, 5, EXEC, 0), (201, 5, "enter", 1), (300, 5, CLONE, 7), (400, 7, CLONE, 8)),
        *((500, 7, EXEC, 0), (510, 7, EXIT_OF_EXEC, 0), (600, 7, CLONE, 9)),
    ]
    questions = [(7, 350), (6, 701), (7, 702), (8, 703), (9, 704)]
    assert find(events, *questions) == [True, False, False, True, False]


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
