# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands as users write them, and what is said of how they ended."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    CONTAINER,
    HOST,
    HOST_NAMESPACES,
    NAMESPACES,
    TOOLS,
    Command,
    ExecutionError,
    Output,
    Result,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.reports import note_failures, report_results
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import STREAMS, Sink
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User, UserError
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError


def parse(**options):
    return parse_command(CommandOptions(**options))


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
    env = {"A": "True", "N": 5, "T": True, "F": False, "V": 1.1}
    command = parse(argv=["env"], env=env, stdin="ä", chdir="/tmp", timeout_s=1.5)
    spelled = {"A": "True", "N": "5", "T": "true", "F": "false", "V": "1.1"}
    assert command == Command(("env",), spelled, "ä".encode(), "/tmp", 1.5)


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
        ({"cmd": "a", "env": {"A": None}}, "A has no value"),
        ({"cmd": "a", "env": {"A": ["x"]}}, "A is a list; a variable is a text"),
        ({"cmd": "a", "env": {"A": {}}}, "A is a dict; a variable is a text"),
    ],
)
def test_what_is_no_command_is_refused(options, message):
    with pytest.raises(ExecutionError, match=message):
        parse(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rights": CONTAINER, "namespaces": ["net"]}, "leave out `namespaces`"),
        ({"rights": CONTAINER, "capabilities": []}, "leave out `namespaces` and `capabilities`"),
        ({"namespaces": ["mnt", "net"]}, "without mnt or pid .* rights=host"),
        ({"rights": TOOLS, "namespaces": ["pid"]}, "without mnt or pid .* rights=host"),
        ({"namespaces": []}, "name at least one"),
        ({"capabilities": ["net_raw", "cap_nonsense"]}, "none called 'cap_nonsense'; it has CHOWN"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ExecutionError, match=message):
        parse(cmd="x", **options)


def test_choices():
    assert parse(cmd="x") == Command(
        ("x",), rights=TOOLS, namespaces=NAMESPACES, capabilities=None, trust_container=False
    )
    assert parse(cmd="x", rights=CONTAINER).namespaces == NAMESPACES
    assert parse(cmd="x", rights=HOST).namespaces == HOST_NAMESPACES
    assert parse(cmd="x", rights=HOST, namespaces=["net"], capabilities=["CHOWN", "KILL"]) == Command(
        ("x",), rights=HOST, namespaces=("net",), capabilities=0x21
    )
    assert parse(cmd="x", namespaces=["mnt", "pid"]).namespaces == ("mnt", "pid", "user")


def make_result(**values):
    return Result(**{"container": "web", "id": "0" * 64, "rc": 0, "start": 1.0, "end": 2.0, **values})


def make_sinks(stdout=b"", stderr=b""):
    sinks = {stream: Sink(None) for stream in STREAMS}
    sinks["stdout"].write(stdout)
    sinks["stderr"].write(stderr)
    return sinks


def report(results, sinks, output=None):
    reports = report_results(results, sinks, output or Output())
    outcome = Outcome()
    note_failures(reports, outcome, COMMAND)
    outcome.check(results=reports)
    return reports


COMMAND = Command(("x",), timeout_s=2.0)


def test_report_of_commands_that_ended():
    (one,) = report([make_result()], [make_sinks(b"a\nb\n", b"\xff")])
    assert one["stdout"] == "a\nb\n"
    assert one["stdout_lines"] == ["a", "b"]
    assert one["stderr_lines"] == ["\ufffd"]
    assert (one["container"], one["rc"], one["timed_out"]) == ("web", 0, False)
    assert "error" not in one
    assert "msg" not in one


@pytest.mark.parametrize(
    ("stderr", "output", "said"),
    [
        (b"", Output(), ""),
        (b"first\nlast \n\n \n", Output(), ": last"),
        (b"x" * 300, Output(), ": " + "x" * 200),
        (b"api is not there\n", Output(), ": api is not there"),
        (b"first", Output(encoding="base64"), ""),
    ],
)
def test_report_of_a_command_that_ended_badly(stderr, output, said):
    with pytest.raises(FleetError) as caught:
        report([make_result(rc=3, stderr_size=len(stderr))], [make_sinks(b"fine", stderr)], output)
    assert str(caught.value) == f"container web: the command ended with exit code 3{said}"
    assert caught.value.result["failed_containers"] == []
    assert caught.value.result["results"][0]["rc"] == 3


def test_report_of_a_command_that_ended_badly_and_whose_words_are_in_a_file(tmp_path):
    sinks = {stream: Sink(None, -1, str(tmp_path / stream)) for stream in STREAMS}
    with pytest.raises(FleetError, match="exit code 1; .*/stderr has what it said"):
        report([make_result(rc=1, stderr_size=9)], [sinks], Output(dest=str(tmp_path)))


def test_report_in_base64():
    (one,) = report([make_result()], [make_sinks(b"\x00\xff")], Output(encoding="base64"))
    assert (one["stdout"], one["stderr"]) == ("AP8=", "")
    assert "stdout_lines" not in one


def test_report_of_commands_that_failed_names_all_and_keeps_all_results():
    results = [
        make_result(),
        make_result(container="db", error="it is gone"),
        make_result(container="slow", timed_out=True, rc=137),
        make_result(container="slower", timed_out=True, rc=137),
    ]
    sinks = [make_sinks(b"fine"), make_sinks(), make_sinks(), make_sinks()]
    with pytest.raises(FleetError) as caught:
        report(results, sinks)
    assert (
        str(caught.value)
        == "3 of 3 containers failed: container db: it is gone; container slow, slower: killed after 2 s"
    )
    reports = caught.value.result["results"]
    assert [one["container"] for one in reports] == ["web", "db", "slow", "slower"]
    assert reports[0]["stdout"] == "fine"
    assert reports[1]["msg"] == "it is gone"


@pytest.mark.parametrize("spec", ["nobody", "nobody:7", "99999999999", "\u0663"])
def test_a_name_that_is_the_hosts_root_by_a_containers_files_is_refused(spec):
    assert isinstance(execution._refuse_hidden_root(spec, User(0, 7)), UserError)
    assert execution._refuse_hidden_root(spec, User(100000)) == User(100000)  # of a user namespace


@pytest.mark.parametrize("spec", ["root", "root:7", "0", "0:nobody"])
def test_who_asks_for_root_gets_root(spec):
    assert execution._refuse_hidden_root(spec, User(0, 7)) == User(0, 7)
