# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls of a trace whose pages come in parts: the same calls as in one piece, each once, and as soon as its end is certain."""

from __future__ import annotations

import random

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live import stream as stream_module
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.page_queue import (
    PageForm,
    PageQueue,
    split_page,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.stream import LiveStream
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.ring_pages import MISSED_EVENTS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import TraceFileError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import machines, pages

MANIFEST = {
    "syscalls": {"0": "read", "39": "getpid", "56": "clone"},
    "arch": "x86_64",
    "complete": True,
    "first_tasks": [
        {"tid": tid, "tgid": tid, "comm": f"p{tid}", "container_tid": tid - 100, "compat": False} for tid in (101, 102)
    ],
}
KINDS = [pages.Machine(order, word) for order, word in machines.KINDS]
HEAD = pages.pack_trace([[], []])
FORM = PageForm(pages.PAGE_SIZE, 16, 8, pages.HERE.order)


def make_stream(machine=pages.HERE):
    return LiveStream(machine.pack_trace([[], []]), MANIFEST, [0, 1])


def page(*events):
    """A page of EVENTS, each (time, record)."""
    packed, last = [], events[0][0]
    for time, record in events:
        packed.append(pages.pack_event(record, time - last))
        last = time
    return pages.pack_page(events[0][0], packed)


def read(stream, until_ns, most=1000):
    """Process, name, result, start and duration of each call that ends before UNTIL_NS."""
    return [
        (call.pid, call.call, call.result, call.start_ns, call.duration_ns)
        for call in stream.gen_some(stream.list_ended(until_ns), most)
    ]


def test_a_call_that_is_split_over_two_reads_and_two_cpus_comes_once_and_whole():
    stream = make_stream()
    stream.add(0, page((1000, pages.make_enter(101, 39))))
    assert read(stream, 2000) == []
    assert read(stream, 2500) == []
    stream.add(1, page((3000, pages.make_exit(101, 39, 7))))
    assert read(stream, 4000) == [(101, "getpid", 7, 1000, 2000)]
    assert read(stream, None) == []
    assert stream.list_pending() == []


def test_what_ends_behind_the_time_waits_for_the_other_cpus():
    stream = make_stream()
    # The exit on CPU 1 has come, and the entry on CPU 0 has not.
    stream.add(1, page((1000, pages.make_exit(102, 0, 1)), (3000, pages.make_exit(101, 39, 7))))
    assert read(stream, 2000) == [(102, "read", 1, 1000, None)]
    stream.add(0, page((2500, pages.make_enter(101, 39))))
    assert read(stream, 4000) == [(101, "getpid", 7, 2500, 500)]


def test_a_loss_between_two_reads_makes_no_call_of_two_halves():
    stream = make_stream()
    stream.add(0, page((1000, pages.make_enter(101, 39)), (1100, pages.make_exit(101, 39, 1))))
    assert read(stream, 2000) == [(101, "getpid", 1, 1000, 100)]
    stream.add(0, page((5000, pages.make_exit(101, 0, 3))), has_gap=True)
    (call,) = stream.gen_some(stream.list_ended(None), 10)
    assert (call.call, call.result, call.duration_ns, call.denied, call.continued) == ("read", 3, None, False, True)
    # Without the gap the same exit is certain to be one that seccomp denied.
    stream = make_stream()
    stream.add(0, page((1000, pages.make_enter(101, 39)), (1100, pages.make_exit(101, 39, 1))))
    read(stream, 2000)
    stream.add(0, page((5000, pages.make_exit(101, 0, 3))))
    assert [call.denied for call in stream.gen_some(stream.list_ended(None), 10)] == [True]


def test_what_has_not_ended_comes_at_the_end():
    stream = make_stream()
    stream.add(0, page((1000, pages.make_enter(101, 0))))
    assert read(stream, None) == []
    (call,) = stream.gen_some(stream.list_pending(), 10)
    assert (call.call, call.unfinished, call.result) == ("read", True, None)


def test_the_number_that_clone_returns_is_the_childs_inside_the_container():
    stream = make_stream()
    stream.add(
        0,
        page(
            (1000, pages.make_enter(101, 56)),
            (1100, pages.make_newtask(101, 150, b"p101")),
            (1200, pages.make_exit(101, 56, 9)),
        ),
    )
    stream.add(0, page((2000, pages.make_enter(150, 39)), (2100, pages.make_exit(150, 39, 9))))
    assert [(call.pid, call.container_pid) for call in stream.gen_some(stream.list_ended(None), 10)] == [
        (101, 1),
        (150, 9),
    ]


def test_before_its_tables_are_full_it_begins_anew_with_the_threads_that_live(monkeypatch):
    monkeypatch.setattr(stream_module, "_MOST_TASKS", 6)
    stream = make_stream()
    found = []
    for index in range(20):
        time, child = 10_000 * (index + 1), 200 + index
        stream.add(
            0,
            page(
                (time, pages.make_enter(101, 56)),
                (time + 100, pages.make_newtask(101, child, b"child")),
                (time + 200, pages.make_exit(101, 56, 10 + index)),
                (time + 300, pages.make_enter(102, 0)),
            ),
        )
        stream.add(1, page((time + 400, pages.make_enter(child, 39)), (time + 500, pages.make_exit(child, 39, 1))))
        found += [
            (call.program, call.container_pid, call.call) for call in stream.gen_some(stream.list_ended(time + 600), 10)
        ]
        # The threads that live are known, also after the tables were emptied.
        stream.add(0, page((time + 700, pages.make_exit(102, 0, 5))))
        (call,) = stream.gen_some(stream.list_ended(time + 800), 10)
        assert (call.program, call.container_pid, call.result, call.denied) == ("p102", 2, 5, False)
    assert found == [one for index in range(20) for one in (("p101", 1, "clone"), ("child", 10 + index, "getpid"))]


def test_no_more_calls_are_named_than_there_is_room_for():
    stream = make_stream()
    for time in range(1000, 5000, 100):
        stream.add(0, page((time, pages.make_enter(101, 39)), (time + 10, pages.make_exit(101, 39, 1))))
    blocks = stream.list_ended(None)
    assert sum(len(block.starts) for block in blocks) == 40
    assert [call.start_ns for call in stream.gen_some(blocks, 3)] == [1000, 1100, 1200]


@pytest.mark.parametrize(("cpu", "data"), [(7, bytes(512)), (0, bytes(500))])
def test_what_are_no_pages_of_the_trace_is_refused(cpu, data):
    with pytest.raises(TraceFileError, match="no pages of this trace"):
        make_stream().add(cpu, data)


def make_events(source, machine):
    """Pages of two CPUs: threads that make calls, and move between the CPUs, with time stamps of each kind."""
    events = ([], [])
    time = 1000
    for _index in range(300):
        tid, number = source.choice((101, 102)), source.choice((0, 39))
        time += source.choice((1, 50, 1 << 28))
        events[source.randrange(2)].append((time, machine.make_enter(tid, number)))
        time += source.choice((1, 50))
        events[source.randrange(2)].append((time, machine.make_exit(tid, number, source.randrange(100))))
    return [list(gen_pages(source, machine, own)) for own in events]


def gen_pages(source, machine, events):
    while events:
        count = source.randrange(1, 6)
        some, events = events[:count], events[count:]
        last, packed = some[0][0], []
        for time, record in some:
            if time - last >= 1 << 27:
                packed.append(source.choice((machine.pack_time_extend(time - last), machine.pack_time_stamp(time))))
                last = time
            packed.append(machine.pack_event(record, time - last))
            last = time
        yield machine.pack_page(some[0][0], packed)


@pytest.mark.parametrize("machine", KINDS, ids=machines.name_machine)
@pytest.mark.parametrize("seed", range(5))
def test_any_parts_give_the_calls_of_the_whole(seed, machine, tmp_path):
    source = random.Random(seed)
    made = make_events(source, machine)
    path = tmp_path / "whole.dat"
    path.write_bytes(machine.pack_trace(made))
    with path.open("rb") as file:
        whole = list(gen_calls(Trace(file), MANIFEST))
    stream = make_stream(machine)
    found = []
    places = [0, 0]
    until = 0
    while places != [len(own) for own in made]:
        until += source.choice((10, 1 << 28, 1 << 32))
        for cpu, own in enumerate(made):
            # All pages that begin before the time have come, and some more.
            while places[cpu] < len(own) and (
                int.from_bytes(own[places[cpu]][:8], machine.order) < until or source.random() < 0.3
            ):
                stream.add(cpu, own[places[cpu]])
                places[cpu] += 1
        found += stream.gen_some(stream.list_ended(until), 10000)
    found += stream.gen_some(stream.list_ended(None) + stream.list_pending(), 10000)
    assert len(whole) == 300 and found == whole


@pytest.mark.parametrize("machine", KINDS, ids=machines.name_machine)
def test_a_page_is_split_before_the_time_stamp_that_belongs_to_the_next_event(machine):
    form = PageForm(machine.page_size, machine.header_size, machine.word, machine.order)
    first, second = machine.make_enter(101, 0), machine.make_exit(101, 0, 3)
    last = [machine.pack_time_extend(1 << 30), machine.pack_event(second, 5)]
    whole = machine.pack_page(1000, [machine.pack_event(first), *last])
    before, after = split_page(whole, form, 2000)
    assert before == machine.pack_page(1000, [machine.pack_event(first)])
    assert after == machine.pack_page(1000, last)
    assert split_page(whole, form, 1 << 40) == (whole, b"")
    assert split_page(after, form, 1000 + (1 << 30) + 6) == (after, b"")


def test_random_bytes_are_split_into_no_more_than_they_are():
    source = random.Random(7)
    for _index in range(3000):
        page_of = source.randbytes(8) + source.randrange(1024).to_bytes(8, "little") + source.randbytes(496)
        before, after = split_page(page_of, FORM, source.getrandbits(64))
        assert len(before) == 512 and len(after) in (0, 512)


@pytest.mark.parametrize("machine", KINDS, ids=machines.name_machine)
def test_pages_behind_a_gap_say_so(machine):
    queue = PageQueue(PageForm(machine.page_size, machine.header_size, machine.word, machine.order))
    made = [machine.pack_page(time, [machine.pack_event(machine.make_enter(101, 0))]) for time in (1000, 2000)]
    queue.put(b"".join(made), has_gap=True)
    taken = queue.take(None)
    assert machine.unpack("Q", taken) == (1000,) and taken[512:] == made[1]
    commit = [machine.unpack("Q" if machine.word == 8 else "I", one, 8)[0] for one in (taken, made[0])]
    assert commit == [MISSED_EVENTS | commit[1], commit[1]]
    assert taken[machine.header_size : 512] == made[0][machine.header_size :]
