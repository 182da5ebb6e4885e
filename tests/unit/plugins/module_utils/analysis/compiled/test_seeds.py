# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass begins with what was known before the first event: first tasks, names, calls under way, and descriptors."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    NUMBERS,
    Script,
    list_cells,
)


def task(tid, tgid, comm, inside=1, **more):
    return {"tid": tid, "tgid": tgid, "comm": comm, "container_tid": inside, **more}


def test_first_tasks_have_their_processes_and_names():
    script = Script()
    for tid in (5, 6, 7, 8):
        script.call(tid, "getpid")
    manifest = {
        # A thread may stand before the first one of its process.
        "first_tasks": [task(6, 5, "worker", 2), task(5, 5, "web", 1), task(7, 4, "orphan", 9)],
        "tasks": [task(8, 5, "later", 3), task(5, 5, "renamed", 1)],
    }
    found = [
        (call.tid, call.pid, call.program, call.container_pid) for call in script.calls(manifest, b"8 saved\n9 y\n")
    ]
    assert found == [(5, 5, "web", 1), (6, 5, "worker", 1), (7, 4, "orphan", None), (8, 5, "later", 1)]


def test_a_name_of_the_kernels_list():
    script = Script()
    script.call(9, "getpid")
    script.call(10, "getpid")
    assert [(call.program, call.pid) for call in script.calls({}, b"9 a b\nx y\n")] == [("a b", 9), ("?", 10)]


def test_a_thread_whose_process_is_only_in_the_list_of_the_end():
    script = Script()
    script.call(6, "getpid")
    script.call(5, "getpid")
    manifest = {"tasks": [task(5, 5, "web"), task(6, 5, "worker", 2)]}
    tables = script.tables(manifest)
    assert [(call.tid, call.pid, call.program) for call in script.calls(manifest)] == [(6, 5, "worker"), (5, 5, "web")]
    assert tables.processes.pid.tolist()[1:] == [5]


def test_tasks_that_are_each_others_processes():
    script = Script()
    script.call(5, "getpid")
    script.call(6, "getpid")
    manifest = {"tasks": [task(5, 6, "a"), task(6, 5, "b")]}
    assert len(script.calls(manifest)) == 2
    assert len(script.calls({"first_tasks": manifest["tasks"]})) == 2


WAITING = {
    "first_tasks": [task(5, 5, "web"), task(6, 5, "worker"), task(7, 7, "old", compat=True)],
    "waits": {
        "first": [
            {"tid": 5, "number": NUMBERS["poll"], "args": [1 << 63, 2, 3, 4, 5, 6]},
            {"tid": 6, "number": NUMBERS["read"], "args": [3, 0, 0, 0, 0, 0]},
            {"tid": 99, "number": NUMBERS["read"], "args": [3, 0, 0, 0, 0, 0]},
        ]
    },
    "descriptors": {"first": [{"pid": 5, "fd": 3, "target": "/log"}, {"pid": 98, "fd": 3, "target": "/x"}]},
}


def test_a_call_that_was_under_way_ends():
    script = Script()
    script.call(7, "getpid")
    script.exit(5, "poll", 1)
    script.exit(6, "read", -4)
    calls = [call for call in script.calls(WAITING) if call.tid != 7]
    assert [(call.call, call.continued, call.unfinished, call.denied) for call in calls] == [
        ("poll", True, False, False),
        ("read", True, False, False),
    ]
    assert [(call.start_ns, call.duration_ns, call.result, call.error) for call in calls] == [
        (1010, None, 1, None),
        (1010, None, -4, "EINTR"),
    ]
    assert [call.descriptor for call in calls] == [None, "/log"]


def test_a_call_that_was_under_way_never_ends():
    script = Script()
    script.call(7, "getpid")
    script.call(7, "getpid")
    tables = script.tables(WAITING)
    flags = codes.CONTINUED | codes.UNFINISHED
    assert sorted((number, outcome, text) for _name, number, outcome, text, _count in list_cells(tables))[:2] == [
        (NUMBERS["read"], flags, "/log"),
        (NUMBERS["poll"], flags, ""),
    ]
    long = tables.long_calls
    assert long.duration_ns.tolist()[:2] == [30, 30]
    assert long.args[0].tolist() == [-(1 << 63), 2, 3, 4, 5, 6]
    found = [call for call in script.calls(WAITING) if call.unfinished]
    assert [(call.tid, call.result, call.continued) for call in found] == [(5, None, True), (6, None, True)]


def test_an_entry_shows_that_the_call_had_ended():
    script = Script()
    script.call(5, "getpid")
    script.call(6, "read", 3, result=1)
    assert [(call.call, call.continued, call.descriptor) for call in script.calls(WAITING)] == [
        ("getpid", False, None),
        ("read", False, "/log"),
    ]


def test_the_exit_of_another_call_ends_no_wait():
    script = Script()
    script.exit(5, "read", 0)
    assert [(call.call, call.continued, call.descriptor) for call in script.calls(WAITING) if call.tid == 5] == [
        ("read", True, None)
    ]


