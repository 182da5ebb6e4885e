# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments: written by several threads, read whole, cut short where their writer was killed, damaged."""

from __future__ import annotations

import io
import random
import struct
import threading
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    capture_file,
    capture_file_reader,
    compression,
    trace_dat,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import SegmentError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter

PAGE = 512
METHODS = [compression.NONE, *compression.list_available()]
HEAD = trace_dat.Head(PAGE, b"page", b"event", [b"f"], {"sched": [b"s"]}, options=[(4, b"[mono]\0")])


def write(method, chunks, documents=({"a": 1}, {"a": 2})):
    """A segment with a first document, CHUNKS of (CPU, bytes), and the other documents."""
    file = io.BytesIO()
    writer = SegmentWriter(file, method)
    writer.write_head(HEAD)
    writer.write_document(documents[0])
    compress = writer.make_compressor()
    for cpu, data in chunks:
        writer.write_chunk(cpu, compress(data), len(data))
    for document in documents[1:]:
        writer.write_document(document)
    return file.getvalue()


def read(data):
    segment = capture_file_reader.read_segment(io.BytesIO(data))
    return segment, {
        cpu: b"".join(segment.read_chunk(one) for one in found) for cpu, found in sorted(segment.chunks.items())
    }


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_read(method):
    chunks = [(0, b"a" * PAGE), (7, b"b" * PAGE * 3), (0, b"c" * PAGE)]
    segment, found = read(write(method, chunks))
    assert found == {0: b"a" * PAGE + b"c" * PAGE, 7: b"b" * PAGE * 3}
    assert (segment.head, segment.document, segment.compression) == (HEAD, {"a": 2}, method)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("method", METHODS)
def test_hosts_of_either_byte_order(method, order):
    head, page = replace(HEAD, order=order), b"a" * PAGE
    compress = compression.make_compressor(method)
    data = capture_file.LINE.format(method).encode("ascii").ljust(capture_file.LINE_SIZE, b" ")
    contents = [
        (capture_file.HEAD, trace_dat.pack_head(head, [])),
        (3, page),
        (258, page * 2),
        (capture_file.DOCUMENT, b'{"a": 2}'),
    ]
    for frames in (contents, contents[::-1]):
        packed = [
            number.to_bytes(4, order) + trace_dat.pack_chunk(compress(content), len(content), order)
            for number, content in frames
        ]
        segment, found = read(data + b"".join(packed))
        assert (segment.head, segment.document, found) == (head, {"a": 2}, {3: page, 258: page * 2})


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
def test_a_writer_that_was_killed_anywhere_has_left_what_it_wrote_till_then(method):
    chunks = [(cpu, bytes([cpu]) * PAGE) for cpu in range(4)]
    whole = write(method, chunks)
    first = len(write(method, [], ({"a": 1},)))
    seen = set()
    for length in range(len(whole)):
        if length < first:
            with pytest.raises(FleetError):
                read(whole[:length])
            continue
        segment, found = read(whole[:length])
        assert found == {cpu: bytes([cpu]) * PAGE for cpu in range(len(found))}
        assert segment.document == {"a": 1}
        seen.add(len(found))
    assert seen == {0, 1, 2, 3, 4}


