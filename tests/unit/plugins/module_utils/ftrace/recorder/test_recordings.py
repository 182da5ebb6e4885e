# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of recordings: what is listed, what is counted when something makes room, what a killed process leaves."""

from __future__ import annotations

import os
import random

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import recording as recorded
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import ring_pages
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.recordings import Recording
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

NAME = "crashcart-0123456789ab"
PAGE = pages.pack_page(1, [pages.pack_event(b"data"), pages.pack_event(b"data")])


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "FOLDER", str(tmp_path / "traces"))
    monkeypatch.setattr(orders, "FOLDER", str(tmp_path / "orders"))
    return tmp_path


def make_counters(read=0, overrun=0, dropped=0):
    return {"0": {"entries": 0, "read": read, "overrun": overrun, "dropped": dropped, "commit_overrun": 0, "bytes": 0}}


def make_recording(segments=()):
    """A recording of SEGMENTS, each the counters of its end (None: unfinished) and its pages."""
    path = recordings.create(NAME, {"page_size": pages.PAGE_SIZE, "cpus": [0], "watched": True}, b"head")
    recordings.begin(path)
    before = make_counters()
    for number, (counters, content) in enumerate(segments, 1):
        folder = os.path.join(path, recordings.format_number(number))
        os.mkdir(folder)
        recordings.write_json(os.path.join(folder, "begin.json"), {"cpus": before, "exact": True})
        with open(os.path.join(folder, "cpu0"), "wb") as file:
            file.write(content)
        if counters:
            recordings.write_json(os.path.join(folder, "end.json"), {"cpus": counters, "unwritten": 0})
            before = counters
    (recording,) = recordings.list_recordings(NAME)
    return recording


def summarize(recording, segments, end, counters=None):
    size = sum(segment.sizes.get(0, 0) for segment in segments)
    return recorded.summarize_loss(recording, segments, end, counters, {0: size}, {0: 0}).as_json()


def test_what_nobody_has_written_to_is_none(store):
    assert recordings.list_names() == []
    path = recordings.create(NAME, {}, b"")
    assert recordings.list_recordings(NAME) == recordings.list_names() == []
    assert recordings.list_unbegun(NAME) == [path]
    assert recordings.begin(path)
    assert not recordings.begin(path)
    assert [one.path for one in recordings.list_recordings(NAME)] == [path]
    assert recordings.list_names() == [NAME]
    assert recordings.list_unbegun(NAME) == []
    assert recordings.list_folders(NAME) == [path]
    recordings.remove(path)
    assert not os.path.exists(recordings.FOLDER)


def test_foreign_folders_are_no_recordings(store):
    os.makedirs(os.path.join(recordings.FOLDER, "somebody", "0"))
    os.makedirs(os.path.join(recordings.FOLDER, NAME, "0"))
    assert recordings.list_names() == []


def test_only_the_owner_may_read(store):
    recording = make_recording([(make_counters(2), PAGE)])
    assert os.stat(recording.path).st_mode & 0o077 == 0


def test_segments_that_make_room_are_counted(store):
    recording = make_recording(
        [
            (make_counters(2), PAGE),
            (make_counters(4, overrun=10), PAGE),
            (make_counters(6, overrun=10, dropped=1), PAGE),
        ]
    )
    assert recordings.rotate(recording.path, 1)
    assert recordings.rotate(recording.path, 2)
    assert [segment.number for segment in recording.list_segments()] == [3]
    size = pages.PAGE_SIZE
    rotated = {"through": 2, "segments": 2, "events": 4, "lost": 10, "exact": True, "bytes": 2 * size}
    assert recording.read_rotated() == rotated
    loss = summarize(recording, recording.list_segments(), {"why": None, "lost": 7})
    # Gone with the segments, lost while they and the last one were written, and after it.
    assert (loss["lost"], loss["entries"], loss["lost_exact"], loss["complete"]) == (4 + 10 + 1 + 7, 2, True, False)


def test_a_rotation_that_was_killed_is_taken_for_done(store):
    recording = make_recording([(make_counters(2), PAGE), (make_counters(4), PAGE)])
    rotated = {"through": 1, "segments": 1, "events": 2, "lost": 0, "exact": True, "bytes": pages.PAGE_SIZE}
    recordings.write_json(os.path.join(recording.path, "rotated.json"), rotated)
    assert [segment.number for segment in recording.list_segments()] == [2]
    assert recordings.rotate(recording.path, 1)
    assert recording.read_rotated() == rotated


