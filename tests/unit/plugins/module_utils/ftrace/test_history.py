# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences about the start and the end of a trace."""

from __future__ import annotations

import io
import os
import pwd
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import history

BEGUN = {"time": 1790000000.25, "user": "root", "login": "alice"}
BY_ITSELF = {"time": 1790000600.25, "user": None, "login": None}
BY_BOB = {"time": 1790000060.0, "user": "root", "login": "bob"}
START = "begun 2026-09-21 14:13:20 UTC by root (login alice)"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ((BEGUN, None, None, 1790000600.25, True), f"{START}, records until 2026-09-21 14:23:20 UTC by its ttl"),
        ((BEGUN, None, None, None, True), f"{START}, records without a ttl"),
        (
            (BEGUN, BY_ITSELF, "its ttl is over", None, False),
            f"{START}, stopped 2026-09-21 14:23:20 UTC: its ttl is over",
        ),
        ((BEGUN, BY_BOB, None, None, False), f"{START}, stopped 2026-09-21 14:14:20 UTC by root (login bob)"),
        # Somebody has switched it off in tracefs, or a trigger has.
        ((BEGUN, None, None, None, False), f"{START}, does not record"),
        (
            ({**BEGUN, "login": None}, None, None, None, True),
            "begun 2026-09-21 14:13:20 UTC by root, records without a ttl",
        ),
        (
            ({**BEGUN, "login": "root"}, None, None, None, True),
            "begun 2026-09-21 14:13:20 UTC by root, records without a ttl",
        ),
        # Of an older version, or of another boot.
        ((None, None, None, None, True), "begun by somebody who is not known, records without a ttl"),
        (
            (None, BY_ITSELF, "its ttl is over", None, False),
            "begun by somebody who is not known, stopped 2026-09-21 14:23:20 UTC: its ttl is over",
        ),
    ],
)
def test_the_summary(values, line):
    *known, is_on = values
    assert history.summarize(*known, is_on=is_on) == line


@pytest.mark.parametrize(
    ("loginuid", "sudo_user", "login"),
    [
        ("1", "alice", pwd.getpwuid(1).pw_name),  # which the kernel knows goes first
        ("4294967295", "alice", "alice"),
        ("4294967295", "", None),
        ("4294967295", None, None),
        ("3999999999", None, "3999999999"),
        (None, "alice", "alice"),
        (None, None, None),
    ],
)
def test_who_calls(monkeypatch, loginuid, sudo_user, login):
    def open_file(path, *arguments, **options):
        if path != "/proc/self/loginuid":
            return open(path, *arguments, **options)
        if loginuid is None:
            raise FileNotFoundError(path)
        return io.StringIO(loginuid)

    monkeypatch.setattr(history, "open", open_file, raising=False)
    monkeypatch.delenv("SUDO_USER", raising=False)
    if sudo_user is not None:
        monkeypatch.setenv("SUDO_USER", sudo_user)
    caller = history.describe_caller()
    assert caller["login"] == login
    assert caller["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert 0 <= time.time() - caller["time"] < 10
