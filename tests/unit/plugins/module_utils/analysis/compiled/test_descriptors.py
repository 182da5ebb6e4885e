# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptors: what calls make, copy and close, what an exec closes, and what is open at the end."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    AT_FDCWD,
    Script,
)

O_CLOEXEC = 0x80000


def list_read(script, manifest=None):
    """Return the objects that the descriptors of the reads in SCRIPT refer to."""
    return [call.descriptor for call in script.calls(manifest) if call.call == "read"]


def read(script, *fds, tid=5):
    for fd in fds:
        script.call(tid, "read", fd, result=1)


def test_a_descriptor_refers_to_what_was_opened():
    script = Script()
    read(script, 3)
    script.open(5, b"/etc/a", 3)
    script.open(5, b"/etc/b", -2)
    read(script, 3, 4)
    script.call(5, "close", 3, result=-5)
    read(script, 3)
    script.call(5, "close", 3)
    read(script, 3)
    calls = script.calls()
    assert [call.descriptor for call in calls if call.call == "read"] == [None, "/etc/a", None, "/etc/a", None]
    assert [(call.path, call.descriptor) for call in calls if call.call == "openat"] == [
        ("/etc/a", None),
        ("/etc/b", None),
    ]
    assert [call.descriptor for call in calls if call.call == "close"] == ["/etc/a", "/etc/a"]


def test_a_file_without_a_recorded_path():
    script = Script()
    script.call(5, "open", 1, 0, result=3)
    read(script, 3)
    assert list_read(script) == ["a file whose path is not recorded"]


@pytest.mark.parametrize(
    "copy",
    [("dup", 3), ("dup2", 3, 7), ("dup3", 3, 7, O_CLOEXEC), ("fcntl", 3, 0, 5), ("fcntl", 3, 1030, 5)],
)
def test_a_copy_refers_to_the_same(copy):
    script = Script()
    script.open(5, b"/a", 3)
    script.call(5, *copy, result=7)
    read(script, 3, 7)
    script.call(5, "close", 3)
    read(script, 3, 7)
    script.call(5, "close", 7)
    read(script, 7)
    assert list_read(script) == ["/a", "/a", None, "/a", None]


def test_a_copy_replaces_what_was_there():
    script = Script()
    script.open(5, b"/a", 3)
    script.open(5, b"/b", 4)
    script.call(5, "dup2", 3, 4, result=4)
    read(script, 4)
    # Nobody knows what 9 is.
    script.call(5, "dup2", 9, 4, result=4)
    read(script, 4)
    script.call(5, "dup2", 3, 5, result=-9)
    read(script, 5)
    script.call(5, "dup", 9, result=10)
    read(script, 10)
    assert list_read(script) == ["/a", None, None, "descriptor of dup"]


def test_other_commands_of_fcntl_copy_nothing():
    script = Script()
    script.open(5, b"/a", 3)
    script.call(5, "fcntl", 3, 3, result=8)
    read(script, 8)
    assert list_read(script) == [None]


@pytest.mark.parametrize(
    ("call", "is_closed"),
    [
        (("open", 0x80000, 0, O_CLOEXEC), False),
        (("open", 1, O_CLOEXEC), True),
        (("openat", AT_FDCWD, 0x80000, 0), False),
        (("openat", AT_FDCWD, 1, O_CLOEXEC | 1), True),
        (("openat2", AT_FDCWD, 1, 1), True),
        (("creat", 1, 0o644, O_CLOEXEC), False),
        (("socket", 2, 1, O_CLOEXEC), False),
        (("socket", 2, 1 | O_CLOEXEC), True),
        (("accept", 3, 0, 0, O_CLOEXEC), False),
        (("accept4", 3, 0, 0, O_CLOEXEC), True),
        (("accept4", 3, 0, 0, 0x800), False),
        (("dup", 3), False),
        (("dup2", 3, 7, O_CLOEXEC), False),
        (("dup3", 3, 7, O_CLOEXEC), True),
        (("dup3", 3, 7, 0), False),
        (("fcntl", 3, 0, 5), False),
        (("fcntl", 3, 1030, 5), True),
        (("epoll_create1", O_CLOEXEC), True),
        (("epoll_create1", 0), False),
        (("eventfd2", 1, O_CLOEXEC), True),
        (("memfd_create", 1, 1), True),
        (("memfd_create", 1, 2), False),
        (("pidfd_open", 1, 0), True),
    ],
)
def test_an_exec_closes_what_has_the_flag_and_only_that(call, is_closed):
    script = Script()
    script.open(5, b"/a", 3)
    script.call(5, *call, result=7)
    read(script, 3, 7)
    script.execute(5)
    read(script, 3, 7)
    before, made, after, found = list_read(script)
    assert before == after == "/a"
    assert made
    assert found == (None if is_closed else made)


