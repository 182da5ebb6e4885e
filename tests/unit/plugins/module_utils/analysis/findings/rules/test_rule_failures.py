# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule failures: calls that failed on an object, and none of those that are normal."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.failures import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)

FAILED = {4711: {"status": 1, "end": 2.05}}  # the process ended with an error


def find(*calls, **parts):
    return list(RULE.find(make_capture(*calls, **parts)))


def test_a_file_that_a_program_cannot_do_without():
    (found,) = find(Call("openat", "/etc/x", "ENOENT"), Call("openat", "/etc/y"), processes=FAILED)
    assert found.statement == "web could not open /etc/x: no such file (ENOENT), once"
    assert found.container_pids == (711,)
    assert (found.first, found.severity) == ("2026-11-21T23:15:00.000+00:00", 40)
    assert found.next.endswith("""-e crashcart_containers=api -e "crashcart_command='ls -ld /etc/x'\"""")


def test_many_programs_and_calls_on_one_object_are_one_finding():
    calls = [
        Call("openat", "/etc/x", "EACCES", count=3, first=2, last=4),
        Call("open", "/etc/x", "EACCES", program="cat", pid=4712),
        Call("openat", "/etc/x", "EACCES", program="id", pid=4713),
        Call("openat", "/etc/x", count=2, first=1, last=1),
    ]
    (found,) = find(*calls)
    assert (
        found.statement
        == "web and 2 other programs could not open /etc/x: permission denied (EACCES), 5 of 7 times within 2 s"
    )
    assert (found.container_pids, found.severity) == ((711, 712, 713), 60)
    assert "namei -l /etc/x" in found.next


def test_a_file_that_is_asked_for_all_the_time():
    again = Call("openat", "/etc/x", "ENOENT", count=5, first=1, last=5)
    (found,) = find(again)
    assert found.statement == "web could not open /etc/x: no such file (ENOENT), 5 of 5 times within 4 s"
    assert found.severity == 60
    assert find(again, processes={4711: {"status": 0, "end": 5.01}}) == []
    assert find(Call("newfstatat", "/etc/x", "ENOENT", count=500, first=1, last=9)) == []


@pytest.mark.parametrize(
    "others",
    [
        [Call("openat", "/usr/lib/x", first=3, last=3)],  # a search
        [Call("openat", "/usr/lib/x", first=3, last=3, program="cc1", pid=4711)],
        [Call("newfstatat", "/etc/x", first=3, last=3, program="other", pid=9)],  # it came
        [Call("unlink", "/etc/x", first=1, last=1)],  # it went
        [Call("rename", "/tmp/y -> /etc/x", first=1, last=1)],
        [Call("write", ("path", "/tmp/full"), "ENOSPC")],  # another cause
    ],
)
def test_what_a_search_finds_in_the_end_is_no_finding(others):
    assert find(Call("openat", "/etc/x", "ENOENT"), *others, processes=FAILED) == []


def test_an_open_that_was_found_before_and_fails_later_is_told():
    found = find(Call("openat", "/etc/x", first=1, last=1), Call("openat", "/etc/x", "ENOENT"), processes=FAILED)
    assert [finding.often for finding in found] == ["1 of 2 times"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/etc/ld.so.preload",
            "/usr/lib/locale/locale-archive",
            "/usr/share/locale/de/LC_MESSAGES/ls.mo",
            "/var/run/nscd/socket",
        ),
        *(
            "/proc/5/stat",
            "/sys/fs/cgroup/cpu.max",
            "/usr/lib/python3/x.cpython-311.pyc",
            "/usr/bin/pyvenv.cfg",
            "/root/.bashrc",
        ),
        *(
            "/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/libm.so.6",
            "/app/node_modules/x",
            "/app/package.json",
            "<string>",
        ),
    ],
)
def test_a_file_that_programs_do_without_is_no_finding(path):
    assert find(Call("openat", path, "ENOENT", count=9, first=1, last=2), processes=FAILED) == []


