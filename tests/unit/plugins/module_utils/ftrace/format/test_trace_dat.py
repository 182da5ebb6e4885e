# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The head of a trace.dat, written and read, cut short and damaged."""

from __future__ import annotations

import io
import random
import struct
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    ring_pages,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import (
    CpuPages,
    Head,
    TraceFileError,
)


def make_head(page_size=4096):
    return Head(
        page_size=page_size,
        header_page=b"\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n",
        header_event=b"# compressed entry header\n",
        ftrace_formats=[b"name: function\nID: 1\n", b""],
        event_formats={"raw_syscalls": [b"name: sys_enter\nID: 443\n", b"name: sys_exit\nID: 442\n"], "sched": []},
        printk=b'0xffffffff : "text"\n',
        cmdlines=b"4242 nginx\n4243 \xff\n",
        options=[(trace_dat.OPTION_TRACECLOCK, b"[mono]\0"), (trace_dat.OPTION_CPUSTAT, b""), (77, b"\0" * 9)],
    )


def read(data):
    return trace_dat_reader.read_head(io.BytesIO(data))


def pack(head, sizes):
    """HEAD with as many bytes of pages as SIZES say behind it."""
    return trace_dat.pack_head(head, sizes) + bytes(sum(sizes))


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("sizes", [[], [0], [3], [1, 0, 2], [1] * 300])
def test_what_is_written_is_read(page_size, sizes):
    head = make_head(page_size)
    packed = trace_dat.pack_head(head, [size * page_size for size in sizes])
    found = read(packed + bytes(sum(sizes) * page_size))
    assert len(packed) % page_size == 0
    offset = len(packed)
    for cpu, size in enumerate(sizes):
        assert found.cpus[cpu] == CpuPages(cpu, offset, size * page_size)
        offset += size * page_size
    assert len(found.cpus) == len(sizes)
    found.cpus = []
    assert found == head


def test_a_head_that_fills_its_pages_exactly_is_not_padded():
    head = make_head(512)
    lengths = set()
    for extra in range(512):
        head.printk = b"x" * extra
        packed = trace_dat.pack_head(head, [512])
        place = read(packed + bytes(512)).cpus[0]
        assert place.offset == len(packed)
        lengths.add(len(packed))
    assert len(lengths) == 2  # one page more or less, and never an empty one
    assert max(lengths) - min(lengths) == 512


def test_magic_and_version_are_those_of_the_format():
    packed = trace_dat.pack_head(make_head(), [])
    assert packed.startswith(b"\x17\x08\x44tracing6\0")
    assert packed[12] == (0 if sys.byteorder == "little" else 1)
    assert packed[13] == struct.calcsize("P")


@pytest.mark.sweep
def test_cut_short_at_every_byte():
    packed = pack(make_head(), [4096, 8192])
    assert len(read(packed).cpus) == 2
    for length in range(len(packed)):
        with pytest.raises(TraceFileError, match="cut short|is empty|is no trace.dat"):
            read(packed[:length])


@pytest.mark.sweep
def test_random_bytes_are_refused():
    source = random.Random(1)
    for _round in range(2000):
        data = bytes(source.randrange(256) for _index in range(source.randrange(200)))
        with pytest.raises(TraceFileError):
            read(data)


@pytest.mark.sweep
def test_random_bytes_behind_a_good_beginning_are_refused():
    source = random.Random(2)
    packed = trace_dat.pack_head(make_head(), [4096])
    end = packed.index(b"options  \0")
    for _round in range(3000):
        start = source.randrange(14, end)
        data = packed[:start] + bytes(source.randrange(256) for _index in range(64))
        with pytest.raises(TraceFileError):
            read(data)


@pytest.mark.sweep
def test_every_damaged_byte_gives_a_head_or_the_one_error():
    packed = pack(make_head(512), [512])
    end = len(packed.rstrip(b"\0"))
    refused = 0
    for place in range(end):
        for value in (0, 1, 0x7F, 0x80, 0xFF, packed[place] ^ 1):
            data = bytearray(packed)
            data[place] = value
            try:
                found = read(bytes(data))
            except TraceFileError:
                refused += 1
                continue
            assert isinstance(found, Head)
    assert refused > 100


