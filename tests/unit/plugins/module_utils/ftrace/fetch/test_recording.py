# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recordings on their way home, from the recorder's real files: what is taken, what waits, what is forgotten and what is told."""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch, outbox, recording
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.fetch import Home
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_reader import read_segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import handover, orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.writer import RecordingWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

SIZE = kernels.PAGE_SIZE
NAME = "crashcart-0123456789ab"
CONTAINER = Container("0123456789ab" + "c" * 52, "web", "exited", 0, "image", {"a": "b"})
LIMITS = Limits(is_recorded=True, max_bytes=1 << 30, rotate_bytes=SIZE, rotate_s=3600.0)
TASK = {"tid": 5, "tgid": 5, "comm": "nginx", "container_tid": 1, "compat": False}
RECORD = {
    "clock": "mono",
    "tasks": [TASK],
    "start": {"offset_ns": 1, "uncertainty_ns": 1, "real_time_ns": 2},
    "changed": {"offset_ns": 1, "uncertainty_ns": 1, "real_time_ns": 3},
    "specification": {"syscalls": None},
    "earlier_syscalls": [],
    "followed": {"exec": "none"},
}
END = {"time": {"offset_ns": 9, "uncertainty_ns": 1, "real_time_ns": 10}, "tasks": [TASK], "saved_cmdlines": "6 sh\n"}


def make_page(number=1, events=2):
    return pages.pack_page(number, [pages.pack_event(b"data")] * events, size=SIZE)


@pytest.fixture
def trace(kernel):
    instance = Instance(kernel.root, NAME)
    instance.create()
    for name, value in (("trace_clock", "mono"), ("options/disable_on_free", "1"), ("buffer_size_kb", "7")):
        instance.write(name, value)
    return TraceInstance(instance, CONTAINER)


def record(trace, *contents, end=None, lost=0):
    """Record CONTENTS, pages of CPU 0 of which each is a segment, LOST events more in each; END is what the recorder writes last.

    Without one it has died where it stood.
    """
    run = recordings.create(NAME, *handover.describe(trace.instance, CONTAINER, LIMITS, RECORD))
    watcher = Watcher()
    watch = Watch(watcher, trace.instance, [], was_watched=False)
    with watch.ours():
        writer = RecordingWriter(trace.instance, run, LIMITS, SIZE, watch)
    for number, content in enumerate(contents, 1):
        kernels.give_pages(trace.instance, 0, content)
        kernels.set_stats(trace.instance, 0, read=2 * number, overrun=lost * number)
        writer.drain()
    if end is not None:
        writer.close({"why": None, **end})
    writer.close_files()
    kernels.take_pages(trace.instance, 0)
    watch.close()
    watcher.close()
    return run


def run(trace, home=None):
    """A fetch of TRACE: its result, what each segment holds, and messages of what failed."""
    outcome = Outcome()
    given = fetch.fetch([trace], outcome, Home(**(home or {})), lambda _text: None, consume=True)
    return given, [read(one.path) for one in outbox.list_segments()], [one["msg"] for one in outcome.as_result()]


def read(path):
    with open(path, "rb") as file:
        segment = read_segment(file)
        content = {cpu: b"".join(map(segment.read_chunk, chunks)) for cpu, chunks in segment.chunks.items()}
        return content, segment.document


def test_a_recording_that_has_ended_comes_home_whole_and_is_gone(trace):
    path = record(trace, make_page(1), make_page(2), end={**END, "why": "its ttl is over"}, lost=3)
    assert recording.count_entries(trace) == 2 * SIZE
    given, ((content, document),), failures = run(trace)
    assert (content, failures, given["more"]) == ({0: make_page(1) + make_page(2)}, [], False)
    assert (document["mode"], document["segments"], document["entries"], document["lost"]) == ("record", 2, 4, 6)
    assert (document["stopped"], document["tracing"], document["partial"]) == ("its ttl is over", False, False)
    assert document["time"] == {"start": RECORD["start"], "changed": RECORD["changed"], "end": END["time"]}
    assert (document["clock_offset_ns"], document["has_run"], document["tasks"]) == (9, True, [TASK])
    assert document["cmdlines"] == "5 nginx\n6 sh\n"
    assert document["limits"] == LIMITS.describe() and document["specification"] == {"syscalls": None}
    assert not os.path.exists(path)
    assert recording.count_entries(trace) == 0


