# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends of traces in a folder that plays tracefs, with the real recorder: what stays, what goes, and what ends by itself."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import try_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import (
    client,
    handover,
    orders,
    recordings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import (
    state as recorder_state,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

WEB = Container("0123456789ab" + "c" * 52, "web", "exited", 0, "image", {})
NAME = "crashcart-0123456789ab"
GROUP = "crashcart_0123456789ab_5d41402a"
CALLER = {"time": 1.0, "user": "root", "login": None}


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    made = kernels.install(str(tmp_path), monkeypatch)
    with kernels.recorder(made, monkeypatch):
        yield made


def begin(kernel, name=NAME, limits=None, **more):
    """A trace that is looked after, with a probe of its own that is on."""
    instance = Instance(kernel.root, name)
    instance.create()
    instance.write("trace_clock", "mono")
    dynamic_events.define(kernel.root, "kprobe_events", f"p:{GROUP}/reads vfs_read")
    instance.event_enable(f"{GROUP}:reads", "")
    metadata.write_record(instance, {"clock": "mono", "begun": CALLER, "events": {f"{GROUP}:reads": ""}})
    instance.trace_on()
    with client.change(name) as change:
        inode = os.stat(instance.path).st_ino
        change.place(orders.Order(name, kernel.root, inode, WEB, limits or Limits(), **more))
    return TraceInstance(instance, WEB)


def wait_for(condition):
    """Wait until CONDITION holds: another process is about to bring it about."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_trace_that_is_stopped_keeps_what_it_has_and_says_who_has_stopped_it(kernel):
    trace = begin(kernel, limits=Limits(ttl_s=1000.0), deadline=boot.read_clock() + 1000)
    assert recorder_state.find_end(NAME) == pytest.approx(time.time() + 1000, abs=100)
    (watched,) = recorder_state.list_watched()
    assert (watched["instance"], watched["container"], watched["mode"]) == (NAME, "web", "ring")
    assert watched["expires_at"].startswith("20")
    outcome = Outcome()
    end.stop([trace], outcome)
    assert outcome.as_result() == []
    record = metadata.read_record(trace.instance)
    assert (trace.find_state(), record["begun"]) == ("stopped", CALLER)
    assert record["ended"]["user"] and record["end"]["offset_ns"] is not None
    # Until it is gone somebody may take what it holds; no limit holds any more.
    order = orders.read_order(NAME)
    assert orders.is_taken(NAME) and order.ended == "it was stopped" and recorder_state.find_end(NAME) is None
    assert recorder_state.describe_order(NAME) == {}
    end.stop([trace], outcome)
    assert metadata.read_record(trace.instance) == record
    with client.borrow(trace.instance) as loan:
        assert loan.reasons == []


def test_a_recording_that_is_stopped_is_settled(kernel):
    """Where its recorder died the kernel's counters say what that has cost, until the next trace counts on."""
    trace = begin(kernel)
    run = recordings.create(NAME, *handover.describe(trace.instance, WEB, Limits(is_recorded=True), {}))
    recordings.begin(run)
    client.withdraw(NAME)
    orders.write_order(orders.Order(NAME, kernel.root, os.stat(trace.instance.path).st_ino, WEB, run=run))
    kernels.set_stats(trace.instance, 1, overrun=7)
    outcome = Outcome()
    end.stop([trace], outcome)
    assert (outcome.as_result(), orders.read_order(NAME)) == ([], None)
    told = recordings.read_json(f"{run}/end.json")
    assert (told["why"], told["counters"]["1"]["overrun"]) == (recordings.DIED, 7)
    state = recorder_state.describe_state(trace.instance)
    assert [one["stopped"] for one in state["recordings"]] == [recordings.DIED]


def test_a_trace_that_is_removed_leaves_nothing(kernel, tmp_path):
    make_folder(orders.FOLDER)
    before = kernels.list_files(str(tmp_path))
    trace = begin(kernel)
    recordings.create(NAME, {}, b"")
    make_folder(outbox.FOLDER)
    for state in ("new", "kept"):
        kernels.put(f"{outbox.FOLDER}/{NAME}.{1:020d}.{state}", "x")
    outcome = Outcome()
    end.remove([trace], outcome)
    assert outcome.as_result() == []
    # What is not at home yet is offered all the same.
    assert os.listdir(outbox.FOLDER) == [f"{NAME}.{1:020d}.new"]
    os.unlink(f"{outbox.FOLDER}/{NAME}.{1:020d}.new")
    os.rmdir(outbox.FOLDER)
    assert kernels.list_files(str(tmp_path)) == before
    end.remove([trace], outcome)
    assert outcome.as_result() == []


def test_one_that_cannot_be_removed_costs_no_other(kernel):
    bad, good = begin(kernel), begin(kernel, "crashcart-ffffffffffff")
    kernel.steps.clear()
    remove = kernel.rmdir

    def refuse(path):
        if path == bad.instance.path:
            raise PermissionError(1, "Operation not permitted")
        remove(path)

    kernel.rmdir = refuse
    outcome = Outcome()
    end.remove([bad, good], outcome)
    ((failure,),) = [[one["msg"] for one in outcome.as_result()]]
    assert failure.startswith(f"cannot remove trace instance {NAME}: Operation not permitted")
    assert os.listdir(f"{kernel.root}/instances") == [NAME]
    # It records nothing any more.
    assert not bad.instance.is_tracing() and bad.instance.read_events() == {}


def test_one_that_somebody_keeps_comes_after_the_others(kernel, monkeypatch):
    traces = [begin(kernel, f"crashcart-{digit * 12}") for digit in "ab"]
    left = []
    with try_lock(f"trace-{'a' * 12}"):
        monkeypatch.setattr(end, "Patience", lambda: Impatience(left))
        outcome = Outcome()
        end.stop(traces, outcome)
    assert [one.find_state() for one in traces] == ["started", "stopped"]
    assert "another process holds" in outcome.as_result()[0]["msg"]
    assert left == ["asked"]


class Impatience:
    """A Patience that waits for nobody, and notes that it was asked."""

    def __init__(self, left):
        self._left = left

    def wait(self):
        self._left.append("asked")
        return False


def test_what_a_killed_task_has_left_is_found_and_removed(kernel):
    trace = begin(kernel)
    assert not end.remove_leftovers(kernel.root, busy_ok=True, check_mode=True)
    client.withdraw(NAME)
    kernel.rmdir(trace.instance.path)
    assert end.remove_leftovers(kernel.root, busy_ok=True, check_mode=True)
    assert kernels.get(f"{kernel.root}/kprobe_events")
    assert end.remove_leftovers(kernel.root, busy_ok=False, check_mode=False)
    assert kernels.get(f"{kernel.root}/kprobe_events") == ""
    assert not end.remove_leftovers(kernel.root, busy_ok=False, check_mode=False)


def test_the_recorder_ends_a_trace_in_time_and_watches_it_until_it_is_gone(kernel, tmp_path):
    trace = begin(kernel, limits=Limits(ttl_s=0.01), deadline=boot.read_clock())
    wait_for(lambda: orders.read_order(NAME).ended)
    assert trace.find_state() == "stopped" and orders.is_taken(NAME)
    state = recorder_state.describe_state(trace.instance)
    assert (state["stopped"], state["mode"], state["expires"]) == ("its ttl is over", "ring", None)
    assert state["begun"] == CALLER
    end.remove([trace], Outcome())
    # With nothing to look after it ends.
    wait_for(lambda: orders.find_recorder() is None)
    assert os.listdir(orders.FOLDER) == []


def test_the_recorder_notes_an_instance_that_somebody_removed(kernel):
    trace = begin(kernel, limits=Limits(ttl_s=1000.0))
    kernel.rmdir(trace.instance.path)
    wait_for(lambda: orders.read_order(NAME) is None)
    wait_for(lambda: metadata.list_removed(kernel.root) == [NAME])
    assert trace.find_state() == "stopped"


def test_a_cleanup_that_takes_the_orders_ends_the_recorder_and_what_has_bounds(kernel):
    bounded = begin(kernel, limits=Limits(ttl_s=1000.0))
    free = begin(kernel, "crashcart-ffffffffffff")
    os.rename(orders.FOLDER, orders.FOLDER + "-gone")
    wait_for(lambda: orders.find_recorder() is None)
    assert (bounded.find_state(), free.find_state()) == ("stopped", "started")
    assert metadata.read_record(bounded.instance)["stopped"] == "everything of ours was cleaned up"
    assert not os.path.exists(orders.FOLDER)


def test_who_asks_the_recorder_for_what_it_does_not_know_is_refused(kernel):
    trace = begin(kernel)
    with client.borrow(trace.instance) as loan:
        with pytest.raises(
            FleetError, match="the recorder refuses to frobnicate .*: it does not know what frobnicate is"
        ):
            client._exchange(loan._connection, {"do": "frobnicate", "name": NAME})
        with pytest.raises(FleetError, match="refuses to lend nonesuch: it is not looked after"):
            client._exchange(loan._connection, {"do": "lend", "name": "nonesuch", "cpus": [0]})
        assert loan.account() == []
        kernels.put(f"{trace.instance.path}/trace", "")
        assert loan.account() == ["somebody cleared the trace (trace)"]
        loan.settle()
        assert loan.account() == []


def test_a_loan_outlives_a_recorder_that_ends_and_says_so(kernel):
    trace = begin(kernel)
    with client.borrow(trace.instance) as loan:
        assert sorted(loan.fds) == [0, 1] and loan.errors == {}
        os.kill(orders.find_recorder(), 9)
        wait_for(lambda: orders.find_recorder() is None)
        assert loan.account() == [client.NOBODY]
        loan.settle()
    # The next one sees that nobody watched for some time.
    with client.borrow(trace.instance) as loan:
        assert loan.reasons == ["nobody watched the trace for some time: the recorder was killed"]


@pytest.fixture
def hold_locks():
    """Yield a function that has a child hold locks, as a recorder that listens nowhere does; the children end with the test."""
    children = []

    def hold(*paths):
        child = os.fork()
        if child == 0:
            try:
                with ExitStack() as stack:
                    for path in paths:
                        locks.tell_holder(stack.enter_context(locks.lock(path, 0)))
                    time.sleep(60)
            finally:
                os._exit(0)
        children.append(child)
        wait_for(lambda: [locks.find_holder(path) for path in paths] == [child] * len(paths))
        return child

    yield hold
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_recorder_of_an_older_version_gives_way_where_no_recording_would_end(kernel, hold_locks):
    child = hold_locks(orders.RECORDER_LOCK)
    trace = begin(kernel)
    assert orders.find_recorder() not in (None, child)
    assert trace.find_state() == "started"


def test_a_recorder_of_an_older_version_that_records_is_left_alone(kernel, hold_locks):
    orders.write_order(orders.Order(NAME, kernel.root, 1, WEB, run="/somewhere"))
    child = hold_locks(orders.RECORDER_LOCK, orders.find_lock(NAME))
    with pytest.raises(FleetError, match="is of another version of this collection and records web: stop these"):
        client.ensure_recorder()
    assert orders.find_recorder() == child


def test_an_order_that_the_recorder_refuses_is_none(kernel):
    begin(kernel, "crashcart-ffffffffffff")
    instance = Instance(kernel.root, NAME)
    instance.create()
    with client.change(NAME) as change, pytest.raises(
        FleetError, match="cannot look after the trace of web: .* has its name"
    ):
        change.place(orders.Order(NAME, kernel.root, 1, WEB))
    assert orders.read_order(NAME) is None and not orders.is_taken(NAME)


def test_nobody_starts_a_recorder_where_there_is_nothing_to_look_after(kernel, monkeypatch):
    monkeypatch.setattr(background, "start_daemon", lambda *_arguments: pytest.fail("it was started"))
    client.ensure_recorder()
