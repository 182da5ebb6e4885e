# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a control group's processes are tools of ours, and what is said of how processes are followed."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import Following, find_tools

NAMES = {5: "containerd-shim", 6: "crashcart-super", 7: "conmon", 1: "systemd"}
# Child → parent: 10 is the container's first process, 20 a tool's reaper, 30 was exec'ed.
PARENTS = {10: 5, 11: 10, 12: 11, 20: 6, 21: 20, 22: 21, 30: 7, 31: 30, 40: 1, 50: 0}


def find(pids, parents=None, names=None):
    parents, names = parents or PARENTS, names or NAMES
    return find_tools(set(pids), set(pids), lambda pid: parents.get(pid, 0), lambda pid: names.get(pid, ""))


def test_tools_are_those_below_a_supervisor():
    assert find([10, 11, 12, 20, 21, 22, 30, 31, 40, 50]) == {20, 21, 22}
    assert find([]) == set()


def test_who_calls_itself_so_inside_is_none():
    assert find([10, 11, 12], names={**NAMES, 11: "crashcart-super", 10: "crashcart-super"}) == set()


@pytest.mark.parametrize("parents", [{10: 11, 11: 10}, {10: 10}])
def test_numbers_that_were_given_anew_meanwhile_lead_in_no_ring(parents):
    assert find([10, 11], parents) == set()


def test_a_thousand_in_a_row():
    parents = {number: number - 1 for number in range(101, 3000)}
    assert find(range(101, 3000), parents, {100: "crashcart-super"}) == set(range(101, 3000))


@pytest.mark.parametrize(
    ("following", "told"),
    [
        (Following(), {"exec": "none", "tools": False, "may_be_missed": None}),
        (
            Following(shim=5, descends=True, restarts=True),
            {"exec": "descent", "tools": False, "may_be_missed": "of a start"},
        ),
        (Following(shim=5, descends=True), {"exec": "descent", "tools": False, "may_be_missed": None}),
        (
            Following(watch_exec=True),
            {"exec": "watch", "tools": False, "may_be_missed": "of what is exec'ed"},
        ),
        (
            Following(shim=5, descends=True, tools=True),
            {"exec": "descent", "tools": True, "may_be_missed": "of tools"},
        ),
    ],
)
def test_what_is_said(following, told):
    said = following.describe()
    assert (said["exec"], said["tools"], said["restarts"]) == (told["exec"], told["tools"], following.restarts)
    assert (said["may_be_missed"] or "").startswith(told["may_be_missed"] or "")
    assert bool(said["may_be_missed"]) == (following.is_watched or following.restarts)