def test_a_wait_of_a_32_bit_program():
    script = Script()
    script.exit(7, 168, 0)
    manifest = {
        **WAITING,
        "compat_syscalls": {"168": "poll"},
        "waits": {"first": [{"tid": 7, "number": 168, "args": [0] * 6}, {"tid": 5, "number": -1, "args": [0] * 6}]},
    }
    assert [(call.call, call.compat, call.continued) for call in script.calls(manifest)] == [("poll", True, True)]


@pytest.mark.parametrize(
    ("target", "kind", "text"),
    [
        ("/var/log/x", "path", "/var/log/x"),
        ("pipe:[123]", "pipe", "pipe:[123]"),
        ("anon_inode:[eventpoll]", "anon", "anon_inode:[eventpoll]"),
        ("tcp 10.0.0.1:5000->10.0.0.2:80", "peer", "10.0.0.2:80 (tcp)"),
        ("tcp6 [::1]:5000->[::1]:80", "peer", "[::1]:80 (tcp)"),
        ("udp 10.0.0.1:5000->10.0.0.2:53", "peer", "10.0.0.2:53 (udp)"),
        ("tcp 0.0.0.0:80", "socket", "tcp 0.0.0.0:80"),
        ("socket:[55]", "socket", "socket:[55]"),
        ("/a\ud800", "path", "/a\\ud800"),
    ],
)
def test_targets_of_descriptors(target, kind, text):
    script = Script()
    script.call(5, "read", 3, result=1)
    manifest = {**WAITING, "waits": None, "descriptors": {"first": [{"pid": 5, "fd": 3, "target": target}]}}
    (call,) = script.calls(manifest)
    tables = script.tables(manifest)
    assert (kind, call.descriptor) in tables.objects
    assert (call.descriptor, call.peer) == (text, text if kind == "peer" else None)
    assert len(tables.descriptors.process) == 0  # it was not opened in the trace


def test_a_first_thread_that_forks_gives_its_descriptors():
    script = Script()
    script.fork(6, 20)
    script.fork(6, 21, pages.CLONE_THREAD)
    for tid in (20, 21):
        script.call(tid, "read", 3, result=1)
    assert [(call.pid, call.descriptor) for call in script.calls(WAITING) if call.tid >= 20] == [
        (20, "/log"),
        (5, "/log"),
    ]


def look_at(first, last, **more):
    """The manifest of a capture whose host looked at the processes at FIRST and LAST, in the trace's clock."""
    offset = 5_000_000
    times = {"first": first and first + offset, "last": last and last + offset}
    return {**WAITING, "waits": {**WAITING["waits"], "time_ns": times}, "clock_offset_ns": offset, **more}


def list_long(script, manifest):
    tables = script.tables(manifest)
    calls = tables.long_calls
    times = zip(calls.number.tolist(), calls.start_ns.tolist(), calls.duration_ns.tolist())
    return (tables.start_ns, tables.end_ns), sorted(times)


POLL, READ, GETPID = NUMBERS["poll"], NUMBERS["read"], NUMBERS["getpid"]


@pytest.mark.parametrize("is_complete", [True, False])
def test_a_capture_without_events_is_as_long_as_the_hosts_looks_are_apart(is_complete):
    bounds, calls = list_long(Script(), look_at(1000, 9000, complete=is_complete))
    assert bounds == (1000, 9000)
    assert calls == [(READ, 1000, 8000), (POLL, 1000, 8000)]
    cells = list_cells(Script().tables(look_at(1000, 9000)))
    assert [(name, number) for name, number, *_rest in cells] == [("web", POLL), ("worker", READ)]


def test_calls_last_from_look_to_look_where_events_are_few():
    script = Script()
    script.add(pages.make_exit(5, POLL, 1), time=3000)
    script.add(pages.make_exit(7, GETPID, 1), time=3010)
    bounds, calls = list_long(script, look_at(1000, 9000))
    assert bounds == (1000, 9000)
    assert [call for call in calls if call[0] in (POLL, READ)] == [(READ, 1000, 8000), (POLL, 1000, 2000)]
    # Of what was lost nobody knows when it began.
    bounds, calls = list_long(script, look_at(1000, 9000, complete=False))
    assert bounds == (3000, 3010)
    # Earlier events are in an earlier capture.
    changed = {"time": {"changed": {"real_time_ns": 5_002_000, "offset_ns": 5_000_000}}}
    assert list_long(script, look_at(1000, 9000, **changed))[0] == (2000, 9000)


@pytest.mark.parametrize(("first", "last"), [(None, 9000), (1000, None), (9000, 1000), (-9000, 9000), (0, 1 << 61)])
def test_looks_that_cannot_be_are_none(first, last):
    assert list_long(Script(), look_at(first, last))[0] == (0, 0)


def test_events_before_and_after_the_looks_count():
    script = Script()
    script.add(pages.make_exit(7, GETPID, 1), time=500)
    script.add(pages.make_exit(7, GETPID, 1), time=9500)
    assert list_long(script, look_at(1000, 9000))[0] == (500, 9500)
