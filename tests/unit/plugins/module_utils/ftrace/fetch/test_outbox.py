# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of segments on a host: what is offered, what is kept, what is removed, and what a killed writer has left."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import targets
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.fetch import Home
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

NAME = "crashcart-0123456789ab"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "FOLDER", str(tmp_path / "captures"))
    monkeypatch.setattr(targets, "LOCKS", str(tmp_path / "run" / "locks"))
    with outbox.hold_folder():
        yield tmp_path / "captures"


def put(stamp, state="new", content=b"x" * 100, instance=NAME):
    path = os.path.join(outbox.FOLDER, f"{instance}.{stamp:020d}.{state}")
    with open(path, "wb") as file:
        file.write(content)
    return os.path.basename(path)


def list_files():
    return sorted(os.listdir(outbox.FOLDER))


def write_part(chunks, stamp=7, **document):
    path = os.path.join(outbox.FOLDER, f"{NAME}.{stamp:020d}.part")
    with open(path, "wb") as file:
        writer = SegmentWriter(file, "zlib")
        writer.write_head(trace_dat.Head(512, b"", b"", [], {}))
        writer.write_document(document)
        compress = writer.make_compressor()
        for _number in range(chunks):
            writer.write_chunk(0, compress(bytes(512)), 512)
    return path


def test_the_folder_can_be_passed_and_not_be_listed_by_others(folder):
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o711


def test_a_segment_is_its_owners_only_and_offered_when_it_is_whole():
    with outbox.create_segment(Instance("/nonesuch", NAME)) as file:
        file.write(b"abc")
        assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600
        assert [one.state for one in outbox.list_segments()] == ["part"]
    outbox.finish_segment(file)
    (one,) = outbox.list_segments()
    assert (one.instance, one.state, one.size) == (NAME, "new", 3)
    assert abs(one.stamp_ns - time.time_ns()) < 10**10


def test_stamps_grow_also_when_the_clock_was_set_back():
    future = time.time_ns() + 10**15
    put(future)
    with outbox.create_segment(Instance("/nonesuch", NAME)) as file:
        assert f".{future + 1000:020d}." in file.name


def test_what_is_not_ours_is_not_listed(folder):
    for name in ("other.00000000000000000001.new", f"{NAME}.1.new", f"{NAME}.00000000000000000001.old", "transfer-1"):
        (folder / name).write_bytes(b"")
    put(2, instance="crashcart-0123456789ab-second")
    put(1)
    assert [(one.stamp_ns, one.instance) for one in outbox.list_segments()] == [
        (1, NAME),
        (2, "crashcart-0123456789ab-second"),
    ]


def test_what_a_killed_writer_has_left_is_offered_where_it_holds_events():
    write_part(2)
    outbox.recover()
    assert list_files() == [f"{NAME}.{7:020d}.new"]


def test_a_writer_that_was_killed_before_its_first_chunk_may_have_lost_events():
    write_part(0)
    outbox.recover()
    assert list_files() == [f"{NAME}.{7:020d}.new"]


@pytest.mark.parametrize("length", [0, 10, 64])
def test_what_a_killed_writer_has_left_without_a_document_is_removed(length):
    os.truncate(write_part(0), length)
    outbox.recover()
    assert list_files() == []


def test_what_is_kept_goes_with_its_instance_and_with_the_bounds(monkeypatch):
    other = "crashcart-gone00000000"
    waiting = put(1)
    kept = [put(stamp, "kept") for stamp in (2, 3, 4, 5)]
    others = put(6, "kept", instance=other)
    outbox.prune()
    assert list_files() == sorted([waiting, *kept, others])
    monkeypatch.setattr(outbox, "MAX_KEPT_CAPTURES", 3)
    outbox.prune()
    assert list_files() == sorted([waiting, *kept[1:], others])
    monkeypatch.setattr(outbox, "MAX_KEPT", 250)
    outbox.prune()
    assert list_files() == sorted([waiting, kept[3], others])
    assert outbox.list_kept_names() == sorted([NAME, other])
    outbox.remove_kept(NAME)
    assert list_files() == sorted([waiting, others])


