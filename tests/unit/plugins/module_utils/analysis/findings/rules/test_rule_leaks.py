# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule leaks: descriptors that a process opens and does not close."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.leaks import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

CLOSE = Call("close", "/etc/group")
GROWS = {4711: {"opened": 200, "closed": 100}}


def make_limits(first, last):
    ends = {"first": first, "last": last}
    return {
        when: {"processes": [{"pid": 4711, "nofile": 1024, "nproc": None, "open": count}], "group": {}, "mounts": []}
        for when, count in ends.items()
    }


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


def test_descriptors_that_grow_in_number():
    (found,) = find(CLOSE, left_open=[(4711, "/etc/passwd", 100, 1, 9, 5)], processes=GROWS)
    assert found.statement == "web leaves descriptors of /etc/passwd open: 100 in this trace, 10 a second"
    assert (found.confidence, found.missing, found.severity) == ("likely", "its limit (nofile)", 60)
    assert "lsof -n -P -p 711" in found.next


def test_the_time_until_the_limit_is_reached():
    (found,) = find(
        CLOSE, left_open=[(4711, "/etc/passwd", 100, 1, 9, 5)], processes=GROWS, resource_limits=make_limits(24, 124)
    )
    assert found.statement.endswith("10 a second; its limit of 1024 (nofile) is reached in 1 m 30 s")
    assert (found.confidence, found.severity, found.missing) == ("certain", 80, None)


def test_many_objects_of_one_folder_or_host_are_told_by_their_pattern():
    rows = [(4711, f"/tmp/{index}", 1, index / 10, index / 10, index / 10) for index in range(100)]
    (found,) = find(CLOSE, left_open=rows, processes=GROWS)
    assert found.object.text == "/tmp/*"
    rows = [(4711, ("peer", f"10.0.0.7:{index} (tcp)"), 1, index / 10, index / 10, index / 10) for index in range(100)]
    (found,) = find(CLOSE, left_open=rows, processes=GROWS)
    assert found.object.text == "10.0.0.7:* (tcp)"


def test_more_descriptors_than_are_followed():
    known = {"left_open": [(4711, "/etc/passwd", 250, 1, 2, 1.5)], "processes": {4711: {"opened": 3000, "closed": 5}}}
    (found,) = find(CLOSE, high_opened=[(4711, None, 2745, 2, 9, 5.5)], **known)
    assert found.statement == "web leaves descriptors of /etc/passwd and others open: 2995 in this trace, 300 a second"
    assert find(CLOSE, high_opened=[(4711, None, 2745, 2, 2.4, 2.2)], **known) == []  # all at the start
    assert find(CLOSE, high_opened=[(4711, None, 2745, 2, 9, 2.1)], **known) == []  # a pool, and one more
    assert find(CLOSE, **known) == []  # nobody knows when


def test_a_shell_that_opens_five_others_for_each_that_stays():
    known = {
        "left_open": [(4711, "/etc/passwd", 50, 0.1, 2.5, 1.2)],
        "processes": {4711: {"opened": 1092, "closed": 910}},
    }
    high = [(4711, None, 132, 2.6, 9.9, 6.2)]
    (found,) = find(CLOSE, high_opened=high, resource_limits=make_limits(205, 387), **known)
    assert found.statement.startswith("web leaves descriptors of /etc/passwd and others open: 182 in this trace")
    assert find(CLOSE, high_opened=high, **known) == []  # nobody has counted what stays open


def test_descriptors_none_of_which_is_followed():
    known = {"processes": {4711: {"opened": 100}}, "resource_limits": make_limits(300, 400)}
    (found,) = find(Call("openat", "/etc/passwd"), high_opened=[(4711, None, 100, 0.1, 9.9, 5)], **known)
    assert found.statement.startswith("web leaves descriptors open: 100 in this trace, 10 a second; its limit of 1024")


@pytest.mark.parametrize(
    ("row", "process"),
    [
        ((4711, "/etc/passwd", 10, 1, 9, 5), GROWS),  # few
        ((4711, "/etc/passwd", 100, 1, 2, 1.5), GROWS),  # all at the start: a pool
        ((4711, "/etc/passwd", 100, 1, 9, 8.9), GROWS),  # those of this moment: requests under way
        ((4711, "/etc/passwd", 100, 1, 9, 1.1), GROWS),  # a pool, and one more
        ((4711, "/etc/passwd", 100, 1, 9, 5), {4711: {"opened": 200, "closed": 190}}),  # as many closed
        ((4711, "/etc/passwd", 100, 1, 9, 5), {4711: {"opened": 9000, "closed": 8900}}),  # a small part
        ((4711, "/etc/passwd", 100, 1, 1.5, 1.2), {4711: {"opened": 100, "begin": 9.5}}),  # too short
    ],
)
def test_what_does_not_grow_is_no_leak(row, process):
    assert find(CLOSE, left_open=[row], processes=process) == []


def test_a_host_that_sees_no_growth_is_believed():
    rows = [(4711, "/etc/passwd", 100, 1, 9, 5)]
    assert find(CLOSE, left_open=rows, processes=GROWS, resource_limits=make_limits(120, 121)) == []


def test_without_closes_in_the_trace_the_host_has_to_see_the_growth():
    rows, opened = [(4711, "/etc/passwd", 100, 1, 9, 5)], Call("openat", "/etc/passwd")
    assert find(opened, left_open=rows, processes=GROWS) == []
    assert find(CLOSE, left_open=rows, processes=GROWS, specification={"errors_only": True}) == []
    chosen = {"syscalls": {"native": [99], "compat": []}}
    assert find(opened, left_open=rows, processes=GROWS, specification=chosen) == []
    assert (
        len(find(opened, left_open=rows, processes=GROWS, specification=chosen, resource_limits=make_limits(5, 105)))
        == 1
    )
    assert (
        len(find(opened, left_open=rows, processes=GROWS, specification={"syscalls": {"native": [], "compat": []}}))
        == 1
    )


def test_the_host_names_what_the_trace_does_not():
    last = [{"pid": 4711, "fd": fd, "target": "/etc/passwd"} for fd in range(5, 105)]
    table = {"first": [{"pid": 4711, "fd": 3, "target": "/x"}], "last": [*last, {"pid": 4711, "fd": 3, "target": "/x"}]}
    rows = [(4711, ("file", "a file whose path is not recorded"), 100, 1, 9, 5)]
    (found,) = find(CLOSE, left_open=rows, processes=GROWS, descriptors=table)
    assert found.object.text == "/etc/passwd"
