# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which waits make a capture without events worth a file."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.lasting import has_telling_waits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import Tables

NUMBERS = {
    name: number
    for number, name in enumerate(("flock", "epoll_wait", "futex", "wait4", "pause", "nanosleep", "accept4", "connect"))
}
SECOND = 10**9


def wait(call, tid=5, args=(3, 2, 0, 0, 0, 0)):
    return {"tid": tid, "number": NUMBERS[call], "args": list(args)}


def judge(first, last, *, seconds=8, tasks=()):
    """The answer for the waits FIRST and LAST, so many SECONDS apart; None is for waits that nobody knows."""
    ends = [
        {"time_ns": time_ns, "waits": waits} for time_ns, waits in ((SECOND, first), (SECOND * (1 + seconds), last))
    ]
    compat = {NUMBERS["flock"]: "epoll_wait", NUMBERS["epoll_wait"]: "flock"}
    names = {number: name for name, number in NUMBERS.items()}
    return has_telling_waits(Tables(list(tasks), [], "", *ends, syscalls=names, compat_syscalls=compat))


def stay(*waits, **about):
    return judge(list(waits), list(waits), **about)


@pytest.mark.parametrize("call", ["flock", "connect"])
def test_a_wait_for_something_that_has_a_name_is_worth_it(call):
    assert stay(wait(call)) and stay(wait("epoll_wait"), wait(call, 6))


@pytest.mark.parametrize("call", ["epoll_wait", "accept4", "nanosleep", "pause"])
def test_idle_servers_and_sleepers_are_not(call):
    assert not stay(wait(call)) and not stay(wait("pause"), wait(call, 6))


def test_a_wait_that_is_another_one_at_the_end_is_not():
    assert not judge([wait("flock")], [wait("flock", args=(4, 2, 0, 0, 0, 0))])
    assert not judge([wait("flock")], [wait("flock", tid=6)])
    assert not judge([wait("flock")], [])


@pytest.mark.parametrize("missing", [(None, [wait("flock")]), ([wait("flock")], None)])
def test_what_nobody_knows_is_not(missing):
    assert not judge(*missing)
    assert not has_telling_waits(Tables([], [], ""))


def test_a_moment_is_not():
    assert not stay(wait("flock"), seconds=0.9)


@pytest.mark.parametrize("call", ["futex", "wait4"])
def test_threads_that_wait_for_each_other_are_worth_it_if_all_do(call):
    assert stay(wait(call)) and stay(wait(call), wait("pause", 6))
    assert not stay(wait(call), wait("epoll_wait", 6))
    assert not judge([wait(call)], [wait(call), wait("pause", 6)])


def test_a_32_bit_program_has_other_numbers():
    task = {"tid": 5, "tgid": 5, "comm": "x", "container_tid": 1, "compat": True}
    assert stay(wait("epoll_wait"), tasks=[task]) and not stay(wait("flock"), tasks=[task])
