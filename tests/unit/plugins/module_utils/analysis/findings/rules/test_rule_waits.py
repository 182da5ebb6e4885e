# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule waits: what was waited for, and the waits that are normal."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import (
    CONTINUED,
    TIMED_OUT,
    UNFINISHED,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.waits import RULE
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.captures import (
    Call,
    make_capture,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.findings.histories import (
    Lived,
    add_lives,
)

_PEER = ("peer", "10.0.0.7:5432 (tcp)")
_ALL = UNFINISHED | CONTINUED


def find(*calls, lives=(), span=(0, 10), **manifest):
    return list(RULE.find(add_lives(make_capture(*calls, **manifest), *lives, span=span)))


def wait(call, thing=None, longest=8.0, flags=0, first=1.0, args=(5, 0, 0, 0, 0, 0), **parts):
    return Call(call, thing, first=first, longest=longest, flags=flags, args=args, is_long=True, **parts)


def whole(call, thing=None, **parts):
    return wait(call, thing, 10.0, _ALL, 0.0, **parts)


def hold(when, pid, fd, target):
    return {"descriptors": {when: [{"pid": pid, "fd": fd, "target": target}], "left_out": {when: 0}}}


def test_a_lock_is_told_with_its_path_and_who_has_it():
    (found,) = find(wait("flock", "/run/x.lock", args=(3, 2, 0, 0, 0, 0)))
    assert found.statement == "web waited 8 s for a lock on /run/x.lock (flock)"
    assert found.confidence == "certain"
    (found,) = find(
        wait("flock", "/run/x.lock", args=(3, 2, 0, 0, 0, 0)),
        Call("flock", "/run/x.lock", program="backup", pid=4720, first=0.5, last=0.5),
    )
    assert found.statement == "web waited 8 s for a lock on /run/x.lock (flock); backup has it"
    assert found.confidence == "likely"


@pytest.mark.parametrize(("command", "count"), [(7, 1), (38, 1), (6, 0), (5, 0)])
def test_of_fcntl_only_the_commands_that_wait_for_a_lock_are_waits(command, count):
    assert len(find(wait("fcntl", "/run/x.lock", args=(3, command, 0, 0, 0, 0)))) == count


def test_a_wait_for_the_whole_trace_has_its_path_from_the_manifest():
    (found,) = find(whole("flock", args=(3, 2, 0, 0, 0, 0)), **hold("first", 4711, 3, "/run/x.lock"))
    assert found.statement == "web waits for a lock on /run/x.lock (flock): for all 10 s of the trace"


def test_a_wait_that_lasts_on_and_one_that_ended_with_the_process():
    (found,) = find(wait("flock", "/x", 9.0, UNFINISHED))
    assert found.statement == "web waits for a lock on /x (flock): for 9 s when the trace ended"
    (found,) = find(wait("flock", "/x", 5.0, UNFINISHED), lives=[Lived("web", 4711, end=6.0)])
    assert found.statement == "web waited 5 s for a lock on /x (flock), until it ended"
    assert find(wait("flock", "/x", 5.0, UNFINISHED)) == []  # its end was lost


def test_turns_at_accept_are_normal():
    assert find(whole("fcntl", "/run/accept.12 (deleted)", args=(3, 7, 0, 0, 0, 0))) == []


def test_a_peer_that_does_not_answer_is_told():
    asked = Call("sendto", _PEER, first=1.0, last=1.0)
    (found,) = find(asked, wait("recvfrom", _PEER, 9.0, UNFINISHED))
    assert found.statement == "web waits for an answer of 10.0.0.7:5432 (tcp): for 9 s when the trace ended"
    (found,) = find(asked, wait("poll", None, 8.99, UNFINISHED, 1.01))
    assert "for an answer of 10.0.0.7:5432 (tcp)" in found.statement
    assert found.confidence == "inferred"
    (found,) = find(wait("recvfrom", _PEER))
    assert found.statement == "web waited 8 s for data of 10.0.0.7:5432 (tcp)"
    assert found.confidence == "likely"
    (found,) = find(wait("connect", _PEER))
    assert found.statement == "web waited 8 s to connect to 10.0.0.7:5432 (tcp)"


def test_a_client_of_ours_that_is_quiet_is_normal():
    target = "tcp 10.0.0.2:8080->10.0.0.9:40000 ESTABLISHED"
    peer = ("peer", "10.0.0.9:40000 (tcp)")
    assert find(whole("recvfrom", peer), **hold("first", 4711, 5, target)) == []
    assert find(wait("read", ("socket", "accepted connection"))) == []
    asked = "tcp 10.0.0.2:40000->10.0.0.7:5432 ESTABLISHED"
    assert len(find(whole("recvfrom", _PEER), **hold("first", 4711, 5, asked))) == 1


def test_a_pipe_that_nobody_reads():
    (found,) = find(wait("write", ("pipe", "pipe:[77]"), args=(1, 0, 9, 0, 0, 0)))
    assert found.statement == "web waited 8 s to write to a pipe (its standard output) that nobody reads"
    (found,) = find(wait("write", args=(2, 0, 9, 0, 0, 0)))
    assert found.statement == "web waited 8 s to write to its standard error, which nobody reads"
    assert (found.confidence, found.missing) == ("likely", "what the descriptor refers to")


def test_a_pipe_that_nobody_writes_to():
    (found,) = find(whole("read"), **hold("last", 4711, 5, "pipe:[77]"))
    assert (
        found.statement == "web waits for data of a pipe that no other process can write to: for all 10 s of the trace"
    )
    two = [{"pid": pid, "fd": 5, "target": "pipe:[77]"} for pid in (4711, 4712)]
    assert find(whole("read"), descriptors={"last": two, "left_out": {"last": 0}}) == []


def test_files():
    (found,) = find(wait("fsync", "/data/wal", 1.5))
    assert found.statement == "web waited 1.5 s for the disk to take /data/wal (fsync)"
    (found,) = find(wait("newfstatat", "/mnt/nfs/x"))
    assert found.statement == "web waited 8 s for the file system: newfstatat /mnt/nfs/x"
    (found,) = find(wait("openat", "/run/fifo"))
    assert found.statement.startswith("web waited 8 s to open /run/fifo: a FIFO")
    assert find(wait("fsync", "/data/wal", 0.9)) == []


def test_the_parent_of_a_child_that_waits_is_told_with_it():
    (found,) = find(
        wait("flock", "/x", pid=4720),
        wait("wait4", None, 9.0, program="sh", pid=4711),
        lives=[Lived("sh", 4711), Lived("web", 4720, 4711, begin=0.5, end=9)],
    )
    assert found.statement == "web waited 8 s for a lock on /x (flock); sh waited for this child"


def test_a_mutex_counts_if_several_threads_wait_for_it():
    def find_in_two_threads(*args):
        calls = [whole("futex", program=name, args=(0x7F00, *args, 0, 0, 0)) for name in ("web", "helper")]
        capture = add_lives(make_capture(*calls), span=(0, 10))
        capture.tables.tasks.tid[1] = 4712
        return list(RULE.find(capture))

    (found,) = find_in_two_threads(128, 2)
    assert found.statement == "2 threads of web waited for the same mutex, 10 s at most"
    assert find_in_two_threads(393, 0) == []  # a condition variable
    assert find(whole("futex", args=(0x7F00, 128, 2, 0, 0, 0))) == []


@pytest.mark.parametrize(
    "call",
    [
        whole("epoll_wait", ("anon", "x")),
        whole("poll"),
        whole("select"),
        whole("accept4", ("socket", "tcp 0.0.0.0:80 LISTEN")),
        whole("clock_nanosleep"),
        whole("rt_sigtimedwait"),
        whole("pause"),
        whole("wait4"),
        whole("read", "/dev/pts/0"),
        whole("read", ("pipe", "pipe:[1]")),
        whole("read"),
        whole("read", ("anon", "anon_inode:[eventfd]")),
        whole("recvmsg", ("socket", "unix /run/x.sock")),
        wait("poll", None, 5.0, TIMED_OUT),
        wait("recvfrom", _PEER, 0.9),
    ],
)
def test_what_is_normal_is_not_told(call):
    assert find(call) == []


def test_what_is_long_depends_on_the_trace():
    assert find(wait("recvfrom", _PEER, 3.0), span=(0, 60)) == []
    assert len(find(wait("recvfrom", _PEER, 6.0), span=(0, 600))) == 1
