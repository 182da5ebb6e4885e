# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands as users write them, and what is said of how they ended."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Command, ExecutionError, Result


def parse(**options):
    defaults = {"argv": None, "cmd": None, "env": {}, "stdin": None, "chdir": "/", "timeout_s": None}
    return execution.parse_command(**{**defaults, **options})


@pytest.mark.parametrize(
    ("cmd", "argv"),
    [
        ("ls -l /", ("ls", "-l", "/")),
        ("echo 'a b' \"c d\" e\\ f", ("echo", "a b", "c d", "e f")),
        ("echo $HOME; rm *", ("echo", "$HOME;", "rm", "*")),
        ("echo ''", ("echo", "")),
    ],
)
def test_a_command_line_is_split_into_words_and_not_interpreted(cmd, argv):
    assert parse(cmd=cmd).argv == argv


def test_all_of_a_command():
    command = parse(argv=["env"], env={"A": "1", "N": 5, "T": True}, stdin="ä", chdir="/tmp", timeout_s=1.5)
    assert command == Command(("env",), {"A": "1", "N": "5", "T": "True"}, "ä".encode(), "/tmp", 1.5)


def test_words_win_over_a_line_and_are_taken_as_they_are():
    assert parse(argv=["a b", "'c"], cmd="other").argv == ("a b", "'c")


def test_no_stdin_is_not_an_empty_one():
    assert parse(cmd="x").stdin is None
    assert parse(cmd="x", stdin="").stdin == b""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "empty"),
        ({"cmd": ""}, "empty"),
        ({"cmd": "  "}, "empty"),
        ({"cmd": "''"}, "empty"),
        ({"argv": []}, "empty"),
        ({"argv": [""]}, "empty"),
        ({"argv": ["", "x"]}, "empty"),
        ({"cmd": "echo 'open"}, "cannot be split"),
        ({"cmd": "echo \\"}, "cannot be split"),
        ({"argv": ["a\0b"]}, "NUL"),
        ({"argv": ["a", "b\0"]}, "NUL"),
        ({"cmd": "a", "chdir": "/\0"}, "NUL"),
        ({"cmd": "a", "env": {"A": "\0"}}, "NUL"),
        ({"cmd": "a", "env": {"A\0": ""}}, "NUL"),
        ({"cmd": "a", "env": {"A=B": ""}}, "holds '='"),
        ({"cmd": "a", "env": {"": "x"}}, "name is empty"),
    ],
)
def test_what_is_no_command_is_refused(options, message):
    with pytest.raises(ExecutionError, match=message):
        parse(**options)


def make_result(**values):
    return Result(**{"container": "web", "id": "0" * 64, "rc": 0, "start": 1.0, "end": 2.0, **values})


COMMAND = Command(("x",), timeout_s=2.0)


def test_report_of_commands_that_ended():
    (report,) = execution._report([make_result(rc=3, stdout=b"a\nb\n", stderr=b"\xff")], COMMAND)
    assert report["stdout"] == "a\nb\n"
    assert report["stdout_lines"] == ["a", "b"]
    assert report["stderr_lines"] == ["\ufffd"]
    assert (report["container"], report["rc"], report["timed_out"]) == ("web", 3, False)
    assert "error" not in report
    assert "msg" not in report


def test_report_of_commands_that_failed_names_all_and_keeps_all_results():
    results = [
        make_result(stdout=b"fine"),
        make_result(container="db", error="it is gone"),
        make_result(container="slow", timed_out=True, rc=137),
        make_result(container="slower", timed_out=True, rc=137),
    ]
    with pytest.raises(ExecutionError) as caught:
        execution._report(results, COMMAND)
    assert str(caught.value) == "container db: it is gone; killed after 2 s in: slow, slower"
    reports = caught.value.result["results"]
    assert [report["container"] for report in reports] == ["web", "db", "slow", "slower"]
    assert reports[0]["stdout"] == "fine"
    assert reports[1]["msg"] == "it is gone"
