# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule denied: calls that seccomp denied, and those that need a capability."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.denied import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


def test_a_call_that_seccomp_denies():
    (found,) = find(Call("mount", None, "EPERM", count=3, flags=codes.DENIED))
    assert found.statement == "seccomp denied web the system call mount (EPERM), 3 times"
    assert (found.severity, found.confidence) == (40, "certain")
    assert "grep Seccomp /proc/1/status" in found.next


def test_a_call_that_seccomp_answers_by_a_signal():
    (found,) = find(Call("ptrace", None, flags=codes.DENIED | codes.TRAPPED))
    assert found.statement == "seccomp denied web the system call ptrace (SIGSYS), once"
    assert found.severity == 60


def test_a_denied_call_that_ended_the_program_is_worse():
    (found,) = find(Call("mount", None, "EPERM", flags=codes.DENIED), processes={4711: {"status": 32, "end": 2.1}})
    assert found.severity == 80


@pytest.mark.parametrize(
    ("call", "error"), [("clone3", "ENOSYS"), ("get_mempolicy", "EPERM"), ("io_uring_setup", "EPERM")]
)
def test_calls_that_programs_try_and_do_without(call, error):
    assert find(Call(call, None, error, count=1000, flags=codes.DENIED)) == []  # for each thread
    assert find(Call(call, None, error)) == []


def test_a_call_that_needs_a_capability():
    (found,) = find(Call("bind", ("socket", "TCP socket (IPv4)"), "EACCES"))
    assert found.statement == "web was refused bind with EACCES, once; such calls need CAP_NET_BIND_SERVICE"
    assert (found.confidence, found.missing) == ("likely", "which of capabilities, AppArmor or SELinux refused it")
    (found,) = find(Call("chown", "/srv/x", "EPERM", count=2))
    assert found.statement == "web was refused chown on /srv/x with EPERM, 2 times; such calls need CAP_CHOWN"


@pytest.mark.parametrize(
    ("call", "error"), [("kill", "EPERM"), ("setsockopt", "EPERM"), ("openat", "EACCES"), ("mount", "EINVAL")]
)
def test_what_is_no_denied_call(call, error):
    assert find(Call(call, None, error)) == []
