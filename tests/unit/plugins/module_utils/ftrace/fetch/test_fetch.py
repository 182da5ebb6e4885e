# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments that a fetch drains, offers, keeps and removes on its host, where a folder plays tracefs."""

from __future__ import annotations

import hashlib
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch, outbox, ring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.fetch import Home
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import find_stamp
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_reader import read_segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import find_number
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

SIZE = kernels.PAGE_SIZE
CONTAINER = Container("0123456789ab" + "c" * 52, "web", "gone", 0, "image", {"a": "b"})
NAME = "crashcart-0123456789ab"


def make_page(number=1, events=2):
    return pages.pack_page(number, [pages.pack_event(b"data")] * events, size=SIZE)


def make_trace(kernel, name=NAME, container=CONTAINER):
    instance = Instance(kernel.root, name)
    instance.create()
    instance.write("trace_clock", "mono")
    return TraceInstance(instance, container)


def fill(trace, *contents):
    """Have the buffers of TRACE hold CONTENTS, one for each CPU, whose pages have two events each."""
    for cpu, content in enumerate(contents):
        kernels.give_pages(trace.instance, cpu, content)
        entries = 2 * len(content) // SIZE
        kernels.set_stats(trace.instance, cpu, entries=entries, size=len(content))


def run(found, home=None, *, consume=True):
    """A fetch: its result, the messages of what failed, and its warnings."""
    outcome, warnings = Outcome(), []
    given = fetch.fetch(found, outcome, Home(**(home or {})), warnings.append, consume=consume)
    return given, [one["msg"] for one in outcome.as_result()], warnings


def read(place):
    """Return the content of the segment at PLACE: its pages by CPU, and its document."""
    with open(place, "rb") as file:
        segment = read_segment(file)
        content = {cpu: b"".join(map(segment.read_chunk, chunks)) for cpu, chunks in segment.chunks.items()}
        return content, segment.document


def list_states():
    return [(one.instance, one.state) for one in outbox.list_segments()]


def put(stamp, state="new", content=b"x" * 100, instance=NAME):
    with outbox.hold_folder(), open(os.path.join(outbox.FOLDER, f"{instance}.{stamp:020d}.{state}"), "wb") as file:
        file.write(content)
    return f"{instance}.{stamp:020d}"


def list_offered(given):
    return [one["name"] for one in (given["transfer"] or {"segments": []})["segments"]]


def test_where_there_is_nothing_nothing_is_made(kernel, tmp_path):
    before = kernels.list_files(str(tmp_path))
    given, failures, warnings = run([], {"cursor": 5})
    assert given == {"changed": False, "transfer": None, "empty": [], "cursor": "5", "more": False}
    assert (failures, warnings, kernels.list_files(str(tmp_path))) == ([], [], before)


def test_what_the_buffers_hold_is_offered_whole(kernel):
    trace = make_trace(kernel)
    metadata.write_record(trace.instance, {"clock": "mono", "tasks": [], "specification": {"syscalls": None}})
    first, second = make_page(1) + make_page(2), make_page(3)
    fill(trace, first, second)
    assert fetch.foresee([trace], Home())
    given, failures, warnings = run([trace])
    assert (given["changed"], given["empty"], given["more"], failures, warnings) == (True, [], False, [], [])
    transfer = given["transfer"]
    content, document = read(transfer["path"])
    assert content == {0: first, 1: second}
    assert (document["pages"], document["mode"], document["container"]["name"]) == (3, "ring", "web")
    assert (document["clock"], document["specification"]) == ("mono", {"syscalls": None})
    (one,) = outbox.list_segments()
    assert given["cursor"] == str(one.stamp_ns)
    with open(one.path, "rb") as file:
        whole = file.read()
    assert transfer["segments"] == [
        {"name": one.name, "state": "new", "size": len(whole), "start": 0, "sha256": hashlib.sha256(whole).hexdigest()}
    ]
    assert os.stat(transfer["path"]).st_size == transfer["size"] == len(whole)


