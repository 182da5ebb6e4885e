# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule locks: locks that a program tries to get in vain, and tries that are answers."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.locks import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

_LOCK = "/run/x.lock"


def find(*calls, **manifest):
    return list(RULE.find(make_capture(*calls, **manifest)))


def fail(thing=_LOCK, call="flock", error="EAGAIN", count=80, first=1.0, last=9.0, **parts):
    return Call(call, thing, error, count=count, first=first, last=last, **parts)


@pytest.mark.parametrize(("call", "error"), [("flock", "EAGAIN"), ("fcntl", "EAGAIN"), ("fcntl", "EACCES")])
def test_a_lock_that_is_never_got_is_told(call, error):
    (found,) = find(fail(call=call, error=error))
    said = f"web tries again and again to lock /run/x.lock, and never gets it: another one has the lock ({error}), 80 times within 8 s"
    assert (found.statement, found.missing, found.confidence) == (said, None, "certain")


def test_who_has_the_file_open_is_told():
    entries = [{"pid": pid, "fd": 3, "target": _LOCK} for pid in (4711, 4720)]
    holder = Call("getpid", program="backup", pid=4720)
    (found,) = find(fail(), holder, descriptors={"last": entries, "left_out": {"last": 0}})
    assert found.statement.endswith("within 8 s; backup has it open, too")


def test_of_a_file_without_a_name_the_path_is_missing():
    for thing in (None, ("file", "a file")):
        (found,) = find(fail(thing))
        assert "to lock a file, and" in found.statement
        assert found.missing == "the path"


@pytest.mark.parametrize(
    "calls",
    [
        [fail(count=9)],
        [fail(last=2.0)],
        [fail(error="ENOLCK")],
        [fail(call="openat")],
        [fail(), Call("flock", _LOCK, first=9.5, last=9.5)],  # it gets it in the end
        [fail(), Call("flock", _LOCK, first=0.5, last=5.0, count=4)],  # they take turns
    ],
)
def test_tries_that_are_answers_are_not_told(calls):
    assert find(*calls) == []


def test_an_earlier_success_is_none():
    assert len(find(fail(), Call("flock", _LOCK, first=0.5, last=0.5))) == 1
