# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a container has ended, by its engine's description."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.endings import describe_end

GONE = "exec: /nonesuch: no such file or directory"


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"Status": "running", "ExitCode": 0}, ""),
        ({"Status": "created", "ExitCode": 127, "Error": GONE}, f"it was created and has never run: {GONE}"),
        ({"Status": "created", "ExitCode": 0, "Error": ""}, "it was created and has never run"),
        ({"Status": "exited", "ExitCode": 3}, "it ended with status 3"),
        (
            {"Status": "exited", "ExitCode": 137, "OOMKilled": True},
            "it ended with status 137, as the kernel killed a process of it for want of memory",
        ),
        (
            {"Status": "exited", "ExitCode": 127},
            "it ended with status 127, as runtimes say of a program that cannot be executed",
        ),
        ({}, ""),
        ({"Status": "exited", "ExitCode": 1, "Error": "x" * 999}, f"it ended with status 1: {'x' * 300}"),
    ],
)
def test_ends(state, text):
    assert describe_end({"State": state}) == text


def test_a_description_without_a_state():
    assert describe_end({}) == ""