def test_a_trace_that_nobody_watched_says_so(kernel):
    trace = make_trace(kernel)
    fill(trace, make_page())
    given, _failures, _warnings = run([trace])
    _content, document = read(given["transfer"]["path"])
    assert (document["complete"], document["reasons"]) == (False, [client.NOBODY])


def test_a_trace_that_the_recorder_watches_is_complete(kernel, monkeypatch):
    trace = make_trace(kernel)
    with kernels.recorder(kernel, monkeypatch):
        inode = os.stat(trace.instance.path).st_ino
        with client.change(NAME) as change:
            change.place(orders.Order(NAME, kernel.root, inode, CONTAINER, Limits()))
        fill(trace, make_page(), make_page(2))
        given, failures, _warnings = run([trace])
        content, document = read(given["transfer"]["path"])
        assert (document["complete"], document["reasons"], failures) == (True, [], [])
        assert content == {0: make_page(), 1: make_page(2)}
        # What somebody did is told once, with what it has to do with.
        kernels.put(f"{trace.instance.path}/trace", "")
        reasons = []
        for number in (3, 4):
            kernels.give_pages(trace.instance, 0, make_page(number))
            given, _failures, _warnings = run([trace])
            (document,) = [read(one.path)[1] for one in outbox.list_segments()[-1:]]
            reasons.append(document["reasons"])
        assert "cleared the trace" in reasons[0][0] and reasons[1] == []


def test_a_buffer_without_events_gives_no_segment(kernel):
    trace = make_trace(kernel)
    assert not fetch.foresee([trace], Home())
    given, failures, _warnings = run([trace])
    assert (given["changed"], given["transfer"], failures) == (False, None, [])
    assert [one["instance"] for one in given["empty"]] == [NAME]
    assert os.listdir(outbox.FOLDER) == []


def test_what_was_taken_is_noted_in_the_record_of_its_trace(kernel):
    trace = make_trace(kernel)
    kernels.set_stats(trace.instance, 0, entries=7)
    metadata.write_record(trace.instance, {"clock": "mono"})
    with metadata.noting_discarded(trace.instance):
        kernels.set_stats(trace.instance, 0)
    fill(trace, make_page())
    given, _failures, _warnings = run([trace])
    _content, document = read(given["transfer"]["path"])
    assert (document["discarded"], document["lost"]) == (7, 7)
    record = metadata.read_record(trace.instance)
    # The next one begins here.
    assert metadata.read_discarded(record) == metadata.NOTHING_DISCARDED and record["changed"]["offset_ns"] is not None


def test_one_cpu_that_cannot_be_read_costs_no_other_and_is_told(kernel):
    trace = make_trace(kernel)
    fill(trace, make_page(), b"")
    os.unlink(f"{trace.instance.path}/per_cpu/cpu1/trace_pipe_raw")
    os.mkdir(f"{trace.instance.path}/per_cpu/cpu1/trace_pipe_raw")
    given, failures, _warnings = run([trace])
    content, document = read(given["transfer"]["path"])
    assert content == {0: make_page()}
    assert (document["complete"], document["cpus"][1]["error"]) == (False, "Is a directory")
    assert failures == ["Is a directory"]


def test_a_buffer_that_cannot_be_opened_is_told(kernel):
    trace = make_trace(kernel)
    fill(trace, make_page(), b"")
    os.unlink(f"{trace.instance.path}/per_cpu/cpu1/trace_pipe_raw")
    given, failures, _warnings = run([trace])
    _content, document = read(given["transfer"]["path"])
    assert (document["complete"], document["cpus"][1]["error"]) == (False, "its buffer cannot be opened")
    assert failures == ["its buffer cannot be opened"]


def test_one_trace_that_cannot_be_read_costs_no_other(kernel):
    bad, good = make_trace(kernel), make_trace(kernel, "crashcart-ffffffffffff", None)
    fill(good, make_page())
    os.unlink(f"{bad.instance.path}/events/header_page")
    given, (failure,), _warnings = run([bad, good])
    assert "cannot read events/header_page" in failure
    # Nothing of it stays: its events are still in the kernel.
    assert list_states() == [("crashcart-ffffffffffff", "new")]
    assert len(list_offered(given)) == 1
    assert read(given["transfer"]["path"])[1]["container"]["id"] == "ffffffffffff"


