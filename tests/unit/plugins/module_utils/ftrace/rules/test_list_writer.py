# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import select
import threading

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import list_writer
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.list_writer import ListWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

UNRECORDED = "set_event_notrace_pid"
US = os.getpid()  # only of living threads is anything written


class SlowInstance:
    """Stands for a trace instance whose kernel takes as long for a write as the test wants."""

    def __init__(self):
        self.lists = {pid_lists.EVENT_PIDS: set(), UNRECORDED: set()}
        self.writes = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.refused = ()
        self.expected = []

    def let_end(self, count):
        """Let the next COUNT writes end."""
        for _number in range(count):
            self.may_end.release()

    def read_pids(self, file):
        return set(self.lists[file])

    def add_pids(self, file, tids):
        self.writes.append((file, set(tids)))
        self.begun.release()
        self.may_end.acquire()
        if file in self.refused:
            raise TraceError("the kernel refuses it")
        self.lists[file] |= set(tids)


@pytest.fixture
def instance():
    return SlowInstance()


@pytest.fixture
def writer(instance):
    writer = ListWriter(instance, instance.expected.append)
    yield writer
    instance.let_end(100)
    writer.close()


@pytest.fixture
def tids():
    """Give the ids of three living threads."""
    end = threading.Event()
    threads = [threading.Thread(target=end.wait) for _number in range(3)]
    for thread in threads:
        thread.start()
    yield [thread.native_id for thread in threads]
    end.set()


def test_what_comes_during_a_write_goes_with_the_next_and_what_is_recorded_goes_first(writer, instance, tids):
    writer.add({US})
    instance.begun.acquire()
    assert writer.is_busy
    writer.add({tids[0]}, UNRECORDED)
    writer.add({tids[1]})
    writer.add({tids[2]})
    instance.let_end(3)
    writer.wait()
    assert not writer.is_busy
    assert instance.expected == [file for file, _tids in instance.writes]
    assert instance.writes == [
        (pid_lists.EVENT_PIDS, {US}),
        (pid_lists.EVENT_PIDS, {tids[1], tids[2]}),
        (UNRECORDED, {tids[0]}),
    ]


def test_what_is_in_the_list_or_has_ended_is_not_written(writer, instance):
    instance.lists[pid_lists.EVENT_PIDS] = {US}
    writer.add({US, 0x7FFFFFFE})
    writer.add(set())
    writer.wait()
    assert (instance.writes, instance.expected) == ([], [])


def test_it_tells_when_all_is_written(writer, instance):
    writer.wait()
    writer.check()
    assert not syscalls.is_readable(writer.fd)
    writer.add({US})
    instance.begun.acquire()
    assert not syscalls.is_readable(writer.fd)
    instance.may_end.release()
    select.select([writer.fd], [], [], 10)
    writer.check()
    assert not syscalls.is_readable(writer.fd)


def test_what_nobody_has_foreseen_is_a_refusal(writer, instance):
    instance.read_pids = None
    writer.add({US})
    with pytest.raises(TraceError, match="not callable"):
        writer.wait()
    with pytest.raises(TraceError, match="not callable"):
        writer.check()
    assert not writer.is_busy


def test_nobody_waits_for_ever(writer, instance, monkeypatch):
    monkeypatch.setattr(list_writer, "_MAX_WAIT_S", 0.05)
    writer.add({US})
    with pytest.raises(TraceError, match="not taken a list of threads"):
        writer.wait()


def test_a_refusal_is_told(writer, instance):
    instance.refused = (pid_lists.EVENT_PIDS,)
    instance.may_end.release()
    writer.add({US})
    with pytest.raises(TraceError, match="refuses"):
        writer.wait()
    with pytest.raises(TraceError, match="refuses"):
        writer.check()


def test_what_cannot_be_left_out_is_recorded_in_vain(writer, instance):
    instance.refused = (UNRECORDED,)
    instance.may_end.release()
    writer.add({US}, UNRECORDED)
    writer.wait()


def test_a_closed_writer_gives_up_what_it_has_not_begun(instance):
    writer = ListWriter(instance, instance.expected.append)
    writer.add({US})
    instance.begun.acquire()
    writer.add({US}, UNRECORDED)
    threading.Timer(0.1, instance.may_end.release).start()
    writer.close()
    assert instance.writes == [(pid_lists.EVENT_PIDS, {US})]
