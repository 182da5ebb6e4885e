# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule storms: births, starts, closes, retries and polls, and what only looks like them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.storms import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.histories import (
    Lived,
    add_lives,
)

_PEER = ("peer", "10.0.0.7:5432 (tcp)")


def find(*calls, lives=(), span=(0, 10)):
    return list(RULE.find(add_lives(make_capture(*calls), *lives, span=span)))


def make_births(count=300, over=3.0, lasting=None, program="bomb"):
    return [
        Lived("bomb", 5000),
        Lived("other", 4999, end=1),
        *(
            Lived(program, 6000 + n, 5000, n * over / count, n * over / count + lasting if lasting else None)
            for n in range(count)
        ),
    ]


def test_births_that_live_on_are_a_storm():
    (found,) = find(lives=make_births())
    assert found.statement == "bomb made 300 processes, 100 per second, and most of them lived longer than a second"
    assert found.count == 300


def test_short_processes_one_after_the_other_are_starts():
    (found,) = find(lives=make_births(600, 6.0, 0.005, "date"))
    assert found.statement == "bomb starts date again and again, 100 times per second"
    assert found.severity < 40


@pytest.mark.parametrize(
    "lives",
    [
        make_births(60, 3.0),  # slow
        make_births(60, 0.5),  # short
        make_births(300, 3.0, 0.005, "date"),  # a script, for three seconds
    ],
)
def test_scripts_are_no_storm(lives):
    assert find(lives=lives) == []


def test_births_are_not_judged_where_ends_are_not_recorded():
    assert find(lives=[life for life in make_births() if life.end is None]) == []


def test_closes_of_what_is_not_open():
    (found,) = find(Call("close", None, "EBADF", count=65000, first=1, last=1.25))
    assert found.statement == "web closes descriptors that are not open: 65000 calls in 250 ms"
    assert find(Call("close", None, "EBADF", count=900, first=1, last=1.25)) == []


def test_retries_by_the_clock_are_told_with_their_rate():
    calls = [
        Call("connect", _PEER, "ECONNREFUSED", count=98, first=0, last=9.8),
        Call("clock_nanosleep", count=98, first=0, last=9.8),
    ]
    (found,) = find(*calls)
    assert (
        found.statement
        == "web tries connect 10.0.0.7:5432 (tcp) 10 times per second, always in vain (ECONNREFUSED, 98 times)"
    )


def test_retries_by_one_process_after_the_other_are_told():
    calls = [Call("openat", "/run/x", "EACCES", pid=5000 + n, first=n / 10, last=n / 10) for n in range(50)]
    (found,) = find(*calls)
    assert found.numbers["rate"].value == 10


@pytest.mark.parametrize(
    "calls",
    [
        [Call("openat", "/w/favicon.ico", "ENOENT", count=900, first=0, last=9), Call("epoll_wait", count=900)],  # load
        [
            Call("openat", "/x", "ENOENT", count=90, first=0, last=9),
            Call("nanosleep", count=90),
            Call("openat", "/x", last=10),
        ],
        [Call("openat", "/x", "ENOENT", count=9, first=0, last=9), Call("nanosleep", count=9)],  # slow: see failures
        [Call("read", ("socket", "x"), "EAGAIN", count=90, first=0, last=9), Call("nanosleep", count=90)],
        [Call("openat", None, "ENOENT", count=90, first=0, last=9), Call("nanosleep", count=90)],  # many files
    ],
)
def test_failures_of_the_load_and_those_that_succeed_are_no_retries(calls):
    assert find(*calls) == []


def test_polls_without_waiting():
    timed_out = 1 << 20
    polls = Call("poll", count=300_000, flags=timed_out, first=1, last=3)
    (found,) = find(polls, Call("read", count=1000))
    assert found.statement == (
        "web polls without waiting: poll returns with nothing 150000 times per second, which uses up a processor"
    )
    assert find(polls, Call("poll", count=200_000)) == []  # often with something
    assert find(polls, Call("write", count=900_000)) == []  # between much work
    assert find(Call("poll", count=300, flags=timed_out, first=1, last=3)) == []
