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


def test_a_fifo_that_another_process_has_open():
    holders = [{"pid": pid, "fd": 5, "target": "/tmp/log"} for pid in (4711, 4712)]
    for entries, count in ((holders, 0), (holders[:1], 1)):
        found = find(whole("read", "/tmp/log"), descriptors={"last": entries, "left_out": {"last": 0}})
        assert len(found) == count


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
    for value in (0x80000000, 0xFFFFFFFF):  # a semaphore of musl
        assert find_in_two_threads(128, value) == []


_MUTEX, _CONDITION = (0x7F00, 128, 2, 0, 0, 0), (0x7F80, 393, 0, 0, 0, 0)
_LOCKED = (
    "web waits for a mutex, and none of its threads does anything that could release it: for all 10 s of the trace"
)


def find_in_threads(*calls, **manifest):
    """Return what is found of CALLS, each of a thread of process 4711 with a number of its own."""
    capture = add_lives(make_capture(*calls, **manifest), span=(0, 10))
    capture.tables.tasks.tid[:] = range(4711, 4711 + len(capture.tables.tasks.tid))
    return list(RULE.find(capture))


@pytest.mark.parametrize("value", [2, 0x80000010])  # of glibc and of musl
def test_a_mutex_of_one_thread_counts_if_no_other_does_anything(value):
    mutex = (0x7F00, 128, value, 0, 0, 0)
    (found,) = find(whole("futex", args=mutex))
    assert (found.statement, found.confidence) == (_LOCKED, "inferred")
    others = whole("futex", args=_CONDITION, program="helper")
    (found,) = find_in_threads(whole("futex", args=mutex), others)
    assert found.statement == _LOCKED


@pytest.mark.parametrize(
    "other",
    [
        whole("epoll_wait", program="helper"),
        whole("futex", program="helper", args=(0x7F80, 393, 0, 0x7FF0, 0, 0)),  # with a timeout
        wait("futex", None, 5.0, UNFINISHED, 5.0, args=_CONDITION, program="helper"),  # it did something before
        Call("getpid", program="helper"),
    ],
)
def test_a_mutex_of_one_thread_is_normal_where_another_one_may_release_it(other):
    assert find_in_threads(whole("futex", args=_MUTEX), other) == []


def test_a_condition_variable_of_one_thread_is_normal():
    assert find(whole("futex", args=_CONDITION)) == []


_CHILD = (720, 0, 0, 0, 0, 0)  # the number inside the container of process 4720


@pytest.mark.parametrize(("call", "args"), [("wait4", _CHILD), ("waitid", (1, *_CHILD[:5]))])
def test_a_child_that_hangs_is_told_where_nobody_does_anything(call, args):
    (found,) = find(whole(call, args=args, program="sh"), whole("pause", pid=4720))
    said = "sh waits for its child web, which does nothing itself (pause): for all 10 s of the trace"
    assert (found.statement, found.confidence, found.missing) == (said, "inferred", "what the child waits for")
    (found,) = find(whole(call, args=args, program="sh"), whole("futex", pid=4720, args=_MUTEX))
    assert found.statement == _LOCKED + "; sh waited for this child"


@pytest.mark.parametrize(
    ("parent", "others"),
    [
        (whole("wait4", args=(0xFFFFFFFF, 0, 0, 0, 0, 0)), [whole("pause", pid=4720)]),  # a shell waits for any child
        (whole("waitid", args=(0, *_CHILD[:5])), [whole("pause", pid=4720)]),
        (whole("wait4", args=_CHILD), [whole("epoll_wait", pid=4720)]),
        (whole("wait4", args=_CHILD), [whole("clock_nanosleep", pid=4720)]),
        # A server's first process waits for signals, and its children for requests.
        (whole("wait4", args=_CHILD), [whole("rt_sigsuspend", pid=4720), whole("epoll_wait", pid=4721)]),
        (whole("wait4", args=_CHILD), [whole("pause", pid=4720), Call("write", pid=4721)]),
        (whole("wait4", args=_CHILD), [whole("pause", pid=4721)]),  # another one
    ],
)
def test_a_wait_for_children_of_a_program_that_is_idle_is_normal(parent, others):
    assert find(parent, *others) == []


def test_a_wait_that_is_another_one_at_the_end_is_not_told():
    lock = whole("flock", "/x", args=(3, 2, 0, 0, 0, 0))

    def find_with(*waits, left_out=0):
        return find(lock, waits={"last": list(waits), "left_out": {"last": left_out}})

    same = {"tid": 4711, "number": 73, "args": [3, 2, 0, 0, 0, 0]}
    assert len(find_with(same)) == 1
    assert find_with({**same, "args": [4, 2, 0, 0, 0, 0]}) == []
    assert find_with({**same, "tid": 4712}) == []
    assert len(find_with(left_out=1)) == 1


def test_who_else_has_the_file_of_a_lock_open_is_told():
    def find_with(*pids):
        entries = [{"pid": pid, "fd": 3, "target": "/run/x.lock"} for pid in (4711, *pids)]
        programs = [whole("clock_nanosleep", pid=pid, program=f"helper{pid}") for pid in (4720, 4721, 4722)]
        calls = (whole("flock", args=(3, 2, 0, 0, 0, 0)), *programs)
        (found,) = find(*calls, descriptors={"last": entries, "left_out": {"last": 0}})
        assert found.confidence == "certain"
        return found.statement

    said = "web waits for a lock on /run/x.lock (flock): for all 10 s of the trace"
    assert find_with() == said
    assert find_with(4720) == said + "; helper4720 has it open, too"
    assert find_with(4720, 4721) == said + "; helper4720 and helper4721 have it open, too"
    assert find_with(4720, 4721, 4722) == said


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
