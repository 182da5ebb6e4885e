# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule failures: calls that failed on an object, and none of those that are normal."""

from __future__ import annotations

import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.failures import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


def test_a_failure_is_told_with_its_object_and_how_often_it_was_tried():
    (found,) = find(
        Call("openat", "/etc/x", "ENOENT", count=3, first=2, last=3),
        Call("openat", "/etc/x", "ENOENT", count=1, first=1, last=1, pid=4712),
        Call("openat", "/etc/x", count=2),
        Call("openat", "/etc/y"),
    )
    assert found.statement == "web: openat /etc/x failed with ENOENT"
    assert found.often == "4 of 6 times"
    assert found.container_pids == (711, 712)
    assert (found.first, found.last) == ("2026-11-21T23:14:59.000+00:00", "2026-11-21T23:15:01.000+00:00")
    assert found.next.endswith("""-e crashcart_containers=api -e "crashcart_command='ls -ld /etc/x'\"""")


def test_a_refused_connection_is_worse_than_a_missing_file():
    missing, refused = find(
        Call("openat", "/etc/x", "ENOENT"), Call("connect", ("peer", "10.0.0.7:5432 (tcp)"), "ECONNREFUSED")
    )
    assert refused.severity > missing.severity
    assert refused.statement == "web: connect 10.0.0.7:5432 (tcp) failed with ECONNREFUSED"


@pytest.mark.parametrize(
    "call",
    [
        Call("read", ("socket", "x"), "EAGAIN"),
        Call("connect", ("peer", "x"), "EINPROGRESS"),
        Call("ioctl", "/dev/pts/0", "ENOTTY"),
        Call("wait4", None, "ECHILD"),
        Call("read", "/x", "512"),
        Call("openat", None, "ENOENT"),
        Call("openat", "/x"),
    ],
)
def test_what_is_normal_or_about_nothing_is_no_finding(call):
    assert find(call) == []


def test_loss_is_said():
    (found,) = find(Call("openat", "/x", "EIO"), lost=7)
    assert found.missing == "7 events were lost"
