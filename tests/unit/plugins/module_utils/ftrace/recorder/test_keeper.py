# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One trace that is looked after, in a folder that plays tracefs: when it ends, whom it follows, what others have done to it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import LOOK_S, START_LOOK_S
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import handover, orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import keeper as keepers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.keeper import Keeper
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

NAME = "crashcart-0123456789ab"
WEB = Container("0123456789ab" + "c" * 52, "web", "exited", 0, "image", {})


@pytest.fixture
def instance(kernel):
    made = Instance(kernel.root, NAME)
    made.create()
    made.write("trace_clock", "mono")
    made.event_enable("sched:sched_switch", "")
    metadata.write_record(made, {"clock": "mono", "events": {"sched:sched_switch": ""}})
    made.trace_on()
    return made


@pytest.fixture
def keep(instance):
    """Yield a function that makes a Keeper of the instance with LIMITS; the keepers end with the test."""
    watcher, made = Watcher(), []

    def start(limits=None, **more):
        inode = os.stat(instance.path).st_ino
        order = Order(**{"name": NAME, "root": instance.root, "inode": inode, "container": WEB, **more})
        order = replace(order, limits=limits or Limits())
        orders.write_order(order)
        made.append(Keeper(order, watcher))
        return made[-1]

    yield start
    for one in made:
        one.close()
        one.watch.close()
    watcher.close()


def look(keeper):
    return keeper.work(is_ready=False, is_due=True)


def test_a_trace_without_limits_goes_on_and_its_lock_is_held(keep):
    keeper = keep()
    assert look(keeper) is None
    assert locks.find_holder(orders.find_lock(NAME)) == os.getpid()
    assert (keeper.has_bounds, keeper.turn_fd, keeper.is_awaiting) == (False, None, False)
    assert orders.read_order(NAME).watched is not None


def test_a_ttl_ends_a_trace_unless_more_time_was_given(keep):
    keeper = keep(Limits(ttl_s=100.0), deadline=boot.read_clock() + 100)
    assert look(keeper) is None and keeper.has_bounds
    keeper.order = replace(keeper.order, deadline=boot.read_clock() - 1)
    assert look(keeper) == keepers.TTL_IS_OVER
    assert keeper.work(is_ready=True, is_due=False) is None  # it is not looked at all the time
    keeper.order = replace(keeper.order, deadline=boot.read_clock() + 100)
    assert look(keeper) is None


def test_what_is_recorded_too_fast_ends_a_trace(keep, instance):
    keeper = keep(Limits(max_rate=10))
    kernels.set_stats(instance, 0, entries=20, read=10)
    assert look(keeper) is None  # programs start with a burst
    kernels.set_stats(instance, 0, entries=20, read=10, overrun=10**9)
    assert "more than max_rate (10) allows" in look(keeper)


def test_what_is_lost_ends_a_trace_where_it_is_more_than_allowed(keep, instance):
    kernels.set_stats(instance, 1, overrun=50)  # from before
    keeper = keep(Limits(max_loss=3))
    kernels.set_stats(instance, 1, overrun=52, dropped=1)
    assert look(keeper) is None
    kernels.set_stats(instance, 1, overrun=52, dropped=2)
    assert look(keeper) == "it lost 4 events, more than max_loss (3) allows"


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_an_instance_that_somebody_removed_is_gone(keep, instance, kernel, is_made_anew):
    keeper = keep()
    os.rename(instance.path, f"{kernel.root}/kept")  # so that the next one has another inode
    if is_made_anew:
        os.mkdir(instance.path)
    assert look(keeper) == keepers.REMOVED


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"inode": 1}, "another one has its name"),
        ({"limits": Limits(restarts=True), "group": "/nonesuch/group"}, "No such file or directory"),
        ({"limits": Limits(restarts=True), "group": "/tmp/group", "run": "/nonesuch"}, "NoneType"),
    ],
)
def test_an_order_that_cannot_be_taken_on_leaves_nothing_open(instance, more, error):
    watcher = Watcher()
    before = os.listdir("/proc/self/fd")
    order = Order(NAME, instance.root, os.stat(instance.path).st_ino, WEB)
    with pytest.raises((TraceError, OSError, TypeError), match=error):
        Keeper(replace(order, **more), watcher)
    assert not orders.is_taken(NAME)
    assert os.listdir("/proc/self/fd") == before
    watcher.close()


def test_of_a_trace_that_has_ended_no_limit_holds(keep, instance):
    keeper = keep(Limits(max_loss=0, ttl_s=1.0), ended="it was stopped", deadline=boot.read_clock() - 1)
    kernels.set_stats(instance, 0, overrun=99)
    assert (look(keeper), keeper.has_bounds) == (None, False)


def test_a_ring_that_ends_by_itself_is_off_and_says_why_and_is_only_watched(keep, instance):
    keeper = keep(Limits(max_loss=0, ttl_s=1.0), deadline=boot.read_clock() - 1)
    keeper.finish("its time is over")
    assert not instance.is_tracing()
    assert instance.read_events() == {}
    record = metadata.read_record(instance)
    assert record["stopped"] == "its time is over" and record["end"]["offset_ns"] is not None
    assert orders.read_order(NAME).ended == "its time is over"
    kernels.set_stats(instance, 0, overrun=99)
    assert (look(keeper), keeper.has_bounds) == (None, False)
    # What we have written ourselves is nobody else's doing.
    assert keeper.watch.list_reasons() == []


