# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule programs: why a program could not be executed, and searches that find one."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.programs import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.histories import (
    Lived,
    add_lives,
)

_FOLDERS = ("/usr/local/bin", "/usr/bin", "/bin")


def find(*calls, lives=()):
    return list(RULE.find(add_lives(make_capture(*calls), *lives)))


def search(name, error="ENOENT", call="execve", folders=_FOLDERS, **parts):
    return [Call(call, f"{folder}/{name}", error, **parts) for folder in folders]


@pytest.mark.parametrize(
    ("error", "part"),
    [
        ("ENOEXEC", "another architecture"),
        ("EACCES", "no executable file"),
        ("ETXTBSY", "open for writing"),
        ("E2BIG", "arguments and environment are too long"),
        ("ELIBBAD", "its interpreter"),
    ],
)
def test_an_error_is_told_with_its_reason(error, part):
    (found,) = find(Call("execve", "/opt/app", error))
    assert found.statement.startswith("web cannot run /opt/app: ")
    assert part in found.statement
    assert found.statement.endswith(f"({error})")
    assert found.severity >= 80


def test_a_missing_program_and_a_missing_interpreter_are_told_apart_where_the_file_was_seen():
    (found,) = find(Call("execve", "/opt/run.sh", "ENOENT"))
    assert "no such file, or its interpreter" in found.statement
    (found,) = find(Call("execve", "/opt/run.sh", "ENOENT"), Call("newfstatat", "/opt/run.sh"))
    assert "the file is there, its interpreter" in found.statement
    assert found.confidence == "likely"
    assert "od -c -N 128 /opt/run.sh" in found.next


def test_a_carriage_return_is_told_where_the_path_has_it():
    (found,) = find(*search("sh\r", program="env"))
    assert found.statement.startswith("env cannot run sh: the #! line of its script ends with a carriage return (\\r)")


def test_a_search_in_vain_is_one_finding():
    (found,) = find(*search("mytool"), *search("mytool", pid=4712))
    assert found.statement == "web cannot run mytool: it is in none of the 3 folders of PATH"
    assert found.count == 2


def test_a_search_that_finds_is_none():
    assert find(*search("ls"), Call("execve", "/sbin/ls", program="ls", last=2.1)) == []


def test_a_denied_file_that_a_search_has_found_is_told():
    (found,) = find(*search("tool"), Call("execve", "/sbin/tool", "EACCES"))
    assert found.statement.startswith("web cannot run /sbin/tool: it is no executable file")


def test_a_script_without_a_first_line_is_run_by_the_shell_itself():
    call = Call("execve", "/opt/run", "ENOEXEC", program="sh", pid=4720)
    assert find(call, lives=[Lived("sh", 4720, end=3, status=0)]) == []
    assert len(find(call, lives=[Lived("sh", 4720, end=3, status=126)])) == 1


def test_a_command_that_a_shell_does_not_find_is_told_by_its_exit_code():
    calls = search("mytool", call="newfstatat", program="sh", pid=4720)
    (found,) = find(*calls, lives=[Lived("sh", 4720, end=3, status=127)])
    assert found.statement == "sh cannot run mytool: it is in none of the 3 folders of PATH (exit code 127)"
    assert find(*calls, lives=[Lived("sh", 4720, end=3, status=0)]) == []  # command -v
    assert (
        find(*calls, Call("newfstatat", "/sbin/mytool", program="sh", pid=4720), lives=[Lived("sh", 4720, status=127)])
        == []
    )


def test_without_paths_the_finding_says_so():
    (found,) = find(Call("execve", None, "ENOENT", count=7))
    assert found.statement.startswith("web cannot run a program (its path is not recorded)")
    assert (found.count, found.missing) == (1, "the path of the program")


def test_limits_are_told_by_another_rule():
    assert find(Call("execve", "/opt/app", "ENOMEM")) == []