def test_a_trace_that_goes_meanwhile_is_none(kernel):
    trace = make_trace(kernel)
    sources = [ring.Source(trace.instance, 0, ring.RingDrain(trace).take)]
    kernel.rmdir(trace.instance.path)
    outcome = Outcome()
    with outbox.hold_folder():
        assert ring.stage([trace], outcome, lambda _trace: sources, []) == ([], False)
        assert ring.stage([trace], outcome, lambda one: [one.instance.read("tracing_on")], []) == ([], False)
    assert (outcome.as_result(), list_states()) == ([], [])


def test_a_fetch_that_is_killed_leaves_what_it_has_drained_and_says_so(kernel):
    trace = make_trace(kernel)
    fill(trace, make_page(), make_page(2))
    child = os.fork()
    if child == 0:

        class Dying(SegmentWriter):
            def write_chunk(self, cpu, packed, size):
                if cpu:
                    os._exit(7)
                super().write_chunk(cpu, packed, size)

        try:
            ring.SegmentWriter = Dying
            ring.drain.ThreadPoolExecutor = Serial
            run([trace])
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 7 << 8
    assert list_states() == [(NAME, "part")]
    given, failures, _warnings = run([])
    content, document = read(given["transfer"]["path"])
    assert (content, failures) == ({0: make_page()}, [])
    assert (document["complete"], document["lost_exact"]) == (False, False)
    assert "CPU 1: the fetch was killed" in document["reasons"]


class Serial:
    """A pool without threads: what a child that was forked does one after the other."""

    def __init__(self, _count):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        return False


def test_what_never_came_home_is_offered_to_everybody_and_what_is_kept_to_those_who_ask(kernel):
    trace = make_trace(kernel)
    waiting = put(10, instance="crashcart-gone00000000")
    kept = put(20, "kept")
    put(30, "kept", instance="crashcart-gone00000000")
    assert list_offered(run([])[0]) == [waiting]
    there = Home(cursor=10)
    assert (fetch.foresee([], there), fetch.foresee([trace], there)) == (False, True)
    for name in os.listdir(outbox.FOLDER):
        if name.startswith("transfer"):
            os.unlink(os.path.join(outbox.FOLDER, name))
    given, _failures, _warnings = run([trace])
    assert list_offered(given) == [waiting, kept]
    assert given["cursor"] == "20"


@pytest.mark.parametrize("consume", [True, False])
@pytest.mark.parametrize("by", ["stamps", "cursor"])
def test_what_is_at_home_is_offered_no_more(kernel, consume, by):
    trace = make_trace(kernel)
    name, kept = put(10**18), put(10**18 + 5000, "kept")
    newer = put(10**18 + 10**9)
    home = {"stamps": [find_stamp(name), find_stamp(kept)]} if by == "stamps" else {"cursor": 10**18 + 5000}
    assert fetch.foresee([trace], Home(**home)) and not fetch.foresee([], Home(cursor=10**18 + 10**9))
    given, _failures, _warnings = run([trace], home, consume=consume)
    assert list_offered(given) == [newer]
    # Consumed, or from now on kept for others: it arrived, and the word of that did not.
    assert list_states() == ([] if consume else [(NAME, "kept"), (NAME, "kept")]) + [(NAME, "new")]
    assert given["cursor"] == str(10**18 + 10**9)


def test_what_was_just_drained_is_offered_whatever_a_cursor_says(kernel):
    trace = make_trace(kernel)
    fill(trace, make_page())
    given, _failures, _warnings = run([trace], {"cursor": 1 << 62})
    assert len(list_offered(given)) == 1 and given["changed"]
    assert given["cursor"] == str(1 << 62)


