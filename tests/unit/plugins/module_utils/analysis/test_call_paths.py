# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From events with paths to the calls that they belong to."""

from __future__ import annotations

import io
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis import call_paths
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import parse_format
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import PathUse, summarize
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages, reports

NAMES = {"0": "read", "2": "open", "4": "stat", "59": "execve", "82": "rename", "257": "openat"}
GROUP = "crashcart_0123456789ab_5d41402a"
OPENAT, RENAME, FOPEN, STAT, EVENT = 1501, 1502, 1503, 1504, 1505
FORMATS = {
    GROUP: [
        pages.make_path_format("path_openat", OPENAT, "path"),
        pages.make_path_format("path_rename", RENAME, "path", "path2"),
        pages.make_path_format("path_fopen", FOPEN, "path"),
        pages.make_path_format("own", 1510, "path"),
    ],
    "syscalls": [
        pages.SYS_EXIT_EXECVE.encode(),
        pages.make_path_format("sys_enter_newstat", STAT, "__filename_val"),
    ],
}


def table_of(*events):
    """The table of EVENTS, each (time, record), spread over two CPUs."""
    cpus = [[], []]
    for index, (time, record) in enumerate(sorted(events, key=lambda event: event[0])):
        cpus[index % 3 == 0].append(pages.pack_page(time, [pages.pack_event(record)]))
    trace = Trace(io.BytesIO(pages.pack_trace(cpus, more_formats=FORMATS)))
    return summarize(trace, {"syscalls": NAMES})


def list_paths(*events):
    return {row.syscall: row.paths for row in table_of(*events).programs}


def test_a_path_belongs_to_the_call_after_it():
    found = list_paths(
        (100, pages.make_enter(5, 257)),
        (101, pages.make_paths(OPENAT, 5, b"/etc/a")),
        (110, pages.make_exit(5, 257, -2)),
        # The library's function comes before the call.
        (200, pages.make_paths(FOPEN, 5, b"/etc/b")),
        (201, pages.make_enter(5, 257)),
        (210, pages.make_exit(5, 257, 3)),
    )
    assert found == {"openat": [PathUse("/etc/a", 1, {"ENOENT": 1}), PathUse("/etc/b", 1, {})]}


def test_without_entries_the_last_path_before_an_exit_counts():
    # As with errors_only: what went well left a path and nothing else.
    found = list_paths(
        (100, pages.make_paths(OPENAT, 5, b"/good")),
        (200, pages.make_paths(OPENAT, 5, b"/bad")),
        (210, pages.make_exit(5, 257, -13)),
        (300, pages.make_exit(5, 257, -13)),
    )
    assert found == {"openat": [PathUse("/bad", 1, {"EACCES": 1})]}


def test_threads_and_families_do_not_mix():
    found = list_paths(
        (100, pages.make_paths(OPENAT, 5, b"/five")),
        (101, pages.make_paths(OPENAT, 6, b"/six")),
        (102, pages.make_paths(STAT, 5, b"/stat")),
        (103, pages.make_exit(5, 0, -9)),
        (104, pages.make_exit(6, 257, 3)),
        (105, pages.make_exit(5, 4, -2)),
        # The C library may make another call of the family than its function is called.
        (106, pages.make_exit(5, 2, -2)),
    )
    assert found == {
        "read": [],
        "openat": [PathUse("/six", 1, {})],
        "stat": [PathUse("/stat", 1, {"ENOENT": 1})],
        "open": [PathUse("/five", 1, {"ENOENT": 1})],
    }


def test_two_paths_of_one_call_stand_together():
    found = list_paths((100, pages.make_paths(RENAME, 5, b"/a", b"/b")), (110, pages.make_exit(5, 82, -2)))
    assert found == {"rename": [PathUse("/a -> /b", 1, {"ENOENT": 1})]}


def test_what_most_calls_fail_on_comes_first_and_ten_are_enough():
    events = []
    for number in range(30):
        time = 1000 * number
        path = f"/{min(number, 20)}".encode()
        events += [
            (time, pages.make_paths(OPENAT, 5, path)),
            (time + 1, pages.make_exit(5, 257, -2 if number >= 20 else 3)),
        ]
    (uses,) = list_paths(*events).values()
    assert uses[0] == PathUse("/20", 10, {"ENOENT": 10})
    assert len(uses) == 10


def test_a_users_own_probe_is_no_path():
    assert list_paths((100, pages.make_paths(1510, 5, b"/own")), (110, pages.make_exit(5, 257, -2))) == {"openat": []}


@pytest.mark.parametrize(
    ("system", "name", "is_one"),
    [
        (GROUP, "path_openat", True),
        (GROUP, "path_fopen", True),
        (GROUP, "path_nonesuch", False),
        (GROUP, "openat", False),
        ("somebody", "path_openat", False),
        ("syscalls", "sys_enter_newstat", True),
        ("syscalls", "sys_enter_openat", True),
        ("syscalls", "sys_exit_openat", False),
        ("syscalls", "sys_enter_write", False),
    ],
)
def test_events_that_have_paths(system, name, is_one):
    with_text = parse_format(pages.make_path_format(name, 1, "path").decode(), system)
    without = parse_format(pages.make_path_format(name, 1).decode(), system)
    assert (call_paths.find_family(with_text) is not None, call_paths.find_family(without)) == (is_one, None)


def test_a_text_beyond_its_event_is_none_or_cut():
    for word in (b"\xff\xff\xff\xff", struct.pack("HH", 20, 0xFFFF), struct.pack("HH", 0xFFF0, 8), b""):
        record = pages.make_record(OPENAT, 5, bytes(8) + word + b"/x\0")
        (uses,) = list_paths((100, record), (110, pages.make_exit(5, 257, -2))).values()
        assert [use.path for use in uses] in ([], ["/x"])


def test_a_report_names_the_paths_of_failures():
    row = {
        "name": "web",
        "pids": [5],
        "syscall": "openat",
        "calls": 9,
        "process_count": 1,
        "errors": {"ENOENT": 7},
        "interrupted": {},
        "denied": {},
        "measured": 0,
        "total_ns": 0,
        "p99_ns": None,
        "paths": [
            {"path": "/a b\x1b", "calls": 8, "errors": {"ENOENT": 7}},
            {"path": "/good", "calls": 1, "errors": {}},
        ],
    }
    capture = {
        "capture": "x",
        "host": "h",
        "container": "c",
        "complete": True,
        "lost": 0,
        "start": None,
        "duration_s": 1,
        "events": 9,
        "functions": {},
        "io_uring": {"recorded": True, "requests": {}, "polled": False},
        "min_latency_ns": 0,
        "buffer": None,
        "programs": [row],
        "event_counts": {f"{GROUP}:path_openat": 9, f"{GROUP}:own": 4, "sched:sched_switch": 1},
    }
    lines = reports.format_summary({"captures": [capture], "skipped": []}).splitlines()
    assert lines[3:] == [
        "  paths of calls that failed:",
        "    web openat '/a b?': ENOENT 7",
        "  other events: probe own 4, sched:sched_switch 1",
    ]