def test_what_is_kept_tells_whose_it_is():
    about = {"id": "a" * 64, "name": "api", "image": "x", "labels": {}, "runtime": "docker"}
    assert outbox.read_kept_container(NAME) is None
    for stamp, document in ((7, {}), (8, {"container": about}), (6, {"container": {**about, "name": "older"}})):
        path = write_part(0, stamp, **document)
        os.rename(path, path.replace(".part", ".kept"))
    assert outbox.read_kept_container(NAME) == about


def test_nothing_is_drained_where_too_much_waits_or_there_is_no_room(monkeypatch):
    put(1)
    outbox.check_waiting()
    outbox.check_room(100)
    with pytest.raises(TraceError, match="make room there"):
        outbox.check_room(1 << 60)
    monkeypatch.setattr(outbox, "MAX_WAITING", 99)
    with pytest.raises(TraceError, match="wait in .* to be fetched"):
        outbox.check_waiting()


CONTENTS = {1: b"a" * 50, 2: b"b" * 60, 3: b"c" * 70}


def offer(have, stamps=(1, 2, 3)):
    for stamp in stamps:
        put(stamp, content=CONTENTS[stamp])
    transfer = outbox.make_transfer(outbox.list_segments(), have)
    with open(transfer["path"], "rb") as file:
        return transfer, file.read()


@pytest.mark.parametrize(
    ("have", "starts"),
    [
        ({}, (0, 0, 0)),
        ({1: 50, 2: 10}, (50, 10, 0)),
        ({1: 50, 2: 60, 3: 70}, (50, 60, 70)),
        ({1: 1 << 40, 2: -5}, (50, 0, 0)),
    ],
)
def test_a_transfer_begins_where_each_segment_broke_off(have, starts):
    transfer, data = offer({f"{NAME}.{stamp:020d}": size for stamp, size in have.items()})
    assert data == b"".join(CONTENTS[stamp][start:] for stamp, start in zip(CONTENTS, starts))
    assert transfer["size"] == len(data)
    for segment, (stamp, content), start in zip(transfer["segments"], CONTENTS.items(), starts):
        assert segment == {
            "name": f"{NAME}.{stamp:020d}",
            "state": "new",
            "size": len(content),
            "start": start,
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_one_whole_segment_is_not_copied():
    transfer, data = offer({}, [1])
    assert data == CONTENTS[1]
    assert os.stat(transfer["path"]).st_nlink == 2
    transfer, data = offer({f"{NAME}.{1:020d}": 20}, [])
    assert data == CONTENTS[1][20:]


def test_what_is_small_is_in_the_description(monkeypatch):
    transfer, data = offer({})
    assert base64.b64decode(transfer["content"]) == data
    monkeypatch.setattr(outbox, "_MAX_CONTENT", len(data) - 1)
    assert "content" not in outbox.make_transfer(outbox.list_segments(), {})


def test_no_transfer_of_nothing():
    assert outbox.make_transfer([], {}) is None
    assert list_files() == []


def test_a_transfer_is_there_for_a_moment_or_as_long_as_somebody_reads_it(monkeypatch):
    assert not outbox.is_in_transfer()
    transfer, _data = offer({})
    assert outbox.is_in_transfer()
    monkeypatch.setattr(outbox, "_GRACE_S", 0.0)
    with open(transfer["path"], "rb"):
        assert outbox.is_in_transfer()
        assert os.path.exists(transfer["path"])
    assert not outbox.is_in_transfer()
    assert not os.path.exists(transfer["path"])
    assert len(outbox.list_segments()) == 3


def test_a_transfer_that_broke_is_removed_at_its_readers_word_and_nothing_else_is():
    transfer, _data = offer({})
    before = list_files()
    for path in ("", "/etc/passwd", transfer["segments"][0]["name"], "../transfer-0123", before[0], "transfer-"):
        outbox.drop_transfer(path)
    assert list_files() == before
    outbox.drop_transfer(transfer["path"])
    outbox.drop_transfer(transfer["path"])
    assert list_files() == [name for name in before if not name.startswith("transfer")]


def test_what_is_home_is_known_by_its_stamp_or_by_the_cursor():
    put(1_795_302_900_250_000_999)
    (one,) = outbox.list_segments()
    assert not Home().has(one)
    assert Home(stamps=["20261121T231500.250000Z"]).has(one)
    assert Home(cursor=one.stamp_ns).has(one)
    assert not Home(cursor=one.stamp_ns - 1).has(one)