def test_a_transfer_that_broke_goes_on_where_it_ended(kernel):
    name = put(10, content=b"abcdef")
    first, _failures, _warnings = run([])
    home = {"broken": first["transfer"]["path"], "parts": {name: 2}}
    again, _failures, warnings = run([], home)
    assert not os.path.exists(first["transfer"]["path"])
    assert (again["transfer"]["segments"][0]["start"], warnings) == (2, [])
    with open(again["transfer"]["path"], "rb") as file:
        assert file.read() == b"cdef"


def test_what_another_fetch_is_bringing_home_is_left_to_it(kernel):
    mine, others = put(10_000), put(20_000)
    run([])
    given, _failures, (warning,) = run([], {"parts": {mine: 1}})
    assert list_offered(given) == [mine]
    assert warning.startswith("1 earlier captures are being transferred by another fetch")
    # What it has at home already is none of these.
    given, _failures, warnings = run([], {"parts": {mine: 1}, "stamps": [find_stamp(others)]}, consume=False)
    assert (list_offered(given), warnings) == ([mine], [])
    assert list_states() == [(NAME, "new"), (NAME, "kept")]


def test_what_is_no_segment_yet_is_made_one_or_removed(kernel):
    put(10, "part", content=b"torn")
    given, failures, _warnings = run([])
    assert (given["transfer"], failures, list_states()) == (None, [], [])


def test_where_too_much_waits_nothing_is_drained_and_what_waits_is_offered(kernel, monkeypatch):
    trace = make_trace(kernel)
    fill(trace, make_page())
    waiting = put(10)
    monkeypatch.setattr(outbox, "MAX_WAITING", 99)
    outcome = Outcome()
    given = fetch.fetch([trace], outcome, Home(), lambda _text: None, consume=True)
    assert list_offered(given) == [waiting]
    with pytest.raises(Exception, match="wait in .* to be fetched"):
        outcome.check()
    assert ring.count_entries(trace) == 2 and list_states() == [(NAME, "new")]


def test_what_has_no_room_beside_others_waits_for_the_next_fetch(kernel, monkeypatch):
    first, second = make_trace(kernel), make_trace(kernel, "crashcart-ffffffffffff", None)
    for trace in (first, second):
        fill(trace, make_page())
    monkeypatch.setattr(outbox, "find_room", lambda: SIZE - len(os.listdir(outbox.FOLDER)))
    given, failures, _warnings = run([first, second])
    assert (given["more"], failures, list_states()) == (True, [], [(NAME, "new")])


def test_where_there_is_no_room_for_the_first_one_it_is_said(kernel, monkeypatch):
    trace = make_trace(kernel)
    fill(trace, make_page())
    monkeypatch.setattr(outbox, "find_room", lambda: SIZE - 1)
    given, (failure,), _warnings = run([trace])
    assert f"has {SIZE - 1 >> 10} KiB free and the traces hold up to {SIZE >> 10} KiB: make room there" in failure
    assert (given["transfer"], given["more"], os.listdir(outbox.FOLDER)) == (None, False, [])


def test_a_segment_is_compressed_as_its_reader_can(kernel):
    for methods, wanted in ((["zlib"], "zlib"), (["nonesuch"], "zlib"), ([], "zlib")):
        trace = make_trace(kernel, f"crashcart-{len(list_states()):012}", None)
        fill(trace, make_page())
        run([trace], {"methods": methods})
        with open(outbox.list_segments()[-1].path, "rb") as file:
            assert read_segment(file).compression == wanted


def read_holdings(given):
    """Return the times at which descriptors were read at both ends of the one offered segment."""
    _content, document = read(given["transfer"]["path"])
    return {when: document["descriptors"]["time_ns"][when] for when in ("first", "last")}


