# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line of a system call: names for numbers, what is known and what is not, and nothing that controls a terminal."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import Call
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.lines import format_call

NOON_NS = 1_764_417_600_000_000_000
MANIFEST = {"arch": "x86_64", "clock_offset_ns": NOON_NS}
CALL = Call(
    start_ns=1_500_000,
    duration_ns=12_000,
    tid=500,
    pid=500,
    program="cat",
    container_pid=17,
    call="close",
    arguments=(3, 0, 0, 0, 0, 0),
    result=0,
    error=None,
    path=None,
    peer=None,
    descriptor=None,
    denied=False,
    trapped=False,
    restarted=False,
    unfinished=False,
    continued=False,
    compat=False,
    number=3,
)
AT_FDCWD = 0xFFFFFF9C
OPEN = {"call": "openat", "arguments": (AT_FDCWD, 0x7FFF0000, 0x80000, 0, 0, 0)}


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "cat[17] close(3) = 0 in 12 us"),
        ({"container_pid": None}, "cat[host 500] close(3) = 0 in 12 us"),
        ({"descriptor": "/etc/passwd"}, "cat[17] close(3</etc/passwd>) = 0 in 12 us"),
        (
            {**OPEN, "path": "/x", "result": -2, "error": "ENOENT"},
            'cat[17] openat(AT_FDCWD, "/x", O_RDONLY|O_CLOEXEC) = -1 ENOENT in 12 us',
        ),
        (
            {"call": "socket", "arguments": (10, 0x80001, 6, 0, 0, 0), "result": 4},
            "cat[17] socket(AF_INET6, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = 4 in 12 us",
        ),
        (
            {"call": "connect", "arguments": (5, 0x7FFF0000, 16, 0, 0, 0), "descriptor": "10.0.0.1:5432 (tcp)"},
            "cat[17] connect(5<10.0.0.1:5432 (tcp)>, 0x7fff0000, 16) = 0 in 12 us",
        ),
        ({"call": "kill", "arguments": (7, 15, 0, 0, 0, 0)}, "cat[17] kill(7, SIGTERM) = 0 in 12 us"),
        (
            {"call": "mmap", "arguments": (0, 4096, 1, 2, 3, 0), "descriptor": "/lib/x", "result": -(1 << 47)},
            "cat[17] mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 3</lib/x>, 0) = 0xffff800000000000 in 12 us",
        ),
        # Another descriptor than that of which is known what it refers to.
        (
            {"call": "dup2", "arguments": (3, 1, 0, 0, 0, 0), "descriptor": "/dev/null", "result": 1},
            "cat[17] dup2(3</dev/null>, 1) = 1 in 12 us",
        ),
        ({"result": None, "duration_ns": None, "unfinished": True}, "cat[17] close(3) = ?"),
        ({"arguments": (), "duration_ns": None, "continued": True}, "cat[17] close(…) = 0"),
        (
            {"arguments": (), "duration_ns": None, "denied": True, "error": "EPERM", "result": -1},
            "cat[17] close(…) = ? (EPERM by seccomp)",
        ),
        ({"restarted": True, "error": "ERESTARTSYS", "result": -512}, "cat[17] close(3) = ? ERESTARTSYS in 12 us"),
    ],
)
def test_a_call_is_shown_by_names(changes, shown):
    assert format_call(CALL._replace(**changes), MANIFEST) == f"12:00:00.001 {shown}"


def test_nothing_controls_the_terminal():
    evil = "\x1b[2J\n\u202eok\udcff"
    line = format_call(CALL._replace(program=evil, descriptor=evil, **{**OPEN, "path": evil}), MANIFEST)
    assert line.isprintable()
    for changes in ({"arguments": (), "path": evil}, {"error": evil}, {"descriptor": evil}):
        assert format_call(CALL._replace(**changes), MANIFEST).isprintable()


def test_a_long_path_is_cut():
    line = format_call(CALL._replace(**{**OPEN, "path": "/" + "x" * 4000}), MANIFEST)
    assert len(line) == 2001 and line.endswith("x…")


@pytest.mark.parametrize("offset", [None, "x", 1 << 90, -(1 << 70)])
def test_a_clock_that_is_no_clock_has_its_own_time(offset):
    assert format_call(CALL, {**MANIFEST, "clock_offset_ns": offset}).startswith("0.002 cat[17] ")


def test_a_32_bit_programs_constants_are_its_own():
    call = CALL._replace(call="fcntl64", arguments=(3, 14, 0xFFFF0000, 0, 0, 0), compat=True)
    assert "F_SETLKW64" in format_call(call, MANIFEST)
