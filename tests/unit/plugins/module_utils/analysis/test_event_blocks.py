# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pages of the ring buffer, made by hand, damaged and random, against a slow decoder that takes one event at a time."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import capture_pass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.events import EventBlock, gen_event_blocks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import Field, parse_format
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.time_limit import limit

SIZE = pages.PAGE_SIZE


def open_trace(content, machine=pages.HERE):
    """The trace of MACHINE whose CPUs have the pages CONTENT."""
    return Trace(io.BytesIO(machine.pack_trace(content)))


def run(data, machine=pages.HERE):
    """The events in DATA, which are whole pages of MACHINE's CPU 7, as one block."""
    trace = open_trace([[], [], [], [], [], [], [], [data]], machine)
    columns, contents, size = {}, [], 0
    for block in gen_event_blocks(trace, {}):
        own = dict(vars(block))
        content = own.pop("data")
        contents.append(content[: len(content) // SIZE * SIZE].copy())  # the next block replaces its pages
        own["records"] = own["records"] + size
        own["gaps"] = own["gaps"] + sum(map(len, columns.get("times", [])))
        for name, column in own.items():
            columns.setdefault(name, []).append(column if name == "mark" else column.copy())
        size += len(contents[-1])
    mark = columns.pop("mark", ["<"])[0]
    if not columns:
        empty = np.zeros(0, np.int64)
        return EventBlock(np.zeros(0, np.uint8), mark, *[empty] * 9)
    whole = EventBlock(
        data=np.concatenate(contents), mark=mark, **{name: np.concatenate(column) for name, column in columns.items()}
    )
    assert set(whole.cpus.tolist()) == {7}
    return whole


def list_events(block):
    """Time, type, thread and record of each event."""
    data = block.data.tobytes()
    return [
        (int(time), int(number), int(tid), data[record : record + length])
        for time, number, tid, record, length in zip(
            block.times, block.types, block.tids, block.records.tolist(), block.lengths.tolist()
        )
    ]


def check(data, machine=pages.HERE):
    """Both decoders agree on all pages of DATA; the number of events."""
    with limit():
        found = list_events(run(data, machine))
    starts = range(0, len(data), SIZE)
    assert found == [event for start in starts for event in machine.decode_slowly(data[start : start + SIZE])]
    return len(found)


A = pages.make_record(11, 4242, b"payload1")
B = pages.make_record(12, 4243, b"payload two.")
C = pages.make_record(13, -1, b"")


def test_plain_events():
    block = run(pages.pack_page(1000, [pages.pack_event(A), pages.pack_event(B, 5), pages.pack_event(C, 100)]))
    assert list_events(block) == [(1000, 11, 4242, A), (1005, 12, 4243, B), (1105, 13, -1, C)]


def test_an_event_of_every_length_that_fits_its_header():
    for words in range(2, 29):
        record = pages.make_record(11, words, bytes(range(words * 4 - 8)))
        block = run(pages.pack_page(0, [pages.pack_event(record), pages.pack_event(B, 1)]))
        assert list_events(block) == [(0, 11, words, record), (1, 12, 4243, B)]


@pytest.mark.parametrize("length", [8, 9, 10, 11, 12, 113, 200, 401])
def test_an_event_with_its_length_in_a_word(length):
    record = pages.make_record(11, 4242, bytes(length - 8))
    block = run(pages.pack_page(50, [pages.pack_long_event(record, 3), pages.pack_event(B, 1)]))
    assert list_events(block) == [(53, 11, 4242, record), (54, 12, 4243, B)]


def test_padding_without_a_delta_ends_the_page():
    block = run(pages.pack_page(0, [pages.pack_event(A), pages.pack_padding(40, 0), pages.pack_event(B)]))
    assert list_events(block) == [(0, 11, 4242, A)]


@pytest.mark.parametrize("length", [8, 12, 40])
def test_a_discarded_event_is_passed_over_and_its_time_counts(length):
    block = run(pages.pack_page(0, [pages.pack_event(A), pages.pack_padding(length, 7), pages.pack_event(B, 1)]))
    assert list_events(block) == [(0, 11, 4242, A), (8, 12, 4243, B)]


@pytest.mark.parametrize("delta", [0, 1, (1 << 27) - 1, 1 << 27, (1 << 27) + 5, 10**15, (1 << 59) - 1])
def test_time_extend_is_added(delta):
    events = [pages.pack_event(A, 2), pages.pack_time_extend(delta), pages.pack_event(B, 3)]
    block = run(pages.pack_page(1000, events))
    assert [event[0] for event in list_events(block)] == [1002, 1005 + delta]


@pytest.mark.parametrize("time", [0, 5, 1 << 27, 123456789012345678, (1 << 59) - 1])
def test_time_stamp_replaces(time):
    block = run(pages.pack_page(1000, [pages.pack_event(A), pages.pack_time_stamp(time), pages.pack_event(B, 3)]))
    assert [event[0] for event in list_events(block)] == [1000, time + 3]


def test_time_stamp_keeps_the_high_bits_that_it_cannot_hold():
    high = 5 << 59
    block = run(pages.pack_page(high + 10, [pages.pack_time_stamp(77), pages.pack_event(A, 1)]))
    assert [event[0] & ((1 << 64) - 1) for event in list_events(block)] == [high + 78]


def test_a_delta_as_long_as_can_be():
    block = run(pages.pack_page(1, [pages.pack_event(A, (1 << 27) - 1)]))
    assert list_events(block)[0][0] == 1 << 27


def test_every_page_has_its_own_time_and_events_stay_in_the_order_of_pages():
    data = b"".join(
        pages.pack_page(1000 * number, [pages.pack_event(A, 1)] * count) for number, count in enumerate([3, 0, 1, 5])
    )
    assert [event[0] for event in list_events(run(data))] == [1, 2, 3, 2001, 3001, 3002, 3003, 3004, 3005]


def test_what_is_behind_the_commit_is_not_read():
    whole = [pages.pack_event(A), pages.pack_event(B, 1)]
    assert len(list_events(run(pages.pack_page(0, whole)))) == 2
    for commit in range(len(b"".join(whole))):
        found = list_events(run(pages.pack_page(0, whole, commit=commit)))
        assert len(found) == (1 if commit >= len(whole[0]) else 0)


def test_bits_of_the_commit_that_tell_of_losses_are_no_length():
    event = pages.pack_event(A)
    for bits in (1 << 31, 1 << 30, 3 << 30, 1 << 20, 1 << 63):
        assert len(list_events(run(pages.pack_page(0, [event], commit=len(event) | bits)))) == 1


def test_gaps_are_where_events_were_lost_before_a_page():
    event = pages.pack_event(pages.make_record(1, 5))
    missed = len(event) | 1 << 31
    made = [
        pages.pack_page(0, [event], commit=missed),
        pages.pack_page(1, [event, event]),
        # Of a page without events the next one's first is the one behind the gap.
        pages.pack_page(2, [], commit=1 << 31),
        pages.pack_page(3, [event]),
        pages.pack_page(4, [event], commit=missed | 1 << 30),
        pages.pack_page(5, [], commit=1 << 31),
    ]
    assert run(b"".join(made)).gaps.tolist() == [0, 3, 4]


def test_a_commit_longer_than_the_page_ends_with_the_page():
    filling = [pages.pack_event(pages.make_record(11, 1, bytes(20)))] * 15
    full = pages.pack_page(0, [*filling, pages.pack_event(pages.make_record(13, 2, b"last"))])
    assert len(b"".join(filling)) == SIZE - 16 - 16
    assert len(full) == SIZE
    for commit in (SIZE - 16, SIZE - 15, SIZE, 0xFFFFF):
        data = struct.pack("QQ", 0, commit) + full[16:]
        follower = pages.pack_page(9, [pages.pack_event(B)])
        assert check(data + follower) == check(data) + 1


@pytest.mark.parametrize("event", [pages.pack_event(b"1234"), pages.pack_long_event(b"1234"), struct.pack("II", 0, 0)])
def test_an_event_too_short_for_any_record_ends_the_page(event):
    assert list_events(run(pages.pack_page(0, [pages.pack_event(A), event, pages.pack_event(B)]))) == [(0, 11, 4242, A)]


@pytest.mark.parametrize("word", [0xFFFFFFFF, 0xFFFFFFFC, 0x80000000, 0x7FFFFFFF, 500, 3])
@pytest.mark.parametrize("kind", [0, 29])
def test_a_length_beyond_the_page_ends_it(kind, word):
    event = struct.pack("II", kind | 1 << 5, word)
    data = pages.pack_page(0, [pages.pack_event(A), event]) + pages.pack_page(5, [pages.pack_event(B)])
    found = list_events(run(data))
    assert found[0] == (0, 11, 4242, A)
    assert found[-1] == (5, 12, 4243, B)
    assert check(data) == 2


@pytest.mark.parametrize("kind", [0, 5, 28, 29, 30, 31])
def test_an_event_that_begins_in_the_last_word_of_a_page_takes_nothing_from_the_next(kind):
    filling = [pages.pack_event(pages.make_record(11, 1, bytes(20)))] * 15 + [pages.pack_event(C)]
    page = pages.pack_page(0, [*filling, struct.pack("I", kind | 1 << 5)], commit=SIZE - 16)
    assert len(b"".join(filling)) == SIZE - 16 - 4
    # What it would read there looks like a good continuation.
    tail = struct.pack("QQ", 0x0000000C0000000C, 0) + bytes(SIZE - 16)
    assert check(page + tail) == 16


def test_nothing():
    for data in (b"", pages.pack_page(0, [])):
        block = run(data)
        assert [column.size for column in (block.times, block.types, block.tids, block.records, block.lengths)] == [
            0
        ] * 5


MACHINES = [pages.Machine(order, word) for order in ("little", "big") for word in (4, 8)]


def name_machine(machine):
    return f"{machine.order}-{8 * machine.word}"


@pytest.fixture(params=MACHINES, ids=name_machine)
def machine(request):
    return request.param


def make_good_event(source, machine):
    kind = source.randrange(10)
    delta = source.choice([0, 1, source.randrange(1 << 27)])
    data = machine.make_record(source.randrange(1 << 16), source.randrange(1 << 22), bytes(source.randrange(60)))
    if kind == 0:
        return machine.pack_long_event(data, delta)
    if kind == 1:
        return machine.pack_padding(source.randrange(8, 40, 4), max(1, delta))
    if kind == 2:
        return machine.pack_time_extend(source.randrange(1 << 40))
    if kind == 3:
        return machine.pack_time_stamp(source.randrange(1 << 59))
    return machine.pack_event(data, delta)


def make_good_page(source, machine=pages.HERE):
    events, left = [], SIZE - machine.header_size
    while True:
        event = make_good_event(source, machine)
        if len(event) > left:
            break
        events.append(event)
        left -= len(event)
    return machine.pack_page(source.randrange(1 << 60), events)


def test_good_pages_of_all_kinds_of_events(machine):
    source = random.Random(11)
    assert check(b"".join(make_good_page(source, machine) for _page in range(1000)), machine) > 5000


def test_random_pages(machine):
    source = random.Random(12)
    assert check(source.randbytes(3000 * SIZE), machine) > 0


def test_random_pages_that_claim_to_be_full(machine):
    source = random.Random(13)
    data = b"".join(
        machine.pack_page(source.getrandbits(64), [source.randbytes(SIZE - machine.header_size)])
        for _page in range(3000)
    )
    assert check(data, machine) > 1000


@pytest.mark.sweep
def test_damaged_pages(machine):
    source = random.Random(14)
    damaged = []
    for _page in range(3000):
        page = bytearray(make_good_page(source, machine))
        for _change in range(source.randrange(1, 12)):
            place = source.randrange(8, SIZE)
            page[place] = source.choice(
                [0, 0xFF, 29, 30, 31, page[place] ^ 1 << source.randrange(8), source.randrange(256)]
            )
        damaged.append(bytes(page))
    assert check(b"".join(damaged), machine) > 5000


def test_pages_of_one_byte_value():
    data = b"".join(bytes([value]) * SIZE for value in range(256))
    check(data)
    check(b"".join(struct.pack("QQ", 0, SIZE - 16) + bytes([value]) * (SIZE - 16) for value in range(256)))


@pytest.mark.sweep
def test_the_neighbours_of_a_page_change_nothing_in_it():
    source = random.Random(15)
    for _round in range(50):
        page = source.choice([make_good_page(source), source.randbytes(SIZE)])
        alone = pages.decode_slowly(page)
        for neighbour in (b"\0" * SIZE, b"\xff" * SIZE, make_good_page(source)):
            found = list_events(run(neighbour + page + neighbour))
            before = len(pages.decode_slowly(neighbour))
            assert found[before : len(found) - before] == alone


def test_records_lie_in_their_pages():
    source = random.Random(16)
    data = b"".join(
        struct.pack("QQ", 0, source.randrange(1 << 20)) + source.randbytes(SIZE - 16) for _page in range(2000)
    )
    block = run(data)
    assert block.records.size > 100
    assert (block.lengths >= 8).all()
    assert (block.records % SIZE >= 20).all()
    assert ((block.records % SIZE) + block.lengths <= SIZE).all()


SYS_EXIT = parse_format(pages.SYS_EXIT, "raw_syscalls")
EXEC = parse_format(pages.SCHED_PROCESS_EXEC, "sched")
RENAME = parse_format(pages.TASK_RENAME, "task")


def test_numbers_of_events():
    events = [pages.make_exit(5, 0, -2), pages.make_enter(6, 1), pages.make_exit(7, 257, 1 << 40)]
    block = run(pages.pack_page(0, [pages.pack_event(event) for event in events]))
    exits = block.select(442)
    assert exits.tolist() == [0, 2]
    assert block.integers(exits, SYS_EXIT.fields["ret"]).tolist() == [-2, 1 << 40]
    assert block.integers(exits, SYS_EXIT.fields["id"]).tolist() == [0, 257]
    assert block.integers(exits, SYS_EXIT.fields["common_pid"]).tolist() == [5, 7]
    assert block.select(999).tolist() == []


@pytest.mark.parametrize(
    ("size", "signed", "value"),
    [
        (1, True, -1),
        (1, False, 255),
        (2, True, -1),
        (2, False, 65535),
        (4, True, -1),
        (4, False, (1 << 32) - 1),
        (8, True, -1),
    ],
)
def test_signs_and_sizes(size, signed, value):
    block = run(pages.pack_page(0, [pages.pack_event(pages.make_record(1, 1, b"\xff" * 8))]))
    field = Field("x", 8, size, is_signed=signed, is_dynamic=False, is_array=False)
    assert block.integers(np.array([0]), field).tolist() == [value]


def test_a_field_behind_the_end_of_its_event_is_zero_and_never_a_neighbours():
    short = pages.make_record(442, 1, b"\x11" * 8)
    block = run(pages.pack_page(0, [pages.pack_event(short), pages.pack_event(pages.make_exit(2, 3, 4))]))
    events = block.select(442)
    assert block.integers(events, SYS_EXIT.fields["ret"]).tolist() == [0, 4]
    for offset in (9, 12, 16, 10000, 1 << 40):
        field = Field("x", offset, 8, is_signed=True, is_dynamic=False, is_array=False)
        assert block.integers(events[:1], field).tolist() == [0]


@pytest.mark.parametrize("size", [0, 3, 5, 16, 48, 1 << 40])
def test_a_number_of_an_odd_size_is_refused(size):
    block = run(pages.pack_page(0, [pages.pack_event(A)]))
    with pytest.raises(TraceFileError, match="bytes in an event"):
        block.integers(np.array([0]), Field("x", 8, size, is_signed=True, is_dynamic=False, is_array=False))


def test_texts():
    events = [
        pages.make_rename(5, b"old name", b"sixteen chars..."),
        pages.make_exec(5, b"/usr/bin/env"),
        pages.make_rename(5, b"\xff", b""),
    ]
    block = run(pages.pack_page(0, [pages.pack_event(event) for event in events]))
    assert block.text(0, RENAME.fields["oldcomm"]) == "old name"
    assert block.text(0, RENAME.fields["newcomm"]) == "sixteen chars..."
    assert block.text(1, EXEC.fields["filename"]) == "/usr/bin/env"
    assert block.text(2, RENAME.fields["oldcomm"]) == "\ufffd"
    assert block.text(2, RENAME.fields["newcomm"]) == ""


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [(20, 4, "abc"), (20, 2, "ab"), (20, 0xFFFF, "abc"), (0xFFFF, 0xFFFF, ""), (24, 4, ""), (28, 1, ""), (20, 0, "")],
)
def test_a_text_never_reaches_beyond_its_event(offset, size, text):
    record = pages.make_record(365, 1, struct.pack("HHii", offset, size, 1, 1) + b"abc\0")
    secret = pages.make_record(1, 1, b"secret!!")
    block = run(pages.pack_page(0, [pages.pack_event(record), pages.pack_event(secret)]))
    assert block.text(0, EXEC.fields["filename"]) == text


def test_a_text_of_an_event_that_is_too_short_for_it():
    block = run(pages.pack_page(0, [pages.pack_event(pages.make_record(204, 1, b"\0\0\0\0name")), pages.pack_event(B)]))
    assert block.text(0, RENAME.fields["oldcomm"]) == "name"
    assert block.text(0, RENAME.fields["newcomm"]) == ""


def test_a_whole_trace_in_the_order_of_time():
    assert list(gen_event_blocks(open_trace([[], []]), {})) == []
    first = [pages.pack_page(100, [pages.pack_event(A)]), pages.pack_page(300, [pages.pack_event(B)])]
    trace = open_trace([first, [], [pages.pack_page(200, [pages.pack_event(C)])]])
    assert trace.formats["raw_syscalls:sys_exit"].id == 442
    found = [pair for block in gen_event_blocks(trace, {}) for pair in zip(block.cpus.tolist(), block.times.tolist())]
    assert found == [(0, 100), (2, 200), (0, 300)]


def test_more_pages_than_one_block_takes(monkeypatch):
    monkeypatch.setattr(capture_pass, "_MAX_SLOT", 2 * SIZE)
    trace = open_trace([[pages.pack_page(number, [pages.pack_event(A)]) for number in range(5)]])
    assert [block.times.tolist() for block in gen_event_blocks(trace, {})] == [[0, 1], [2, 3], [4]]


def test_more_events_than_one_block_takes():
    events = [pages.pack_event(C, 1)] * 40
    trace = open_trace([[pages.pack_page(40 * number, events) for number in range(2000)]])
    sizes, before = [], 0
    for block in gen_event_blocks(trace, {}):
        assert block.times.tolist() == list(range(before + 1, before + 1 + len(block.times)))
        assert set(block.integers(np.arange(len(block.times)), SYS_EXIT.fields["common_type"]).tolist()) == {13}
        before += len(block.times)
        sizes.append(len(block.times))
    assert (before, len(sizes) > 1) == (80000, True)


def test_the_thread_of_an_event_is_what_it_is_after_it():
    first = [
        pages.make_record(11, 5, b"before"),
        pages.make_rename(5, b"old", b"new"),
        pages.make_record(11, 5, b"behind"),
        pages.make_record(11, 6, b"another"),
    ]
    (block,) = gen_event_blocks(open_trace([[pages.pack_page(1, [pages.pack_event(one, 1) for one in first])]]), {})
    tasks = block.tasks.tolist()
    assert (tasks[0], tasks[1] == tasks[2], tasks[3]) == (-1, True, -1)


def test_a_trace_cut_short_in_its_pages():
    page = pages.pack_page(0, [pages.pack_event(A)])
    data = pages.pack_trace([[page, page], [page]])
    for length in range(len(data) - 3 * SIZE, len(data), 97):
        with pytest.raises(TraceFileError, match="cut short: the pages of CPU"):
            Trace(io.BytesIO(data[:length]))


def test_pages_said_to_lie_behind_the_end():
    trace = Trace(io.BytesIO(pages.pack_trace([[pages.pack_page(0, [])]])))
    (place,) = trace.head.cpus
    for offset, size in ((1 << 40, SIZE), (place.offset, 1 << 62), (place.offset + 1, SIZE)):
        trace.head.cpus = [type(place)(0, offset, size)]
        with pytest.raises(TraceFileError):
            list(gen_event_blocks(trace, {}))


def test_pages_said_to_lie_at_a_place_that_no_file_has(tmp_path):
    path = tmp_path / "trace.dat"
    data = bytearray(pages.pack_trace([[pages.pack_page(0, [])]]))
    place = data.index(b"flyrecord\0") + len(b"flyrecord\0")
    data[place : place + 8] = struct.pack("Q", 1 << 63)
    path.write_bytes(bytes(data))
    with open(str(path), "rb") as file, pytest.raises(TraceFileError):
        list(gen_event_blocks(Trace(file), {}))