@pytest.mark.parametrize(
    ("missing", "there"),
    [("/usr/lib/python3/x.so", "/opt/x.py"), ("/app/x", "/app/x.js"), ("/app/x.js", "/app/x/index.js")],
)
def test_modules_of_languages_are_searched_by_name(missing, there):
    calls = [Call("openat", missing, "ENOENT"), Call("openat", there, first=1, last=1)]
    assert find(*calls, processes=FAILED) == []


def test_only_the_last_file_that_was_not_found_ended_the_program():
    calls = [
        Call("openat", f"/{name}", "ENOENT", first=time, last=time)
        for name, time in (("a", 1.9), ("b", 2.0), ("c", 1.95))
    ]
    (found,) = find(*calls, Call("access", "/d", "ENOENT", first=2.01, last=2.01), processes=FAILED)
    assert found.object.text == "/b"
    # Another program of the same process ended.
    assert find(*calls, Call("read", None, program="sh", first=2.02, last=2.02), processes=FAILED) == []


@pytest.mark.parametrize(
    "call",
    [
        Call("read", ("socket", "x"), "EAGAIN"),
        Call("connect", ("peer", "x"), "EINPROGRESS"),
        Call("ioctl", "/dev/pts/0", "ENOTTY"),
        Call("wait4", None, "ECHILD"),
        Call("kill", None, "ESRCH"),
        Call("kill", None, "EPERM"),
        Call("mkdir", "/tmp", "EEXIST"),
        Call("getxattr", "/tmp", "ENODATA"),
        Call("setxattr", "/tmp", "EOPNOTSUPP"),
        Call("statx", "/tmp", "ENOSYS"),
        Call("setsockopt", ("socket", "x"), "ENOPROTOOPT"),
        Call("getpeername", ("socket", "x"), "ENOTCONN"),
        Call("lseek", ("pipe", "x"), "ESPIPE"),
        Call("close", None, "EBADF", count=500),
        Call("futex", None, "ETIMEDOUT", count=500),
        Call("read", "/x", "512"),
        Call("readlink", "/x", "EINVAL"),
        Call("epoll_ctl", None, "EPERM"),
        Call("openat", None, "ENOENT", count=50),
        Call("openat", "/proc/1/environ", "EACCES"),
        Call("read", ("path", "/dev/ptmx"), "EIO"),
        Call("access", "/etc/x", "EACCES"),
        Call("openat", "/x"),
    ],
)
def test_what_is_normal_or_about_nothing_is_no_finding(call):
    assert find(call) == []


def test_a_file_opened_for_reading_after_all_is_no_finding():
    assert find(Call("openat", "/x", "EACCES"), Call("openat", "/x", first=3, last=3)) == []


def test_without_paths_a_program_that_ends_is_told_with_what_is_missing():
    (found,) = find(Call("openat", None, "ENOENT", count=19, program="cat"), processes=FAILED)
    assert found.statement == "cat ended with status 1 after it could not open a file: no such file (ENOENT), once"
    assert (found.confidence, found.missing) == ("inferred", "what it was about: its path was not recorded")
    assert "crashcart_paths=true" in found.next
    # A search that finds, and a process that goes on.
    assert find(Call("openat", None, "ENOENT"), Call("openat", None, first=3, last=3), processes=FAILED) == []
    assert find(Call("openat", None, "ENOENT", count=19)) == []


def test_without_paths_calls_after_the_last_success_tell_of_a_file_that_is_asked_for_all_the_time():
    calls = [Call("openat", None, "ENOENT", first=time, is_long=True) for time in (0.5, 2, 3, 4)]
    rows = [Call("openat", None, "ENOENT", count=4, first=0.5, last=4), Call("openat", None, first=1, last=1)]
    (found,) = find(*calls, *rows)
    assert found.statement == "web could not open a file: no such file (ENOENT), 3 times within 2 s"


def test_without_paths_a_denied_file_is_told():
    (found,) = find(Call("openat", None, "EACCES"))
    assert found.statement == "web could not open a file: permission denied (EACCES), once"
    assert (found.confidence, found.severity) == ("likely", 40)