def test_a_trace_whose_order_was_withdrawn_goes_on_and_one_that_ends_forgets_its_order(keep, instance):
    keeper = keep()
    keeper.end(None)
    assert instance.is_tracing() and not orders.is_taken(NAME)
    assert orders.read_order(NAME) is not None
    keeper = keep()
    keeper.end("it was terminated")
    assert not instance.is_tracing()
    assert (orders.read_order(NAME), orders.is_taken(NAME)) == (None, False)


def test_readers_are_lent_with_what_others_have_done(keep, instance):
    keeper = keep()
    kernels.give_pages(instance, 1, b"page")
    readers, reasons = keeper.lend([0, 1, 7])
    assert (sorted(readers), reasons) == ([0, 1], [])
    assert os.read(readers[1], 100) == b"page"
    for fd in readers.values():
        os.close(fd)
    kernels.set_stats(instance, 0, read=5)
    readers, reasons = keeper.lend([])
    assert (readers, reasons) == ({}, ["somebody else has taken 5 events"])


def test_what_a_module_has_changed_is_wanted_from_then_on(keep, instance):
    keeper = keep()
    keeper.watch.begin_change()
    kernels.put(f"{instance.path}/tracing_cpumask", "1\n")
    keeper.end_change()
    assert (look(keeper), keeper.watch.list_reasons()) == (None, [])
    kernels.put(f"{instance.path}/tracing_cpumask", "3\n")
    assert keeper.watch.list_reasons() == ["somebody else wrote to tracing_cpumask"]


@pytest.mark.parametrize(("limits", "seconds"), [({}, 1.0), ({"ttl_s": 5.0}, 0.25), ({"watch": True}, LOOK_S)])
def test_how_often_it_is_looked_at(keep, limits, seconds):
    assert keep(Limits(**limits)).look_s == seconds


@pytest.fixture
def processes():
    """Yield a function that starts a process; all processes end with the test."""
    started = []

    def start(*command):
        started.append(subprocess.Popen(command or ["sleep", "600"], stdout=subprocess.PIPE))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()
        one.stdout.close()


def set_group(folder, *pids):
    kernels.put(f"{folder}/cgroup.procs", "".join(f"{pid}\n" for pid in pids))


def test_processes_that_come_into_the_group_are_followed_once(keep, instance, tmp_path, processes):
    first, second = processes().pid, processes().pid
    group = f"{tmp_path}/group"
    set_group(group, first)
    keeper = keep(Limits(watch=True), group=group)
    assert look(keeper) is None
    assert instance.read_pids("set_event_pid") == {first}
    set_group(group, first, second)
    look(keeper)
    assert instance.read_pids("set_event_pid") == {first, second}
    assert keeper.watch.list_reasons() == []
    # Whom somebody has taken off is not put back: he is no news.
    instance.write("set_event_pid", "")
    look(keeper)
    assert instance.read_pids("set_event_pid") == set()


@pytest.mark.parametrize("tools", [True, False])
def test_tools_of_ours_are_followed_where_that_was_asked_for(keep, instance, tmp_path, processes, tools):
    os.symlink(sys.executable, tmp_path / "crashcart-super")  # by which a supervisor is known
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    supervisor = processes(str(tmp_path / "crashcart-super"), "-S", "-c", script)
    tool = int(supervisor.stdout.readline())
    try:
        set_group(f"{tmp_path}/group", tool)
        keeper = keep(Limits(watch=True, tools=tools), group=f"{tmp_path}/group")
        look(keeper)
        assert instance.read_pids("set_event_pid") == ({tool} if tools else set())
    finally:
        os.kill(tool, 9)


def test_a_container_that_starts_again_is_followed_with_its_shim(keep, instance, tmp_path, processes):
    os.symlink("/bin/sh", tmp_path / "containerd-shim")
    group = f"{tmp_path}/groups/{WEB.id}"
    os.makedirs(os.path.dirname(group))
    keeper = keep(Limits(restarts=True, descends=True), group=group)
    assert keeper.is_awaiting and look(keeper) is None
    assert (keeper.look_s, instance.read_pids("set_event_pid")) == (0.25, set())
    shim = processes(str(tmp_path / "containerd-shim"), "-c", "sleep 600 & echo $!; wait")
    first = int(shim.stdout.readline())
    set_group(group, first)
    assert keeper.look_s == START_LOOK_S  # it comes
    assert look(keeper) is None
    assert instance.read_pids("set_event_pid") == {first, shim.pid}
    assert not keeper.is_awaiting and keeper.watch.list_reasons() == []
    # It ends, and what it was before is no start.
    os.kill(first, 9)
    while kernels.is_alive(first):
        pass
    assert look(keeper) is None
    assert keeper.is_awaiting
    look(keeper)
    assert keeper.is_awaiting


