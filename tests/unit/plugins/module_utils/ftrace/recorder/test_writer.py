# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ring buffers drained to files: segments, room for them, what is counted, and a write that fails. Files play the buffers."""

from __future__ import annotations

import os
import resource
import signal
import struct
from contextlib import contextmanager

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import Unreadable
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.writer import Full, RecordingWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

NAME = "crashcart-0123456789ab"
SIZE = kernels.PAGE_SIZE
MISSED, STORED = 1 << 31, 1 << 30
# Of each CPU's 7 KiB of pages, two of which are one more than what the kernel says.
RESERVE = 2 * 3 * SIZE
LIMITS = Limits(is_recorded=True, max_bytes=1 << 30, rotate_bytes=1 << 20, rotate_s=3600.0)


def make_page(number=1, events=2):
    return pages.pack_page(number, [pages.pack_event(b"data")] * events, size=SIZE)


def make_page_after_loss(lost):
    """A page before which LOST events were lost; None where nobody knows how many."""
    event = pages.pack_event(b"data")
    words = [event] if lost is None else [event, struct.pack("Q", lost)]
    return pages.pack_page(1, words, len(event) | MISSED | (0 if lost is None else STORED), size=SIZE)


@pytest.fixture
def instance(tmp_path, monkeypatch):
    kernel = kernels.install(str(tmp_path), monkeypatch)
    made = Instance(kernel.root, NAME)
    made.create()
    return made


@pytest.fixture
def make_writer(instance):
    """Yield a function that makes a writer with LIMITS; the writers are closed at the end."""
    made = []
    watcher = Watcher()

    def make(**limits):
        path = recordings.create(NAME, {"page_size": SIZE, "cpus": [0, 1], "watched": True}, b"head")
        watch = Watch(watcher, instance, [], was_watched=False)
        with watch.ours():
            writer = RecordingWriter(instance, path, Limits(**{**vars(LIMITS), **limits}), SIZE, watch)
        made.append(writer)
        return writer

    yield make
    for writer in made:
        writer.close_files()
    watcher.close()


def read_segments(writer):
    """For each segment its number, its pages by CPU, and its documents."""
    found = []
    for segment in recordings.Recording(NAME, writer.path, {}).list_segments():
        content = {cpu: b"".join(recordings.gen_pages([segment], cpu)) for cpu in segment.sizes}
        found.append((segment.number, content, segment.begin, segment.end))
    return found


def list_numbers(writer):
    return [number for number, _content, _begin, _end in read_segments(writer)]