def test_a_copy_of_a_descriptor_has_a_flag_of_its_own():
    script = Script()
    script.open(5, b"/a", 3, arguments=(AT_FDCWD, 1, O_CLOEXEC))
    script.call(5, "dup2", 3, 0, result=0)
    script.call(5, "dup2", 3, 3, result=3)
    script.execute(5)
    read(script, 3, 0)
    assert list_read(script) == [None, "/a"]


def test_fcntl_sets_and_clears_the_flag():
    script = Script()
    script.open(5, b"/a", 3)
    script.open(5, b"/b", 4, arguments=(AT_FDCWD, 1, O_CLOEXEC))
    script.call(5, "fcntl", 3, 2, 1)
    script.call(5, "fcntl", 4, 2, 0)
    script.execute(5)
    read(script, 3, 4)
    assert list_read(script) == [None, "/b"]


def test_close_range():
    script = Script()
    for fd in range(3, 8):
        script.open(5, b"/%d" % fd, fd)
    script.call(5, "close_range", 4, 5)
    read(script, *range(3, 8))
    script.call(5, "close_range", 0x80000000, 0xFFFFFFFF)
    script.call(5, "close_range", 0, 3, result=-22)
    script.call(5, "close_range", 7, 0xFFFFFFFF, 4)
    read(script, *range(3, 8))
    script.execute(5)
    read(script, *range(3, 8))
    script.call(5, "close_range", 0, 0xFFFFFFFF)
    read(script, *range(3, 8))
    found = list_read(script)
    assert [found[at : at + 5] for at in range(0, 20, 5)] == [
        ["/3", None, None, "/6", "/7"],
        ["/3", None, None, "/6", "/7"],
        ["/3", None, None, "/6", None],
        [None] * 5,
    ]


def test_a_fork_copies_and_a_thread_shares():
    script = Script()
    script.open(5, b"/a", 3)
    script.fork(5, 6)
    script.fork(5, 7, pages.CLONE_THREAD)
    read(script, 3, tid=6)
    read(script, 3, tid=7)
    script.call(6, "close", 3)
    script.open(7, b"/b", 4)
    read(script, 3, 4, tid=6)
    read(script, 3, 4, tid=5)
    script.call(7, "close", 3)
    script.leave(7)
    read(script, 3, 4, tid=5)
    assert list_read(script) == ["/a", "/a", None, None, "/a", "/b", None, "/b"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((2, 1 | 0x80800, 0), "TCP socket (IPv4)"),
        ((10, 1, 6), "TCP socket (IPv6)"),
        ((2, 2, 0), "UDP socket (IPv4)"),
        ((2, 3, 1), "IPv4 raw socket"),
        ((1, 1, 0), "unix stream socket"),
        ((1, 5, 0), "unix seqpacket socket"),
        ((16, 3, 15), "netlink raw socket"),
        ((38, 5, 0), "family 38 seqpacket socket"),
        ((1, 9, 0), "unix type 9 socket"),
    ],
)
def test_kinds_of_sockets(arguments, text):
    script = Script()
    script.call(5, "socket", *arguments, result=3)
    script.call(5, "accept4", 3, 0, 0, 0, result=4)
    read(script, 3, 4)
    assert list_read(script) == [text, f"connection accepted at {text}"]


def test_a_listener_that_is_not_known_and_other_things_that_calls_make():
    script = Script()
    script.call(5, "accept", 3, result=4)
    script.call(5, "eventfd2", 0, 0, result=5)
    # A command of bpf that makes no descriptor.
    script.call(5, "bpf", 1, result=0)
    read(script, 4, 5, 0)
    assert list_read(script) == ["accepted connection", "descriptor of eventfd2", None]


def test_what_a_32_bit_program_makes():
    script = Script()
    script.call(5, 41, 3, result=4)
    script.call(5, 3, 4, result=1)
    manifest = {
        "compat_syscalls": {"3": "read", "41": "dup"},
        "first_tasks": [{"tid": 5, "tgid": 5, "container_tid": 1, "comm": "x", "compat": True}],
    }
    assert list_read(script, manifest) == ["descriptor of dup"]


