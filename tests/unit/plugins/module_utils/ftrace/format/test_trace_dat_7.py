# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A trace.dat of version 7, compressed and not: written and read, cut short and damaged."""

from __future__ import annotations

import io
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    compression,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import (
    CpuPages,
    Head,
    TraceFileError,
)

METHODS = [compression.NONE, *compression.list_available()]


def make_head(method, page_size=512):
    return Head(
        page_size=page_size,
        header_page=b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n",
        header_event=b"# compressed entry header\n",
        ftrace_formats=[b"name: function\nID: 1\n", b""],
        event_formats={"raw_syscalls": [b"name: sys_enter\nID: 443\n", b"name: sys_exit\nID: 442\n"], "sched": []},
        kallsyms=b"ffffffff t x\n",
        printk=b'0xffffffff : "text"\n',
        cmdlines=b"4242 nginx\n4243 \xff\n",
        options=[(trace_dat.OPTION_TRACECLOCK, b"local [mono] boot\0"), (trace_dat.OPTION_CPUSTAT, b"")],
        version=7,
        compression=method,
    )


def make_page(number, page_size=512):
    return struct.pack("I", number) * (page_size // 4)


def pack(method, cpus, page_size=512):
    """A whole file with CPUS: for each a list of chunks, which are lists of pages."""
    compress = compression.make_compressor(method)
    contents = []
    for chunks in cpus:
        plain = [b"".join(pages) for pages in chunks]
        if method == compression.NONE:
            contents.append(b"".join(plain))
        elif plain:
            packed = [trace_dat.pack_chunk(compress(data), len(data)) for data in plain]
            contents.append(trace_dat.pack_count(len(packed)) + b"".join(packed))
        else:
            contents.append(b"")
    return trace_dat.pack_head(make_head(method, page_size), list(map(len, contents))) + b"".join(contents)


CPUS = [[[make_page(1), make_page(2)], [make_page(3)]], [], [[make_page(4)]]]


def read_pages(data, block_size=trace_dat_reader.BLOCK):
    file = io.BytesIO(data)
    head = trace_dat_reader.read_head(file)
    return head, {
        place.cpu: list(trace_dat_reader.gen_page_blocks(file, head, place, block_size))
        for place in head.cpus
        if place.size
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_what_is_written_is_read(method, page_size):
    cpus = [
        [[make_page(1, page_size), make_page(2, page_size)], [make_page(3, page_size)]],
        [],
        [[make_page(4, page_size)]],
    ]
    head, found = read_pages(pack(method, cpus, page_size))
    assert {cpu: b"".join(blocks) for cpu, blocks in found.items()} == {
        cpu: b"".join(page for pages in chunks for page in pages) for cpu, chunks in enumerate(cpus) if chunks
    }
    head.cpus = []
    assert head == make_head(method, page_size)


@pytest.mark.parametrize("method", METHODS)
def test_pages_that_are_not_compressed_are_where_a_reader_can_map_them(method):
    data = pack(method, CPUS)
    first = trace_dat_reader.read_head(io.BytesIO(data)).cpus[0]
    assert first.cpu == 0
    assert first.offset % 512 == 0


@pytest.mark.parametrize("method", METHODS)
def test_blocks_are_small_where_that_is_asked_for_and_cpus_may_be_read_in_turn(method):
    file = io.BytesIO(pack(method, CPUS))
    head = trace_dat_reader.read_head(file)
    first, last = (trace_dat_reader.gen_page_blocks(file, head, head.cpus[cpu], 512) for cpu in (0, 2))
    blocks = [next(first)]
    assert next(last) == make_page(4)
    blocks += first
    assert len(blocks) > 1
    assert b"".join(blocks) == b"".join(map(make_page, (1, 2, 3)))
    assert list(last) == []


def test_a_trace_without_any_cpu():
    head, found = read_pages(pack(compression.NONE, []))
    assert (head.cpus, found) == ([], {})


def test_magic_version_and_method_stand_where_the_format_says():
    data = pack(compression.ZSTD, CPUS)
    assert data[:12] == b"\x17\x08\x44tracing7\0"
    assert data[18:25] == b"zstd\0" + b"1\0"
    (options,) = struct.unpack("Q", data[25:33])
    assert struct.unpack("=HH", data[options : options + 4]) == (0, 0)


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
def test_cut_short_at_every_byte(method):
    data = pack(method, CPUS)
    whole = read_pages(data)
    for length in range(len(data)):
        with pytest.raises(TraceFileError):
            assert read_pages(data[:length]) == whole, length


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
def test_every_damaged_byte_gives_pages_or_the_one_error(method):
    data = pack(method, CPUS)
    refused = 0
    for place in range(len(data)):
        for value in (0, 0x7F, 0xFF, data[place] ^ 1):
            damaged = bytearray(data)
            damaged[place] = value
            try:
                _head, found = read_pages(bytes(damaged))
            except TraceFileError:
                refused += 1
                continue
            assert all(isinstance(block, bytes) for blocks in found.values() for block in blocks)
    assert refused > 300


def test_options_that_point_to_themselves_end():
    data = bytearray(pack(compression.NONE, CPUS))
    at = bytes(data).index(b"none\0\0") + len(b"none\0\0")
    (options,) = struct.unpack("Q", data[at : at + 8])
    next_options = bytes(data).index(struct.pack("=HIQ", 0, 8, 0), options) + 6
    data[next_options : next_options + 8] = struct.pack("Q", options)
    _head, found = read_pages(bytes(data))
    assert found[2] == [make_page(4)]
    data[next_options : next_options + 8] = struct.pack("Q", 1 << 40)
    with pytest.raises(TraceFileError, match="cut short"):
        read_pages(bytes(data))


@pytest.mark.parametrize("size", [511, 513, (16 << 20) + 512])
def test_a_chunk_that_holds_no_whole_pages_or_too_many_is_refused(size):
    chunk = compression.make_compressor(compression.ZLIB)(bytes(size))
    content = trace_dat.pack_count(1) + trace_dat.pack_chunk(chunk, size)
    data = trace_dat.pack_head(make_head(compression.ZLIB), [len(content)]) + content
    with pytest.raises(TraceFileError, match="no whole pages|not believable"):
        read_pages(data)


def test_chunks_that_reach_into_the_next_cpu_are_refused():
    content = [trace_dat.pack_count(9), trace_dat.pack_chunk(zlib_of(make_page(1)), 512)]
    sizes = [sum(map(len, content)), 0]
    data = trace_dat.pack_head(make_head(compression.ZLIB), sizes) + b"".join(content)
    with pytest.raises(TraceFileError):
        read_pages(data + trace_dat.pack_chunk(zlib_of(make_page(2)), 512) * 8)


def zlib_of(data):
    return compression.make_compressor(compression.ZLIB)(data)


def test_pages_of_a_cpu_that_no_machine_has():
    data = pack(compression.NONE, CPUS)
    wrong = data.replace(struct.pack("=IQQ", 2, *_place(data, 2)), struct.pack("=IQQ", 1 << 20, *_place(data, 2)))
    assert wrong != data
    with pytest.raises(TraceFileError, match="CPUs in them is not believable"):
        read_pages(wrong)


def _place(data, cpu):
    place = next(one for one in trace_dat_reader.read_head(io.BytesIO(data)).cpus if one.cpu == cpu)
    assert isinstance(place, CpuPages)
    return place.offset, place.size