def test_the_buffer_of_a_recording_is_no_ring(trace):
    kernels.give_pages(trace.instance, 0, make_page())
    kernels.set_stats(trace.instance, 0, entries=2, size=SIZE)
    assert (recording.list_sources(trace), recording.count_entries(trace)) == ([], 0)
    trace.instance.write("options/disable_on_free", "0")
    (source,) = recording.list_sources(trace)
    assert (source.size, recording.count_entries(trace)) == (SIZE, 2)


def test_the_oldest_recording_comes_first_and_each_is_a_capture(trace):
    for number in (1, 2):
        record(trace, make_page(number), end=END)
    _given, found, _failures = run(trace)
    assert [content for content, _document in found] == [{0: make_page(1)}, {0: make_page(2)}]


def test_of_one_that_goes_on_what_is_finished_is_taken_and_the_rest_stays(trace, monkeypatch):
    path = record(trace, make_page(1), make_page(2))
    # As while the recorder writes it, which finishes a segment when it is asked.
    monkeypatch.setattr(recordings.Recording, "is_running", property(lambda self: True))
    monkeypatch.setattr(recordings, "ask_to_finish", lambda _recording: True)
    _given, ((content, document),), _failures = run(trace)
    assert content == {0: make_page(1) + make_page(2)}
    assert (document["tracing"], document["stopped"], document["segments"], document["partial"]) == (
        True,
        None,
        2,
        False,
    )
    assert document["complete"] is True
    assert [one.number for one in recordings.Recording(NAME, path, {}).list_segments()] == [3]


def read_times(document):
    return document["waits"]["time_ns"]


def test_each_capture_of_one_that_goes_on_begins_with_what_was_held_at_the_fetch_before(trace, monkeypatch):
    times = iter((20, 30))
    monkeypatch.setattr(recording, "collect", lambda _container: {"time_ns": next(times)})
    monkeypatch.setitem(RECORD, metadata.HOLDINGS, {"time_ns": 10})
    path = record(trace, make_page(1))
    monkeypatch.setattr(recordings.Recording, "is_running", property(lambda self: True))
    monkeypatch.setattr(recordings, "ask_to_finish", lambda _recording: True)
    _given, ((_content, document),), _failures = run(trace)
    assert read_times(document) == {"first": 10, "last": 20}
    (one,) = recordings.list_recordings(NAME)
    assert one.read_holdings() == {"time_ns": 20}
    # A full disk keeps the earlier note.
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "write_json", raise_full)
        one.note_holdings({"time_ns": 99})
    assert one.read_holdings() == {"time_ns": 20}
    assert path == one.path