def test_threads_do_not_write_into_each_others_frames():
    file = io.BytesIO()
    writer = SegmentWriter(file, compression.ZLIB)
    writer.write_head(HEAD)
    writer.write_document({})

    def work(cpu):
        compress = writer.make_compressor()
        for number in range(200):
            data = bytes([cpu, number]) * (PAGE // 2)
            writer.write_chunk(cpu, compress(data), len(data))

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _segment, found = read(file.getvalue())
    for cpu in range(6):
        assert found[cpu] == b"".join(bytes([cpu, number]) * (PAGE // 2) for number in range(200))


def test_every_damaged_byte_gives_a_segment_or_an_error_of_ours():
    data = write(compression.ZLIB, [(0, b"a" * PAGE), (1, b"b" * PAGE)])
    refused = 0
    for place in range(len(data)):
        for value in (0, 0x7F, 0xFF, data[place] ^ 1):
            damaged = bytearray(data)
            damaged[place] = value
            try:
                read(bytes(damaged))
            except FleetError:
                refused += 1
    assert refused > 300


def test_random_bytes_are_refused():
    source = random.Random(1)
    for _round in range(500):
        with pytest.raises(FleetError):
            read(bytes(source.randrange(256) for _index in range(source.randrange(200))))


@pytest.mark.parametrize(
    ("number", "size"), [(70000, PAGE), (0, 0), (0, 100), (0, (16 << 20) + PAGE), (0, (64 << 20) + 1)]
)
def test_frames_that_nobody_writes(number, size):
    data = write(compression.ZLIB, []) + struct.pack("=III", number, 10, size) + bytes(10)
    with pytest.raises(SegmentError):
        read(data)


@pytest.mark.parametrize("document", [b"[]", b"nonsense", b"\xff"])
def test_a_document_that_is_none(document):
    packed = compression.make_compressor(compression.ZLIB)(document)
    data = write(compression.ZLIB, []) + struct.pack("=I", 0xFFFFFFFF) + trace_dat.pack_chunk(packed, len(document))
    with pytest.raises(SegmentError):
        read(data)


def test_a_stamp_is_the_time_in_utc_to_the_microsecond():
    assert capture_file.find_stamp("crashcart-0123456789ab.01795302900250000999") == "20261121T231500.250000Z"


class Ring:
    """A source of pages as a ring buffer is: it fills what it is given, or less."""

    def __init__(self, sizes, pages):
        self.sizes, self.pages = list(sizes), list(pages)

    def __call__(self, places):
        count = self.sizes.pop(0) if self.sizes else len(places)
        filled = 0
        for place in places[:count]:
            if not self.pages:
                break
            page = self.pages.pop(0)
            place[: len(page)] = page
            filled += len(page)
        return filled


def make_page(number, commit=8):
    return struct.pack("QQQ", number, commit, number).ljust(PAGE, b"\xee")


def copy(source, limit=1000):
    file = io.BytesIO()
    writer = SegmentWriter(file, compression.ZLIB)
    writer.write_head(HEAD)
    writer.write_document({})
    found = drain.copy_pages(source, PAGE, limit, 3, writer)
    return found, read(file.getvalue())[1].get(3, b"")


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513, 1500])
@pytest.mark.parametrize("sizes", [[], [1, 2, 3, 500, 7]])
def test_pages_are_copied_once_and_in_order(count, sizes):
    pages = [make_page(number) for number in range(count)]
    found, content = copy(Ring(sizes, pages), limit=2000)
    assert found == drain.CpuDrain(pages=count)
    assert content == b"".join(pages)


def test_a_writer_that_is_faster_does_not_hold_us_for_ever():
    found, content = copy(lambda places: len(places) * PAGE, limit=700)
    assert (found.pages, len(content)) == (700, 700 * PAGE)


def test_the_end_of_a_short_page_holds_nothing_of_the_page_before():
    pages = [make_page(number) for number in range(600)]
    found, content = copy(Ring([], [*pages, make_page(7)[:100]]))
    assert found.pages == 601
    assert content[-PAGE:] == make_page(7)[:100] + bytes(PAGE - 100)


def test_loss_is_read_from_every_page():
    stored, missed = 1 << 30, 1 << 31
    pages = [make_page(5, 8), make_page(6, 0 | stored | missed), make_page(7, 8 | missed)]
    found, _content = copy(Ring([], pages))
    assert (found.pages, found.lost, found.unknown) == (3, 6, 1)


def test_an_error_of_the_kernel_ends_it_and_loses_nothing_of_before():
    pages = [make_page(number) for number in range(5)]

    def read_some(places):
        if not pages:
            raise OSError(5, "Input/output error")
        places[0][:] = pages.pop(0)
        return PAGE

    found, content = copy(read_some)
    assert (found.pages, found.error) == (5, "Input/output error")
    assert content == b"".join(make_page(number) for number in range(5))


def test_a_disk_that_is_full_is_told():
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 2000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    writer = SegmentWriter(Full(), compression.NONE)
    found = drain.copy_pages(lambda places: len(places) * PAGE, PAGE, 10**6, 0, writer)
    assert found.error == "cannot write pages of CPU 0: No space left on device"