def test_other_rules_tell_of_limits_connections_and_denied_calls():
    calls = [
        Call("openat", "/x", "EMFILE"),
        Call("write", "/x", "ENOSPC"),
        Call("connect", ("peer", "10.0.0.7:1 (tcp)"), "ECONNREFUSED"),
        Call("mount", "/x", "EPERM"),
        Call("chown", "/x", "EPERM"),
        Call("execve", "/x", "ENOEXEC"),
    ]
    assert find(*calls) == []


def test_loss_is_said():
    (found,) = find(Call("openat", "/x", "EIO"), lost=7)
    assert (found.missing, found.severity) == ("7 events were lost", 80)


def make_polls(*times, thing="/etc/x"):
    calls = [Call("newfstatat", thing, "ENOENT", first=time, is_long=True) for time in times]
    return [*calls, Call("newfstatat", thing, "ENOENT", count=len(times), first=times[0], last=times[-1])]


def test_a_file_that_is_looked_for_at_steady_intervals():
    (found,) = find(*make_polls(1, 1.5, 2, 2.5, 3.1))
    assert found.statement == "web could not find /etc/x: no such file (ENOENT), 5 of 5 times within 2.1 s"
    (found,) = find(*make_polls(1, 1.5, 2, 2.5, 3.1, thing=None))
    assert (
        found.statement
        == "web looks for a file by newfstatat all the time: no such file (ENOENT), 5 times within 2.1 s"
    )
    # One that came late.
    assert len(find(*make_polls(1, 1.5, 2, 2.5, 3, 3.5, 6))) == 1
    # As requests come.
    assert find(*make_polls(1, 1.01, 2, 2.5, 3.1)) == []
    assert find(*make_polls(*(1 + 0.002 * index for index in range(1000)))) == []


@pytest.mark.parametrize("error", ["EACCES", "EPERM", "EROFS"])
@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("mkdir", "/app/__pycache__"),
        ("openat", "/app/__pycache__/m1.cpython-311.pyc.139632544515248"),
        ("mkdir", "/tmp/hsperfdata_app"),
    ],
)
def test_byte_code_and_counters_that_cannot_be_written_are_done_without(call, path, error):
    assert find(Call(call, path, error)) == []
    assert find(Call(call, "/app/cache/x", error))


def test_a_library_that_is_missing():
    folders = ("/lib", "/usr/lib", "/lib/x86_64-linux-gnu")
    tries = [
        Call("openat", f"{folder}/libpq.so.5", "ENOENT", last=2 + place / 100) for place, folder in enumerate(folders)
    ]
    ended = {4711: {"status": 127, "end": 2.05}}
    (found,) = find(*tries, processes=ended)
    assert found.statement == "web could not open /lib/x86_64-linux-gnu/libpq.so.5: no such file (ENOENT), once"
    assert find(*tries, processes=FAILED) == []
    assert find(*tries, Call("openat", "/opt/libpq.so.5", first=2.04, last=2.04), processes=ended) == []


def test_a_program_that_was_told_to_end_did_not_end_for_want_of_a_file():
    missing = Call("openat", "/srv/page", "ENOENT")
    assert find(missing, processes=FAILED)
    assert find(missing, processes={4711: {"status": 143, "end": 2.05}}) == []


def test_an_address_that_cannot_be_had():
    (found,) = find(Call("bind", ("socket", "TCP socket (IPv4)"), "EADDRNOTAVAIL"), processes=FAILED)
    assert found.statement == "web could not bind TCP socket (IPv4): no such local address (EADDRNOTAVAIL), once"
    assert find(Call("bind", ("socket", "TCP socket (IPv6)"), "EADDRNOTAVAIL")) == []
    used = Call("bind", ("socket", "TCP socket (IPv4)"), "EADDRINUSE")
    assert find(used) and find(used, processes=FAILED)
    assert find(used, processes={4711: {"status": 0, "end": 2.05}}) == []  # it is there already