def raise_full(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_one_that_has_ended_tells_what_was_held_then(trace, monkeypatch):
    monkeypatch.setattr(outbox, "find_room", lambda: SIZE)
    monkeypatch.setitem(RECORD, metadata.HOLDINGS, {"time_ns": 10})
    record(trace, make_page(1), make_page(2), end={**END, metadata.HOLDINGS: {"time_ns": 50}})
    # All of its captures have both: where the parts are parted nobody has looked.
    _given, ((_content, document),), _failures = run(trace)
    assert document["partial"] and read_times(document) == {"first": 10, "last": 50}
    _given, (_first, (_content, document)), _failures = run(trace)
    assert not document["partial"] and read_times(document) == {"first": 10, "last": 50}


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_recorder_is_asked_to_finish_what_it_writes(trace, monkeypatch, is_answered):
    earlier, path = record(trace, make_page(1)), record(trace, make_page(1))
    order = orders.Order(NAME, trace.instance.root, os.stat(trace.instance.path).st_ino, CONTAINER, run=path)
    orders.write_order(order)
    monkeypatch.setattr(recordings, "_FINISH_S", 10.0 if is_answered else 0.01)
    before, one = recordings.list_recordings(NAME)
    assert not one.is_running and recordings.ask_to_finish(one)  # nobody is there who would
    recordings.answer_finish(path)
    with locks.lock(orders.find_lock(NAME), 0):
        assert one.is_running and one.read_end() is None
        assert before.path == earlier and not before.is_running
        waiter = threading.Thread(target=answer, args=(path,))
        if is_answered:
            waiter.start()
        assert recordings.ask_to_finish(one) is is_answered
        if is_answered:
            waiter.join()
    assert recordings.is_asked_to_finish(path) is not is_answered


def answer(path):
    """Answer as a recorder does, once it is asked."""
    deadline = time.monotonic() + 20
    while not recordings.is_asked_to_finish(path) and time.monotonic() < deadline:
        time.sleep(0.001)
    recordings.answer_finish(path)


def test_a_recorder_that_does_not_answer_is_a_reason(trace, monkeypatch):
    record(trace, make_page(1))
    monkeypatch.setattr(recordings.Recording, "is_running", property(lambda self: True))
    monkeypatch.setattr(recordings, "ask_to_finish", lambda _recording: False)
    _given, ((_content, document),), _failures = run(trace)
    assert document["complete"] is False
    assert document["reasons"][-1].startswith("the recorder of this host (pid None) does not answer")


def test_what_has_no_room_comes_with_the_next_fetch(trace, monkeypatch):
    path = record(trace, make_page(1), make_page(2), make_page(3), end={**END, "why": "it is full", "lost": 0})
    monkeypatch.setattr(outbox, "find_room", lambda: 2 * SIZE)
    given, ((content, document),), _failures = run(trace)
    assert (content, given["more"]) == ({0: make_page(1) + make_page(2)}, True)
    assert (document["partial"], document["segments"], document["stopped"], document["tracing"]) == (
        True,
        2,
        None,
        False,
    )
    assert os.path.exists(path)
    given, ((_first, _document), (content, document)), _failures = run(trace)
    assert (content, given["more"], document["stopped"]) == ({0: make_page(3)}, False, "it is full")
    # From when on it has all: what was before is in the first one.
    (begin,) = [document["time"]["changed"]["real_time_ns"]]
    assert begin > RECORD["changed"]["real_time_ns"] and document["time"]["changed"]["offset_ns"] == 9
    assert not os.path.exists(path)


def test_one_segment_comes_whatever_room_there_is(trace, monkeypatch):
    record(trace, make_page(1) + make_page(2), make_page(3), end=END)
    monkeypatch.setattr(outbox, "find_room", lambda: 2 * SIZE)  # what the first one takes, and no more
    given, ((content, _document),), _failures = run(trace)
    assert (content, given["more"]) == ({0: make_page(1) + make_page(2)}, True)


def test_what_a_recorder_that_died_has_left_comes_with_what_the_buffer_holds(trace):
    record(trace, make_page(1))
    kernels.set_stats(trace.instance, 0, read=2, entries=4, overrun=5)
    kernels.give_pages(trace.instance, 0, make_page(2, 4))
    _given, ((content, document),), _failures = run(trace)
    assert content == {0: make_page(1) + make_page(2, 4)}
    assert (document["stopped"], document["entries"], document["lost"]) == (recordings.DIED, 6, 5)
    assert document["pages"] == 2
    assert "the recorder died, and tracing stopped with it" in document["reasons"]


def test_what_the_buffer_holds_belongs_to_the_last_recording(trace):
    for number in (1, 2):
        record(trace, make_page(number))
    kernels.give_pages(trace.instance, 0, make_page(3))
    _given, found, _failures = run(trace)
    assert [content for content, _document in found] == [{0: make_page(1)}, {0: make_page(2) + make_page(3)}]


def test_one_recording_that_cannot_be_read_costs_no_other(trace):
    first, _second = (record(trace, make_page(number), end=END) for number in (1, 2))
    os.unlink(f"{first}/head")
    _given, ((content, _document),), (failure,) = run(trace)
    assert content == {0: make_page(2)}
    assert "No such file or directory" in failure and os.path.exists(first)


def test_one_segment_is_taken_at_least(trace, tmp_path):
    record(trace, make_page(1), make_page(2), end=END)
    (source,) = recording.list_sources(trace)
    with open(tmp_path / "segment", "wb") as file:
        manifest = source.take(SegmentWriter(file, "zlib"), 0)
    assert (manifest["segments"], manifest["partial"]) == (1, True)
    source.finish()
    assert recording.count_entries(trace) == SIZE


@pytest.mark.parametrize("is_same_boot", [True, False])
def test_who_runs_now_is_known_in_the_same_boot_only(trace, monkeypatch, is_same_boot):
    record(trace, make_page(1), end={})
    if not is_same_boot:
        monkeypatch.setattr(boot, "read_boot_id", lambda: "another")
    container = replace(CONTAINER, pid=os.getpid())
    _given, ((_content, document),), _failures = run(TraceInstance(trace.instance, container))
    assert (os.getpid() in {task["tid"] for task in document["tasks"]}) is is_same_boot
    assert (document["time"]["end"] == RECORD["start"]) is not is_same_boot


def test_of_another_instance_of_that_name_nothing_is_taken(trace, kernel):
    record(trace, make_page(1))
    os.rename(trace.instance.path, f"{kernel.root}/instances/kept")  # so that the next one has another inode
    for cpu in (0, 1):
        os.unlink(f"{kernel.root}/instances-buffers/{NAME}.{cpu}")
    trace.instance.create()
    trace.instance.write("options/disable_on_free", "1")
    kernels.give_pages(trace.instance, 0, make_page(7))
    _given, ((content, document),), _failures = run(trace)
    assert content == {0: make_page(1)}
    assert document["stopped"] == recordings.DIED


def test_a_recording_outlives_its_instance_and_its_container_and_its_boot(trace, kernel, monkeypatch):
    record(trace, make_page(1), end=END)
    kernel.rmdir(trace.instance.path)
    monkeypatch.setattr(boot, "read_boot_id", lambda: "another")
    _given, ((content, document),), failures = run(TraceInstance(trace.instance, None))
    assert (content, failures) == ({0: make_page(1)}, [])
    assert (document["container"]["name"], document["boot_id"] != "another") == ("web", True)


def test_an_older_recorder_did_not_watch(trace):
    path = record(trace, make_page(1), end=END)
    about = recordings.read_json(f"{path}/about.json")
    del about["watched"]
    recordings.write_json(f"{path}/about.json", about)
    _given, ((_content, document),), _failures = run(trace)
    assert document["reasons"] == ["nobody watched the trace: an older version of this collection recorded it"]


def test_a_file_that_is_cut_short_or_cannot_be_read_stays_for_another_fetch(trace):
    path = record(trace, make_page(1), make_page(2), end=END)
    place = f"{path}/00000002/cpu0"
    os.rename(place, f"{path}/kept")
    os.mkdir(place)
    _given, found, (failure,) = run(trace)
    assert (found, os.path.exists(place)) == ([], True)
    assert "Is a directory" in failure
    os.rmdir(place)
    os.rename(f"{path}/kept", place)
    _given, ((content, _document),), failures = run(trace)
    assert (content, failures) == ({0: make_page(1) + make_page(2)}, [])


def test_a_trace_that_somebody_removed_says_so_until_it_is_fetched(trace, kernel):
    metadata.write_record(trace.instance, {"container": {"name": "web"}})
    path = record(trace, make_page(1), end=END)
    kernel.rmdir(trace.instance.path)
    metadata.note_removed(trace.instance)
    assert len(recording.list_sources(trace)) == 1
    recordings.remove(path)
    with pytest.raises(TraceError, match="somebody removed its trace instance at .*; what it held is gone"):
        recording.list_sources(trace)
