# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule deaths: signals, the OOM killer, exit statuses that come again and again, and the ends that are normal."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.deaths import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    make_capture,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.histories import (
    Lived,
    add_lives,
)


def find(*lives, signals=(), **parts):
    return list(RULE.find(add_lives(make_capture(), *lives, signals=signals, **parts)))


def test_a_death_by_signal_is_told_by_its_name_and_how_often():
    lives = [Lived("web", 5000 + n, begin=n, end=n + 0.5) for n in range(3)]
    (found,) = find(*lives, signals=[(5000 + n, 11, n + 0.5) for n in range(3)])
    assert found.statement == "web died of SIGSEGV (it touched memory that it does not have), 3 times"
    assert found.severity >= 90
    assert found.container_pids == (0, 1, 2)
    assert found.first == "2026-11-21T23:14:58.500+00:00"


def test_a_victim_of_the_oom_killer_is_told_once():
    (found,) = find(Lived("db", 5011, end=3), signals=[(5011, 0, 3), (5011, 9, 3.1)])
    assert found.statement == "db was killed by the OOM killer: there was not enough memory"


@pytest.mark.parametrize("number", [1, 2, 3, 9, 10, 13, 15, 17, 18, 19, 23, 28])
def test_orderly_stops_and_signals_that_do_not_end_a_process_are_no_deaths(number):
    assert find(Lived("web", 5011, end=3), signals=[(5011, number, 3)]) == []


def make_runs(program="web", count=5, status=1, every=1.0, **parts):
    return [
        Lived(program, 5010 + n, begin=n * every, end=n * every + 0.1, status=status, **parts) for n in range(count)
    ]


def test_a_program_that_fails_at_a_steady_pace_is_told():
    (found,) = find(*make_runs())
    assert found.statement == "web ended with exit code 1, 5 of 5 times, every 1 s"


@pytest.mark.parametrize(
    "lives",
    [
        make_runs(status=0),
        make_runs(status=143),
        make_runs("grep"),
        make_runs("sh"),
        make_runs(count=2),
        make_runs(every=0.1),  # all within less than two seconds
        make_runs(runs=False),  # parts of a shell, not programs
        [*make_runs(count=4), Lived("web", 6000, begin=9.5, end=9.6, status=1)],  # at no pace
        [
            *make_runs(count=4),
            *(Lived("web", 6000 + n, begin=n, end=n + 1, status=0) for n in range(5)),
        ],  # most succeed
    ],
)
def test_ends_that_are_answers_or_rare_are_not_told(lives):
    assert find(*lives) == []


def test_a_shell_that_does_not_find_its_command_again_and_again_is_told():
    (found,) = find(*make_runs("sh", status=127))
    assert "exit code 127" in found.statement


def test_the_failed_first_process_of_a_container_is_told():
    (found,) = find(Lived("web", 5011, end=2, status=3, container_pid=1))
    assert found.statement == "web, the first process of the container, ended with exit code 3"
    assert find(Lived("web", 5011, end=2, status=0, container_pid=1)) == []
    assert find(Lived("web", 5011, end=2, status=143, container_pid=1)) == []