def test_a_capture_begins_with_what_was_held_at_the_end_of_the_one_before(kernel, monkeypatch):
    times = iter((20, 30, 40))
    monkeypatch.setattr(ring, "collect", lambda _container: {"time_ns": next(times), "descriptors": []})
    trace = make_trace(kernel)
    trace.instance.trace_on()
    metadata.write_record(trace.instance, {"clock": "mono", metadata.HOLDINGS: {"time_ns": 10}})
    fill(trace, make_page(1))
    assert read_holdings(run([trace])[0]) == {"first": 10, "last": 20}
    kernels.take_pages(trace.instance, 0)
    fill(trace, make_page(2))
    given = run([trace], {"cursor": outbox.list_segments()[-1].stamp_ns})[0]
    assert read_holdings(given) == {"first": 20, "last": 30}


def test_a_trace_that_was_stopped_tells_what_was_held_then(kernel, monkeypatch):
    monkeypatch.setattr(ring, "collect", lambda _container: {"time_ns": 99})
    trace = make_trace(kernel)
    trace.instance.trace_off()
    held = {metadata.HOLDINGS: {"time_ns": 10}, metadata.LAST_HOLDINGS: {"time_ns": 20}}
    metadata.write_record(trace.instance, {"clock": "mono", "end": {}, **held})
    fill(trace, make_page(1))
    assert read_holdings(run([trace])[0]) == {"first": 10, "last": 20}


def look(second, *waits):
    """Return a description of what processes of a container hold and wait for at SECOND."""
    return {"time_ns": second * 10**9, "waits": list(waits), "left_out": {}}


LOCKED = {"tid": 5, "number": find_number("flock"), "args": [3, 2, 0, 0, 0, 0]}


def test_a_wait_for_a_lock_is_a_capture_without_events(kernel, monkeypatch):
    looks = [look(20, LOCKED), look(20, LOCKED), look(30, LOCKED), look(40)]
    monkeypatch.setattr(ring, "collect", lambda _container: looks.pop(0))
    trace = make_trace(kernel)
    trace.instance.trace_on()
    metadata.write_record(trace.instance, {"clock": "mono", metadata.HOLDINGS: look(10, LOCKED)})
    assert fetch.foresee([trace], Home())
    given, failures, _warnings = run([trace])
    assert (given["changed"], given["empty"], failures) == (True, [], [])
    content, document = read(given["transfer"]["path"])
    assert (content, document["entries"], document["pages"]) == ({}, 0, 0)
    assert (document["waits"]["first"], document["waits"]["last"]) == ([LOCKED], [LOCKED])
    # The next one begins where this one ends, and the one after it tells nothing any more.
    stamp = outbox.list_segments()[-1].stamp_ns
    given, _failures, _warnings = run([trace], {"cursor": stamp})
    assert read(given["transfer"]["path"])[1]["waits"]["time_ns"] == {"first": 20 * 10**9, "last": 30 * 10**9}
    given, _failures, _warnings = run([trace], {"cursor": outbox.list_segments()[-1].stamp_ns})
    assert (given["changed"], len(given["empty"])) == (False, 1)


def test_what_a_trace_that_was_stopped_waited_for_is_told_once(kernel, monkeypatch):
    monkeypatch.setattr(ring, "collect", lambda _container: look(99, LOCKED))
    trace = make_trace(kernel)
    trace.instance.trace_off()
    held = {metadata.HOLDINGS: look(10, LOCKED), metadata.LAST_HOLDINGS: look(20, LOCKED)}
    metadata.write_record(trace.instance, {"clock": "mono", "end": {}, **held})
    given, _failures, _warnings = run([trace])
    assert given["changed"]
    assert not fetch.foresee([trace], Home(cursor=outbox.list_segments()[-1].stamp_ns))
    given, _failures, _warnings = run([trace], {"cursor": outbox.list_segments()[-1].stamp_ns})
    assert (given["changed"], len(given["empty"])) == (False, 1)


def test_of_a_trace_of_an_older_version_the_beginning_is_not_known(kernel):
    trace = make_trace(kernel)
    metadata.write_record(trace.instance, {"clock": "mono"})
    fill(trace, make_page(1))
    _content, document = read(run([trace])[0]["transfer"]["path"])
    assert document["waits"] == {
        "first": None,
        "last": None,  # the container does not run
        "left_out": {"first": 0, "last": 0},
        "time_ns": {"first": None, "last": None},
    }
