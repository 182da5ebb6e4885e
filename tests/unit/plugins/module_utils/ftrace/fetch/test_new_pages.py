# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The new pages of a recording that goes on: each page once, over all segments, and no more than there is room for."""

from __future__ import annotations

import random
import shutil

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.new_pages import read_new

SIZE = 64
ALL = 1 << 30


class Recording:
    """A recording of two CPUs in a folder, whose pages are told apart by their first bytes."""

    def __init__(self, path):
        self.path = path
        self.number = 0
        self.count = 0
        self.written = {0: [], 1: []}
        self.begin()

    def begin(self):
        self.number += 1
        (self.path / f"{self.number:08}").mkdir()

    def write(self, cpu, pages=1):
        for _page in range(pages):
            self.count += 1
            page = b"%06d" % self.count + bytes(SIZE - 6)
            self.written[cpu].append(page)
            with (self.path / f"{self.number:08}" / f"cpu{cpu}").open("ab") as file:
                file.write(page)

    def finish(self):
        (self.path / f"{self.number:08}" / "end.json").write_text("{}")
        self.begin()

    def read(self, seen, most=ALL):
        return read_new(str(self.path), [0, 1], seen, SIZE, most)


@pytest.fixture
def recording(tmp_path):
    return Recording(tmp_path)


def test_each_look_brings_what_is_new(recording):
    recording.write(0, 2)
    found = recording.read({})
    assert found.pages == {0: b"".join(recording.written[0])}
    assert (found.gaps, found.skipped) == ([], 0)
    assert recording.read(found.seen).pages == {}
    recording.write(0)
    recording.finish()
    recording.write(0)
    recording.write(1)
    later = recording.read(found.seen)
    assert later.pages == {0: b"".join(recording.written[0][2:]), 1: b"".join(recording.written[1])}
    # An answer that got lost is given again.
    assert recording.read(found.seen) == later


def test_a_page_of_which_a_part_is_written_waits(recording):
    recording.write(0)
    with (recording.path / "00000001/cpu0").open("ab") as file:
        file.write(b"part")
    assert recording.read({}).pages == {0: recording.written[0][0]}


def test_of_too_many_pages_the_latest_come(recording):
    recording.write(0, 30)
    recording.finish()
    recording.write(0, 10)
    recording.write(1, 20)
    found = recording.read({}, 15 * SIZE)
    assert found.pages == {0: b"".join(recording.written[0][-10:]), 1: b"".join(recording.written[1][-5:])}
    assert found.skipped == 45 * SIZE
    assert sorted(found.gaps) == [0, 1]
    assert recording.read(found.seen).pages == {}


def test_each_cpu_with_new_pages_brings_one_at_least(recording):
    recording.write(0, 100)
    recording.write(1)
    assert recording.read({}, 2 * SIZE).pages[1] == recording.written[1][0]


def test_segments_that_made_room_before_they_were_read_are_a_gap(recording):
    recording.write(0)
    first = recording.read({})
    recording.write(0)
    recording.finish()
    recording.write(0)
    shutil.rmtree(recording.path / "00000001")
    found = recording.read(first.seen)
    assert found.pages == {0: recording.written[0][2]}
    assert found.gaps == [0, 1]
    # What was read to its end leaves no gap.
    recording.finish()
    seen = recording.read(found.seen).seen
    recording.write(0)
    recording.finish()
    last = recording.read(seen)
    shutil.rmtree(recording.path / "00000002")
    assert (last.pages, last.gaps) == ({0: recording.written[0][3]}, [])


def test_a_recording_that_is_gone_brings_nothing(tmp_path):
    assert read_new(str(tmp_path / "nonesuch"), [0], {0: (3, 64)}, SIZE, ALL).pages == {}


@pytest.mark.parametrize("seed", range(10))
def test_in_any_order_each_page_comes_once(recording, seed):
    source = random.Random(seed)
    seen, got = {}, {0: b"", 1: b""}
    for _step in range(200):
        what = source.randrange(4)
        if what < 2:
            recording.write(what, source.randrange(1, 4))
        elif what == 2 and source.random() < 0.3:
            recording.finish()
        else:
            found = recording.read(seen)
            seen = found.seen
            assert found.gaps == []
            for cpu, data in found.pages.items():
                got[cpu] += data
    for cpu, data in recording.read(seen).pages.items():
        got[cpu] += data
    assert got == {cpu: b"".join(pages) for cpu, pages in recording.written.items()}