@contextmanager
def smallest_files(size):
    """Have no file of this process grow over SIZE bytes, as a full disk would: what fits is written, and then EFBIG comes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_pages_come_into_files_as_they_are_and_are_accounted_for(instance, make_writer):
    writer = make_writer()
    first, second, third = make_page(1), make_page(2), make_page(3)
    kernels.give_pages(instance, 0, first)
    kernels.give_pages(instance, 1, second)
    writer.drain()
    writer.drain()  # nothing is there
    kernels.give_pages(instance, 0, third)
    kernels.set_stats(instance, 0, read=4, overrun=7)
    kernels.set_stats(instance, 1, read=2)
    writer.close({"why": "it was stopped"})
    ((number, content, begin, end),) = read_segments(writer)
    assert (number, content) == (1, {0: first + third, 1: second})
    assert begin["exact"] is True and begin["cpus"]["0"]["read"] == 0
    assert (end["cpus"]["0"]["read"], end["cpus"]["0"]["overrun"], end["unwritten"], end["touched"]) == (4, 7, 0, [])
    end = recordings.read_json(os.path.join(writer.path, "end.json"))
    assert end == {"why": "it was stopped", "lost": 0, "touched": []}
    assert not os.path.exists(os.path.join(writer.path, "reserve"))
    assert os.stat(os.path.join(writer.path, "00000001", "cpu0")).st_mode & 0o077 == 0


def test_a_recording_of_nothing_has_no_segment(make_writer):
    writer = make_writer()
    writer.finish_segment()  # of nothing there is none
    writer.close({"why": None})
    assert sorted(os.listdir(writer.path)) == ["about.json", "begun", "end.json", "head"]


def test_a_segment_ends_when_it_is_large_enough(instance, make_writer):
    writer = make_writer(rotate_bytes=2 * SIZE)
    for number in range(1, 6):
        kernels.give_pages(instance, 0, make_page(number))
        kernels.set_stats(instance, 0, read=2 * number)
        writer.drain()
    writer.close({"why": None})
    found = read_segments(writer)
    assert [(number, content[0]) for number, content, _begin, _end in found] == [
        (1, make_page(1) + make_page(2)),
        (2, make_page(3) + make_page(4)),
        (3, make_page(5)),
    ]
    # One begins where the one before has ended.
    assert [begin["cpus"]["0"]["read"] for _number, _content, begin, _end in found] == [0, 4, 8]
    assert [end["cpus"]["0"]["read"] for _number, _content, _begin, end in found] == [4, 8, 10]


def test_a_segment_without_pages_tells_of_losses(instance, make_writer):
    writer = make_writer()
    kernels.set_stats(instance, 1, dropped=3)
    writer.finish_segment()
    ((number, content, begin, end), (following, _content, _begin, none)) = read_segments(writer)
    assert (number, content, following, none) == (1, {}, 2, None)
    assert end["cpus"]["1"]["dropped"] - begin["cpus"]["1"]["dropped"] == 3


def test_of_a_buffer_no_more_is_read_at_a_time_than_it_holds(instance, make_writer):
    writer = make_writer()
    kernels.give_pages(instance, 0, make_page() * 10)
    writer.drain()
    assert os.stat(os.path.join(writer.path, "00000001", "cpu0")).st_size == 3 * SIZE
    writer.drain()
    assert os.stat(os.path.join(writer.path, "00000001", "cpu0")).st_size == 6 * SIZE


def test_where_nobody_has_read_before_what_the_buffer_has_lost_is_the_recordings(instance, make_writer):
    kernels.give_pages(instance, 0, make_page())
    kernels.set_stats(instance, 0, entries=2, overrun=9, dropped=1)
    writer = make_writer()
    ((_number, content, begin, _end),) = read_segments(writer)
    assert content == {}  # it is read once the recording goes on
    assert [begin["cpus"]["0"][name] for name in ("entries", "overrun", "dropped")] == [2, 0, 0]
    assert begin["exact"] is True


@pytest.mark.parametrize(("lost", "overrun", "is_exact"), [(5, 95, True), (None, 100, False)])
def test_where_a_ring_was_fetched_the_recording_begins_there(instance, make_writer, lost, overrun, is_exact):
    page = make_page_after_loss(lost)
    kernels.give_pages(instance, 0, page)
    kernels.set_stats(instance, 0, entries=1, read=40, overrun=100)
    writer = make_writer()
    ((_number, content, begin, _end),) = read_segments(writer)
    # What was lost since the fetch is lost to the recording, and all before that is not.
    assert content == {0: page}
    assert (begin["cpus"]["0"]["overrun"], begin["exact"]) == (overrun, is_exact)
    kernels.give_pages(instance, 0, make_page_after_loss(3))  # which the kernel's counter tells
    writer.drain()
    assert read_segments(writer)[0][2] == begin


def test_where_there_is_no_room_from_the_start_on_nobody_knows_what_was_lost(instance, make_writer):
    kernels.give_pages(instance, 0, make_page())
    kernels.set_stats(instance, 0, entries=2, read=40)
    writer = make_writer(max_bytes=1)
    ((_number, content, begin, _end),) = read_segments(writer)
    assert (content, begin["exact"]) == ({}, False)
    with pytest.raises(Full):
        writer.drain()


def test_a_full_recording_stops_before_it_reads_what_it_has_no_room_for(instance, make_writer):
    writer = make_writer(max_bytes=SIZE + 2 * RESERVE)
    for _round in range(2):
        kernels.give_pages(instance, 0, make_page())
        writer.drain()
    kernels.give_pages(instance, 0, make_page(3))
    with pytest.raises(Full) as raised:
        writer.drain()
    assert str(raised.value) == f"it reached max_size ({SIZE + 2 * RESERVE} bytes)"
    ((_number, content, _begin, _end),) = read_segments(writer)
    assert content == {0: make_page() * 2}
    # For what the buffers hold there is still room, at the end.
    writer.close({"why": "it is full"})
    assert read_segments(writer)[0][1] == {0: make_page() * 2 + make_page(3)}


def test_a_host_without_room_stops_a_recording(make_writer):
    writer = make_writer(min_free=1 << 62)
    with pytest.raises(Full, match=r"MiB free, less than min_free \(4398046511104 MiB\)"):
        writer.drain()


def fill(instance, writer, numbers):
    for number in numbers:
        kernels.give_pages(instance, 0, make_page(number))
        kernels.set_stats(instance, 0, read=2 * number)
        writer.drain()


def test_the_oldest_segments_make_room(instance, make_writer):
    writer = make_writer(when_full="rotate", rotate_bytes=SIZE, max_bytes=2 * SIZE + 2 * RESERVE)
    fill(instance, writer, range(1, 6))
    # Room for two and what is to come: the first two had to go before the fifth came.
    assert list_numbers(writer) == [3, 4, 5, 6]
    rotated = recordings.Recording(NAME, writer.path, {}).read_rotated()
    assert rotated == {"through": 2, "segments": 2, "events": 4, "lost": 0, "exact": True, "bytes": 2 * SIZE}


def test_a_segment_that_is_written_ends_early_where_it_is_all_that_can_make_room(instance, make_writer):
    writer = make_writer(when_full="rotate", max_bytes=2 * RESERVE)
    fill(instance, writer, [1, 2])
    assert [(number, content) for number, content, _begin, _end in read_segments(writer)] == [(2, {0: make_page(2)})]


def test_where_nothing_is_left_to_make_room_it_is_full(make_writer):
    writer = make_writer(when_full="rotate", max_bytes=1)
    with pytest.raises(Full, match=r"reached max_size \(1 bytes\), and nothing of this recording is left to make room"):
        writer.drain()


def test_what_a_fetch_reads_makes_no_room_and_what_it_took_takes_none(instance, make_writer):
    writer = make_writer(when_full="rotate", rotate_bytes=SIZE, max_bytes=SIZE + 2 * RESERVE)
    fill(instance, writer, [1, 2])
    with recordings.hold(writer.path):
        fill(instance, writer, [3])
        assert list_numbers(writer) == [1, 2, 3, 4]
    recording = recordings.Recording(NAME, writer.path, {})
    recordings.forget_fetched(recording, recording.list_segments()[:2], has_ended=False)
    fill(instance, writer, [4])
    assert list_numbers(writer) == [3, 4, 5]
    assert recording.read_rotated()["segments"] == 0


def test_a_recording_that_stops_when_it_is_full_goes_on_where_a_fetch_has_made_room(instance, make_writer):
    writer = make_writer(rotate_bytes=SIZE, max_bytes=SIZE + 2 * RESERVE)
    fill(instance, writer, [1, 2])
    with pytest.raises(Full):
        fill(instance, writer, [3])
    recording = recordings.Recording(NAME, writer.path, {})
    recordings.forget_fetched(recording, recording.list_segments()[:1], has_ended=False)
    fill(instance, writer, [4])
    assert list_numbers(writer) == [2, 3, 4]


def test_a_write_that_fails_leaves_whole_pages_and_counts_what_it_lost(instance, make_writer):
    writer = make_writer()
    events = [1, 2, 4]
    kernels.give_pages(instance, 1, b"".join(make_page(number, count) for number, count in enumerate(events)))
    kernels.set_stats(instance, 1, read=7)
    with smallest_files(SIZE + SIZE // 2), pytest.raises(Full, match="writing to .* failed: File too large"):
        writer.drain()
    assert os.stat(os.path.join(writer.path, "00000001", "cpu1")).st_size == SIZE
    writer.finish_segment()
    kernels.give_pages(instance, 0, make_page())
    writer.close({"why": "writing failed"})
    ((_number, content, _begin, end),) = read_segments(writer)  # in which all of it is told
    # What comes after that is left to the kernel, which counts it.
    assert content == {1: make_page(0, 1)}
    assert end["unwritten"] == 6


def test_a_file_that_cannot_be_made_costs_what_was_read_and_is_counted(instance, make_writer):
    writer = make_writer()
    os.mkdir(os.path.join(writer.path, "00000001", "cpu0"))
    kernels.give_pages(instance, 0, make_page(1, 5))
    with pytest.raises(Full, match="File exists"):
        writer.drain()
    os.rmdir(os.path.join(writer.path, "00000001", "cpu0"))
    writer.close({"why": "writing failed"})
    ((_number, content, _begin, end),) = read_segments(writer)
    assert (content, end["unwritten"]) == ({}, 5)


def test_pages_of_another_size_are_not_written(instance, make_writer):
    writer = make_writer()
    header = kernels.get(f"{instance.path}/events/header_page")
    kernels.put(f"{instance.path}/events/header_page", header.replace(str(SIZE - 16), str(2 * SIZE - 16)))
    kernels.give_pages(instance, 0, make_page())
    with pytest.raises(Unreadable, match="changed the size of the ring buffer's pages"):
        writer.drain()
    kernels.give_pages(instance, 0, make_page())
    writer.close({"why": "unreadable"})
    assert read_segments(writer) == []


def test_what_the_buffers_lose_when_they_shrink_is_lost(instance, make_writer):
    writer = make_writer()
    fill(instance, writer, [1])
    guards = writer._guards
    close = writer.close_files

    def shrink():
        assert guards  # the kernel does that when the last one has let go
        close()
        kernels.set_stats(instance, 0, read=2, overrun=4)

    writer.close_files = shrink
    writer.close({"why": None})
    writer.close_files = close
    assert recordings.read_json(os.path.join(writer.path, "end.json"))["lost"] == 4


def test_time_ends_a_segment(instance, make_writer):
    writer = make_writer(rotate_s=0.0)
    kernels.give_pages(instance, 0, make_page())
    writer.tend()
    assert [(number, content) for number, content, _begin, _end in read_segments(writer)] == [
        (1, {0: make_page()}),
        (2, {}),
    ]
    writer = make_writer()
    kernels.give_pages(instance, 0, make_page())
    writer.tend()
    assert list_numbers(writer) == [1] and read_segments(writer)[0][1] == {}


def test_who_asks_gets_all_up_to_now(instance, make_writer):
    writer = make_writer()
    path = os.path.join(writer.path, "finish")
    kernels.give_pages(instance, 1, make_page())
    open(path, "w", encoding="ascii").close()
    writer.tend()
    assert not os.path.exists(path)
    assert [(one[0], one[1], one[3] is not None) for one in read_segments(writer)] == [
        (1, {1: make_page()}, True),
        (2, {}, False),
    ]


def test_what_is_too_old_goes_and_what_is_written_stays(instance, make_writer):
    writer = make_writer(rotate_bytes=SIZE, max_age_s=1e-9)
    fill(instance, writer, [1, 2])
    kernels.give_pages(instance, 0, make_page())
    with recordings.hold(writer.path):
        writer.tend()
        assert list_numbers(writer) == [1, 2, 3]
    writer.tend()
    assert list_numbers(writer) == [3]
    for age_s in (None, 3600.0):
        writer = make_writer(rotate_bytes=SIZE, max_age_s=age_s)
        fill(instance, writer, [1])
        writer.tend()
        assert list_numbers(writer) == [1, 2]


def test_what_others_have_done_is_told_with_the_segment_of_its_time(instance, make_writer):
    writer = make_writer(rotate_bytes=SIZE)
    kernels.put(f"{instance.path}/trace", "")
    fill(instance, writer, [1, 2])
    touched = [end["touched"] for _number, _content, _begin, end in read_segments(writer) if end]
    assert touched[1] == [] and any("cleared the trace" in reason for reason in touched[0])


def test_a_buffer_that_cannot_be_opened_leaves_nothing_open(instance, make_writer):
    make_writer().close({"why": None})
    before = os.listdir("/proc/self/fd")
    os.unlink(f"{instance.path}/per_cpu/cpu1/trace_pipe_raw")
    with pytest.raises(FileNotFoundError):
        make_writer()
    assert len(os.listdir("/proc/self/fd")) == len(before)