def test_of_descriptors_above_the_table_nothing_is_known():
    script = Script()
    for fd in (255, 256, 1 << 20, (1 << 31) - 1):
        script.open(5, b"/a", fd)
        read(script, fd)
        script.call(5, "dup2", 255, fd, result=fd)
        script.call(5, "fcntl", fd, 2, 1)
        script.call(5, "close_range", fd + 1, 0xFFFFFFFF)
        read(script, fd)
        script.call(5, "close", fd)
        if fd == 255:
            script.open(5, b"/a", fd)
    read(script, -1, -(1 << 31))
    script.call(5, "read", 0xFFFFFFFF, result=1)
    assert list_read(script) == ["/a", "/a", *[None] * 9]
    assert script.tables().processes.opened.tolist()[1] == 5


def test_of_descriptors_above_the_table_it_is_known_when_they_were_opened():
    script = Script()
    script.open(5, b"/a", 255)
    for fd in (256, 300, 1 << 20):
        script.open(5, b"/a", fd)
        script.call(5, "fcntl", 255, 0, 10, result=fd + 1)  # F_DUPFD
    high = script.tables().high_descriptors
    times = [call.start_ns for call in script.calls() if call.result > 255]
    assert (high.process, high.count, high.first_ns, high.last_ns) == ([1], [6], [times[0]], [times[-1]])
    assert abs(high.middle_ns[0] - sum(times) / 6) <= 1 << codes.HIGH_SHIFT


def test_a_process_that_ends_leaves_its_room_to_others():
    script = Script()
    script.open(5, b"/a", 3)
    for index in range(4200):
        tid = 100 + index
        script.fork(5, tid)
        script.open(tid, b"/of/the/child", 4)
        script.fork(tid, 100000, pages.CLONE_THREAD)
        script.leave(100000)
        script.leave(tid)
    script.fork(5, 99999)
    read(script, 3, 4, tid=99999)
    made = script.run()
    assert made.state.scalars[codes.BLOCKS] == 2
    assert list_read(script) == ["/a", None]


def test_more_processes_than_there_is_room_for():
    script = Script()
    for tid in range(10, 4110):
        script.open(tid, b"/a", 3)
        read(script, 3, tid=tid)
        if tid >= 4100:
            script.fork(tid, 100000 + tid)
            read(script, 3, tid=100000 + tid)
    script.leave(10)
    script.open(9000, b"/b", 3)
    read(script, 3, tid=9000)
    found = list_read(script)
    assert (found.count("/a"), found.count(None), found[-1]) == (4096, 14, "/b")


def test_what_is_open_at_the_end_is_counted_by_process_and_object():
    script = Script()
    script.open(5, b"/old", 20)
    for fd in range(3, 8):
        script.open(5, b"/a", fd)
    script.open(5, b"/b", 8)
    script.call(5, "close", 20)
    script.call(5, "close", 3)
    script.call(5, "pipe", result=0)
    script.fork(5, 6)
    script.open(6, b"/b", 9)
    tables = script.tables(
        {
            "first_tasks": [{"tid": 5, "tgid": 5, "container_tid": 1, "comm": "x"}],
            "descriptors": {"first": [{"pid": 5, "fd": 30, "target": "/before"}]},
        }
    )
    left = tables.descriptors
    starts = {call.path: call.start_ns for call in script.calls() if call.path}
    times = [call.start_ns for call in script.calls() if call.path == "/a"]
    assert [
        (tables.processes.pid[process], tables.objects[thing], count)
        for process, thing, count in zip(left.process, left.object, left.count)
    ] == [(5, ("path", "/a"), 4), (5, ("path", "/b"), 1), (6, ("path", "/b"), 1)]
    assert (left.first_ns[0], left.last_ns[0], left.middle_ns[0]) == (times[1], times[4], times[3])
    assert left.first_ns[2] == starts["/b"]
    assert tables.processes.opened.tolist()[1:] == [9, 1]
    assert tables.processes.closed.tolist()[1:] == [2, 0]


@pytest.mark.parametrize(
    ("calls", "counts"),
    [
        ([("dup2", 3, 7)], (2, 0)),  # nobody has seen 7 before
        ([("dup3", 3, 7, O_CLOEXEC), ("close", 7)], (2, 1)),
        ([("dup2", 3, 7), ("dup2", 3, 7)], (3, 1)),
        ([("dup2", 3, 1)], (1, 0)),  # the standard output was open, and is as open as before
        ([("dup2", 3, 3)], (1, 0)),
        ([("dup2", 3, 300)], (1, 0)),
    ],
)
def test_a_copy_to_a_chosen_number_is_opened_and_closes_what_was_there(calls, counts):
    script = Script()
    script.open(5, b"/a", 3)
    for name, *arguments in calls:
        script.call(5, name, *arguments, result=arguments[1] if name != "close" else 0)
    processes = script.tables().processes
    assert (processes.opened.tolist()[1], processes.closed.tolist()[1]) == counts