@pytest.fixture
def record(instance, monkeypatch, keep, processes):
    """Return a function that records the instance of a container whose process sleeps, and returns the process and its Keeper."""
    monkeypatch.setattr(keepers, "open_process", lambda container: Process(container.pid))

    def start(**limits):
        process = processes()
        container = replace(WEB, pid=process.pid, state="running")
        most = {"max_bytes": 1 << 30, "rotate_bytes": 1 << 20, "rotate_s": 3600.0}
        wanted = Limits(is_recorded=True, **{**most, **limits})
        run = recordings.create(NAME, *handover.describe(instance, container, wanted, {}))
        return process, keep(wanted, container=container, run=run)

    return start


def read_recorded():
    (recording,) = recordings.list_recordings(NAME)
    return b"".join(recordings.gen_pages(recording.list_segments(), 0)), recording.read_end()


def test_a_recording_ends_with_its_container_and_has_what_the_buffers_held(record, instance):
    process, keeper = record()
    page = pages.pack_page(1, [pages.pack_event(b"data")], size=kernels.PAGE_SIZE)
    kernels.give_pages(instance, 0, page)
    assert keeper.has_bounds and keeper.work(is_ready=True, is_due=False) is None
    assert read_recorded()[0] == page
    kernels.give_pages(instance, 0, page)
    assert look(keeper) is None
    process.kill()
    process.wait()
    assert look(keeper) == keepers.CONTAINER_ENDED
    keeper.end(keepers.CONTAINER_ENDED)
    content, end = read_recorded()
    assert (content, end["why"], end["touched"]) == (page * 2, keepers.CONTAINER_ENDED, [])
    assert end["time"]["offset_ns"] is not None and end["tasks"] == [] and end["saved_cmdlines"] == ""
    assert not instance.is_tracing() and orders.read_order(NAME) is None


def test_a_fetch_that_asks_gets_the_segment_that_is_written(record, instance):
    _process, keeper = record()
    kernels.give_pages(instance, 0, pages.pack_page(1, [pages.pack_event(b"data")], size=kernels.PAGE_SIZE))
    kernels.put(f"{keeper.order.run}/finish", "")
    assert look(keeper) is None
    assert not os.path.exists(f"{keeper.order.run}/finish")
    (recording,) = recordings.list_recordings(NAME)
    assert [one.end is not None for one in recording.list_segments()] == [True, False]


def test_a_recording_ends_where_there_is_no_room_for_more(record):
    _process, keeper = record(min_free=1 << 62)
    assert "less than min_free" in keeper.work(is_ready=True, is_due=False)


def test_a_recording_that_somebody_switches_off_ends(record, instance):
    _process, keeper = record()
    assert look(keeper) is None
    kernels.put(f"{instance.path}/tracing_on", "0\n")
    assert look(keeper) == keepers.SWITCHED_OFF


def test_a_recording_that_a_trigger_of_its_own_switches_off_ends_by_that(instance, record, kernel):
    instance.trigger_write("sched:sched_switch", "traceoff if next_pid == 1")
    _process, keeper = record()
    assert look(keeper) is None
    kernels.put_unseen(kernel.root, f"{instance.path}/tracing_on", "0\n")
    assert look(keeper) == keepers.TRIGGERED


def test_a_recording_whose_trace_has_not_begun_goes_on(instance, record):
    instance.trace_off()
    _process, keeper = record()
    assert look(keeper) is None
    kernels.set_stats(instance, 0, entries=1)  # it has begun and ended meanwhile
    assert look(keeper) == keepers.SWITCHED_OFF


def test_a_recording_whose_order_was_withdrawn_is_finished(record, instance):
    _process, keeper = record()
    keeper.end(None)
    content, end = read_recorded()
    assert (content, end["why"]) == (b"", None)
    assert not instance.is_tracing() and not orders.is_taken(NAME)


def test_a_setting_that_another_has_changed_is_told_and_does_not_end_a_ring(keep, instance):
    keeper = keep()
    kernels.put(f"{instance.path}/tracing_on", "0\n")
    assert look(keeper) is None
    assert keeper.watch.list_reasons() == ["somebody else wrote to tracing_on"]


def test_after_a_gap_in_the_watch_who_is_followed_is_compared(keep, instance, monkeypatch, processes):
    pid = processes().pid
    keeper = keep()
    keeper._container = replace(WEB, pid=pid, state="running")
    monkeypatch.setattr(keepers, "open_process", lambda container: Held(container.pid))
    for followed, reasons in (([pid], 0), ([os.getpid()], 1)):
        with keeper.watch.ours():
            instance.write("set_event_pid", "")
            instance.add_pids("set_event_pid", followed)
        keeper.watch.settle()
        keeper.watch.note_gap("nobody watched")
        assert look(keeper) is None
        told = [one for one in keeper.watch.list_reasons() if "set_event_pid" in one]
        assert len(told) == reasons


class Held:
    """A process that is held, whatever its namespaces are."""

    def __init__(self, pid):
        self.pid = pid

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        return False