def test_nothing_makes_room_while_a_fetch_reads(store):
    recording = make_recording([(make_counters(2), PAGE)])
    with recordings.hold(recording.path):
        assert not recordings.rotate(recording.path, 1)
    assert len(recording.list_segments()) == 1


def test_a_complete_recording(store):
    recording = make_recording([(make_counters(2), PAGE), (make_counters(6), PAGE * 2)])
    segments = recording.list_segments()
    loss = summarize(recording, segments, {"why": "its ttl is over", "lost": 0})
    assert (loss["lost"], loss["entries"], loss["pages"], loss["complete"]) == (0, 6, 3, True)
    assert b"".join(recordings.gen_pages(segments, 0)) == PAGE * 3
    assert list(recordings.gen_pages(segments, 1)) == []


def test_whoever_died_has_lost_what_nobody_can_tell_any_more(store):
    recording = make_recording([(make_counters(2), PAGE), (None, PAGE * 3)])
    end = recording.read_end()
    assert end == {"why": recordings.DIED}
    loss = summarize(recording, recording.list_segments(), end)
    assert (loss["entries"], loss["lost"], loss["lost_exact"], loss["complete"]) == (8, 0, False, False)


def test_whoever_died_behind_the_last_segment_has_lost_what_the_buffers_did(store):
    recording = make_recording([(make_counters(2, overrun=1), PAGE)])
    segments, end = recording.list_segments(), recording.read_end()
    for counters, wanted in ((make_counters(2, overrun=5), (5, True)), (None, (1, False))):
        loss = summarize(recording, segments, end, counters)
        assert (loss["lost"], loss["lost_exact"], loss["complete"]) == (*wanted, False)


def test_last_words_that_do_not_fit_go_without_names(store, monkeypatch):
    path = recordings.create(NAME, {}, b"")
    write = recordings.write_json

    def write_little(place, value):
        if len(str(value)) > 1000:
            raise OSError("No space left on device")
        write(place, value)

    monkeypatch.setattr(recordings, "write_json", write_little)
    recordings.write_end(path, {"why": "it is full", "lost": 3, "tasks": [], "saved_cmdlines": "1 x\n" * 1000})
    assert recordings.read_json(os.path.join(path, "end.json")) == {"why": "it is full", "lost": 3}


def test_what_was_fetched_is_forgotten_and_with_the_last_all(store):
    recording = make_recording([(make_counters(2), PAGE), (make_counters(4), PAGE)])
    recordings.write_json(os.path.join(recording.path, "end.json"), {"why": None, "lost": 0})
    first, second = recording.list_segments()
    recordings.forget_fetched(recording, [first], has_ended=True)
    assert [segment.number for segment in recording.list_segments()] == [2]
    recordings.forget_fetched(recording, [second], has_ended=True)
    assert not os.path.exists(recordings.FOLDER)


def test_a_file_that_is_cut_short_is_as_none(store):
    recording = make_recording([(make_counters(2), PAGE)])
    with open(os.path.join(recording.path, "00000001", "end.json"), "w", encoding="ascii") as file:
        file.write('{"cpus": {"0"')
    (segment,) = recording.list_segments()
    assert segment.end is None
    assert Recording(NAME, recording.path, {}).read_rotated()["events"] == 0


def test_events_are_counted_without_what_is_none():
    events = [
        pages.pack_event(b"abcd"),
        pages.pack_time_extend(1 << 30),
        pages.pack_long_event(b"x" * 130),
        pages.pack_padding(16, 5),
        pages.pack_time_stamp(1 << 40),
        pages.pack_event(b"x" * 112),
        pages.pack_padding(40, 0),
    ]
    page = pages.pack_page(1, events)
    assert ring_pages.count_events(page, pages.PAGE_SIZE) == 3
    assert ring_pages.count_events(page * 3 + page[:100], pages.PAGE_SIZE) == 9
    assert ring_pages.count_events(b"", pages.PAGE_SIZE) == 0
    assert ring_pages.count_events(pages.pack_page(1, []), pages.PAGE_SIZE) == 0


def test_counting_ends_on_random_pages():
    source = random.Random(3)
    for _round in range(300):
        ring_pages.count_events(
            source.getrandbits(8 * pages.PAGE_SIZE).to_bytes(pages.PAGE_SIZE, "little"), pages.PAGE_SIZE
        )
