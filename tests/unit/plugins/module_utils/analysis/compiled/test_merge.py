# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events of many CPUs in the order of time, and pages that are damaged."""

from __future__ import annotations

import io
import random
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import gen_calls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import capture_pass, codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.compiled.scripts import (
    FORMATS,
    MANIFEST,
    Script,
    pack_pages,
)


@pytest.mark.parametrize(("cpus", "span"), [(1, 1000), (2, 50), (7, 10**12), (64, 3000), (300, 10**6)])
@pytest.mark.parametrize("slot", [512, 1 << 20])
def test_merging_is_sorting(monkeypatch, cpus, span, slot):
    monkeypatch.setattr(capture_pass, "_MAX_SLOT", slot)
    chance = random.Random(cpus)
    events = [(chance.randrange(1, span), chance.randrange(cpus)) for _index in range(3000)]
    events.sort()
    script = Script()
    for index, (time, cpu) in enumerate(events):
        script.exit(10 + index % 5, "read", index, cpu=cpu, time=time)
    # The last CPU has no events at all.
    calls = script.calls()
    assert [call.start_ns for call in calls] == [time for time, _cpu in events]
    assert [call.result for call in calls] == list(range(3000))


def test_ends_come_in_the_order_of_time_whatever_the_cpu():
    chance = random.Random(5)
    script, ends = Script(), []
    for tid in range(100, 500):
        start = chance.randrange(1000, 10**6)
        end = start + chance.randrange(1, 10**5)
        ends.append((end, tid))
        script.enter(tid, "read", cpu=chance.randrange(9), time=start)
        script.exit(tid, "read", tid, cpu=chance.randrange(9), time=end)
    script.events.sort(key=lambda event: event[0])
    calls = script.calls()
    assert [(call.start_ns + call.duration_ns, call.tid) for call in calls] == sorted(ends)
    tables = script.tables()
    assert (tables.start_ns, tables.end_ns) == (min(event[0] for event in script.events), max(ends)[0])


def test_no_events_and_no_cpus():
    for packed in (pages.pack_trace([]), pages.pack_trace([[], []]), pages.pack_trace([[pages.pack_page(7, [])]])):
        assert list(gen_calls(Trace(io.BytesIO(packed)), MANIFEST)) == []


def make_script(seed):
    chance = random.Random(seed)
    script = Script()
    for index in range(60):
        tid = chance.randrange(5, 9)
        chance.choice(
            [
                lambda tid=tid, index=index: script.open(tid, b"/%d" % index, index % 9),
                lambda tid=tid: script.rename(tid, b"/a", b"/b"),
                lambda tid=tid: script.call(tid, "read", 3, result=1),
                lambda tid=tid, index=index: script.fork(tid, 20 + index),
                lambda tid=tid: script.execute(tid),
                lambda tid=tid: script.connect(tid, 3, bytes([10, 0, 0, 1]), 80),
                lambda tid=tid: script.deliver(tid, 11),
                lambda tid=tid: script.mark_victim(tid, 6),
                lambda tid=tid: script.add(pages.make_rename(tid, b"old", b"new")),
            ]
        )()
    return script, chance


def damage(page, chance):
    page = bytearray(page)
    for _index in range(chance.choice([1, 2, 8])):
        page[chance.randrange(len(page))] = chance.choice(
            [0, 1, 4, 0x1D, 0x1E, 0x1F, 0x7F, 0xFF, chance.randrange(256)]
        )
    if chance.random() < 0.3:
        struct.pack_into("I", page, 8, chance.choice([496, 512, 1 << 19, 0xFFFFF, chance.randrange(496)]))
    return bytes(page)


def run(content, behind):
    """Return the results of a pass over pages, each followed by a page without events, full of the byte BEHIND."""
    filler = struct.pack("QQ", 1, 0) + bytes([behind]) * (pages.PAGE_SIZE - 16)
    packed = pages.pack_trace([[piece for page in content for piece in (page, filler)]], more_formats=FORMATS)
    made = CapturePass(Trace(io.BytesIO(packed)), MANIFEST, wants_calls=True)
    blocks = [block.tolist() for block in made.gen_blocks()]
    state = made.state
    names = state.task_names[: state.scalars[codes.TASKS]].tolist()
    arena = state.arena[: state.scalars[codes.ARENA]].tobytes()
    sides = state.sides[: state.scalars[codes.SIDES]].tolist()
    return (blocks, names, arena, sides, state.event_counts.tolist()), int(state.scalars[codes.EVENTS])


@pytest.mark.parametrize("seed", range(40))
def test_damaged_pages_are_read_to_their_ends_and_no_further(seed):
    script, chance = make_script(seed)
    content = [damage(page, chance) for page in pack_pages([(time, record) for time, _cpu, record in script.events])]
    first, events = run(content, 0)
    assert run(content, 0xFF) == (first, events)
    assert sum(len(pages.decode_slowly(page)) for page in content) == events


def test_random_pages():
    chance = random.Random(6)
    for _index in range(20):
        content = [
            struct.pack("QQ", chance.getrandbits(63), 496) + chance.randbytes(pages.PAGE_SIZE - 16)
            for _page in range(30)
        ]
        assert run(content, 0) == run(content, 0xFF)


ENTER_READ = (
    pages.SYS_EXIT_EXECVE.replace("sys_exit_execve", "sys_enter_read")
    .replace("877", "901")
    .replace("long ret", "unsigned long fd")
    .encode()
)


def test_an_entry_that_is_too_short_for_its_arguments_is_none():
    counts = []
    for size in (4, 8, 12, 16, 24):
        script = Script()
        script.add(pages.make_record(901, 5, struct.pack("i4xq8x", 0, 3)[:size]))
        trace = script.trace(more_formats={**FORMATS, "syscalls": [ENTER_READ]})
        counts.append(len(list(gen_calls(trace, MANIFEST))))
    assert counts == [0, 0, 0, 1, 1]