@pytest.mark.parametrize("page_size", [0, 1, 256, 511, 513, 4095, 6144, 1 << 21, 0xFFFFFFFF])
def test_a_page_size_that_no_kernel_has(page_size):
    packed = bytearray(trace_dat.pack_head(make_head(), []))
    packed[14:18] = struct.pack("I", page_size)
    with pytest.raises(TraceFileError, match="page size"):
        read(bytes(packed))


def test_an_unbelievable_length_is_refused_before_it_is_read():
    class Counting(io.BytesIO):
        most = 0

        def read(self, size=-1):
            self.most = max(self.most, size)
            return super().read(size)

    packed = bytearray(trace_dat.pack_head(make_head(), []))
    place = bytes(packed).index(b"header_page\0") + len(b"header_page\0")
    packed[place : place + 8] = struct.pack("Q", (1 << 64) - 1)
    file = Counting(bytes(packed))
    with pytest.raises(TraceFileError, match="not believable"):
        trace_dat_reader.read_head(file)
    assert file.most < 1 << 16


@pytest.mark.parametrize("version", [b"8\0", b"5\0", b"66"])
def test_another_version_is_refused(version):
    packed = trace_dat.pack_head(make_head(), [])
    with pytest.raises(TraceFileError, match="version 6 or 7"):
        read(packed[:10] + version + packed[12:])


def test_a_head_whose_numbers_are_of_the_other_byte_order_than_it_says_is_refused():
    packed = bytearray(trace_dat.pack_head(make_head(), []))
    packed[12] ^= 1
    with pytest.raises(TraceFileError, match="not believable"):
        read(bytes(packed))


def test_another_kind_of_recording_is_refused():
    packed = trace_dat.pack_head(make_head(), [])
    with pytest.raises(TraceFileError, match="latency tracer's text"):
        read(packed.replace(b"flyrecord\0", b"latency  \0"))
    with pytest.raises(TraceFileError, match="flyrecord"):
        read(packed.replace(b"flyrecord\0", b"something\0"))


def test_a_file_without_options_is_read():
    packed = pack(make_head(), [4096])
    start = packed.index(b"options  \0")
    end = packed.index(b"flyrecord\0")
    found = read(packed[:start] + packed[end:] + bytes(end - start))
    assert found.options == []
    assert len(found.cpus) == 1


STORED, MISSED = 1 << 30, 1 << 31


def make_page(commit, tail=b""):
    return (struct.pack("QQ", 123, commit) + b"\xee" * (commit & 0xFFFFF) + tail).ljust(4096, b"\0")


@pytest.mark.parametrize(
    ("commit", "tail", "loss"),
    [
        (64, b"", (0, True)),
        (0, b"", (0, True)),
        # The number behind the events counts only where the page says that it is there.
        (64, struct.pack("Q", 99), (0, True)),
        (64 | STORED, struct.pack("Q", 99), (0, True)),
        (64 | MISSED, struct.pack("Q", 99), (0, False)),
        (64 | MISSED | STORED, struct.pack("Q", 99), (99, True)),
        (0 | MISSED | STORED, struct.pack("Q", 1 << 40), (1 << 40, True)),
        (4072 | MISSED | STORED, struct.pack("Q", 7), (7, True)),
    ],
)
def test_loss(commit, tail, loss):
    assert ring_pages.read_loss(make_page(commit, tail)) == loss


def test_commit_word():
    assert ring_pages.unpack_commit(4080) == (4080, False, False)
    assert ring_pages.unpack_commit(4080 | MISSED) == (4080, True, False)
    assert ring_pages.unpack_commit(16 | MISSED | STORED) == (16, True, True)
    # Bits above are the kernel's own.
    assert ring_pages.unpack_commit(16 | 1 << 40) == (16, False, False)
