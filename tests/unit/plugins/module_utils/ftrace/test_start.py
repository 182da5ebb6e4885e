# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts of traces in a folder that plays tracefs, with the real recorder: whatever fails, all is as it was before."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata, start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.plan import Exposing, TraceRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    Specification,
    find_settings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

ID = "0123456789ab"
NAME = f"crashcart-{ID}"
PARTS = 8  # of tests that let each step fail
PROBES = (ProbeRequest("reads", "kprobe", "vfs_read"),)


@contextmanager
def hold(containers, **_options):
    """Hold processes as open_targets does, also those that are in this process's own mount namespace."""
    with ExitStack() as stack:
        yield [Target(one, stack.enter_context(Process(one.pid))) for one in containers]


@pytest.fixture
def container(tmp_path, monkeypatch):
    """A container whose one process sleeps; a folder plays its control group."""
    with subprocess.Popen(["sleep", "600"]) as process:
        kernels.put(f"{tmp_path}/group/cgroup.procs", f"{process.pid}\n")
        monkeypatch.setattr(cgroups, "find_container_directory", lambda _text, _id="": f"{tmp_path}/group")
        yield Container(ID + "c" * 52, "web", "running", process.pid, "image", {"a": "b"})
        process.kill()


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "open_targets", hold)
    made = kernels.install(str(tmp_path), monkeypatch)
    make_folder(orders.FOLDER)
    with kernels.recorder(made, monkeypatch):
        yield made


def make_request(clock="mono", buffer_kb=64, events=None, **more):
    settings = find_settings(Specification(events or {}, None, buffer_kb=buffer_kb, clock=clock, follow_exec=False))
    return TraceRequest(**{"settings": settings, "follow_exec": False, "described": {"syscalls": None}, **more})


FIRST = make_request(events={"sched:sched_switch": EventRequest("sched:sched_switch")}, limits=Limits(ttl_s=1000.0))
# It differs from the first one in all that there is: files, events, filters, triggers, probes, limits.
SECOND = make_request(
    "boot",
    128,
    {"sched:sched_switch": EventRequest("sched:sched_switch", "prev_pid == 1", ("stacktrace",))},
    probes=PROBES,
    limits=Limits(ttl_s=2000.0, max_rate=5),
)


def begin(kernel, containers, request, begun=None, *, check_mode=False):
    """Start traces of CONTAINERS as REQUEST says: what was done, and why not for which."""
    outcome = Outcome()
    with ExitStack() as stack:
        found = start.ensure_started(containers, outcome, begun or stack, kernel.root, request, check_mode=check_mode)
        stack.pop_all()
    return found, [one["msg"] for one in outcome.as_result()]


def look(tmp_path):
    """All that there is of traces, but for the order of events that are on, and for when the recorder began to watch."""
    found = kernels.list_files(str(tmp_path))
    for path, content in found.items():
        if path.endswith("set_event"):
            found[path] = sorted(content[1].splitlines())
        elif path.startswith("run") and isinstance(content, tuple):
            known = json.loads(content[1])
            found[path] = (content[0], {**known, "watched": known.get("watched") is not None})
    return found


def list_steps(kernel, container, request):
    """Return the steps of a start that succeeds at KERNEL; the start is then taken back."""
    kernel.steps.clear()
    with ExitStack() as begun:
        _found, failures = begin(kernel, [container], request, begun)
        assert failures == []
        return list(kernel.steps)


def test_a_trace_is_made_as_asked_and_taken_back_whole(kernel, container, tmp_path):
    before = look(tmp_path)
    with ExitStack() as begun:
        found, failures = begin(kernel, [container], SECOND, begun)
        assert (found.changed, failures, [one.instance.name for one in found.made]) == (True, [], [NAME])
        instance = find_instance(kernel.root, container).instance
        assert instance.is_tracing()
        assert (instance.read_clock(), instance.read("buffer_size_kb")) == ("boot", "128")
        assert instance.read_pids("set_event_pid") == {container.pid}
        assert instance.read_events()["sched:sched_switch"] == "prev_pid == 1"
        assert "stacktrace:unlimited if common_pid >= 0" in instance.read_triggers("sched:sched_switch")
        assert kernels.get(f"{kernel.root}/kprobe_events").split()[1:] == ["vfs_read"]
        assert orders.is_taken(NAME) and orders.read_order(NAME).limits.max_rate == 5
        assert metadata.read_record(instance)["container"]["name"] == "web"
        assert (found.before["web"], found.after["web"]["state"]) == (None, "started")
    assert look(tmp_path) == before


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_whichever_step_of_a_start_fails_nothing_of_it_is_left(kernel, container, tmp_path, part):
    steps = list_steps(kernel, container, SECOND)
    # From the first one to the one that lets it begin.
    assert (steps[0], steps[-1]) == (f"make {NAME}", f"write '1' to instances/{NAME}/tracing_on")
    assert len(steps) > 20 and any("vfs_read" in step for step in steps)
    before = look(tmp_path)
    for number in range(part, len(steps), PARTS):
        kernel.steps.clear()
        kernel.refused = number
        found, (failure,) = begin(kernel, [container], SECOND)
        assert kernel.steps[number] == steps[number]
        assert "Input/output error" in failure, steps[number]
        assert (found.changed, found.made) == (False, []), steps[number]
        assert look(tmp_path) == before, steps[number]


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(PARTS))
def test_whichever_step_of_a_change_fails_the_trace_goes_on_as_before(kernel, container, tmp_path, part):
    begin(kernel, [container], FIRST)
    instance = find_instance(kernel.root, container).instance
    before = look(tmp_path)
    number = part
    while True:
        kernel.steps.clear()
        kernel.refused = number
        found, failures = begin(kernel, [container], SECOND)
        if not failures:
            break  # it takes fewer steps than that
        assert not found.changed
        assert look(tmp_path) == before, kernel.steps[number]
        assert instance.is_tracing() and orders.is_taken(NAME)
        number += PARTS
    assert number > 15
    assert found.changed and instance.read_clock() == "boot"


def test_what_was_begun_for_one_that_fails_costs_no_other(kernel, container, tmp_path):
    other = replace(container, id="f" * 64, name="db")
    kernel.steps.clear()
    begin(kernel, [container], FIRST)
    kernel.refused = len(kernel.steps) + 2
    found, (failure,) = begin(kernel, [other, replace(container, name="again")], FIRST)
    assert failure.startswith("the kernel refuses") and "instance crashcart-ffffffffffff" in failure
    assert os.listdir(f"{kernel.root}/instances") == [NAME]
    assert [order.name for order in orders.list_orders()] == [NAME]
    assert sorted(found.after) == ["again"]


def test_where_all_is_refused_from_some_step_on_the_first_error_and_the_last_are_told(kernel, container):
    kernel.steps.clear()
    kernel.refused, kernel.goes_on = 3, True
    _found, (failure,) = begin(kernel, [container], FIRST)
    first, told, second = failure.partition("; not all that was begun could be undone: ")
    assert first.startswith("the kernel refuses ") and first.endswith(": Input/output error") and told
    assert second.startswith(f"cannot remove trace instance {NAME}: Input/output error")
    assert failure.count("cannot remove") == 1
    assert os.listdir(f"{kernel.root}/instances") == [NAME]


def test_where_a_change_cannot_be_taken_back_both_errors_are_told(kernel, container):
    begin(kernel, [container], FIRST)
    kernel.steps.clear()
    kernel.refused, kernel.goes_on = 3, True
    _found, (failure,) = begin(kernel, [container], SECOND)
    first, told, second = failure.partition("; not all that was begun could be undone: ")
    assert first.startswith("buffer_size: the kernel does not give 128 KiB") and told
    assert second.startswith(f"the kernel refuses '0' for events/enable of trace instance {NAME}")


def test_what_its_container_is_shown_of_it_goes_with_it(kernel, container, tmp_path):
    shown = tmp_path / "shown"

    def show(trace):
        assert trace.instance.is_tracing()  # it comes last
        shown.write_text("x")
        raise OSError(28, "No space left on device")

    before = look(tmp_path)
    request = replace(FIRST, exposing=Exposing(show, lambda _trace: shown.unlink()))
    _found, (failure,) = begin(kernel, [container], request)
    assert failure == "the host refused: No space left on device"
    assert look(tmp_path) == before


def test_a_trace_that_nobody_would_look_after_is_none(kernel, container, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "start_daemon", lambda _function, _is_running: False)
    before = look(tmp_path)
    _found, (failure,) = begin(kernel, [container], SECOND)
    assert "the recorder, which looks after traces, does not start on this host" in failure
    assert look(tmp_path) == before


def test_a_recording_that_the_recorder_refuses_leaves_no_file(kernel, container, tmp_path):
    before = look(tmp_path)
    limits = Limits(is_recorded=True, max_bytes=1 << 30, rotate_bytes=1 << 20, rotate_s=60.0)
    # To the recorder this process is not the container's: no control group bears the id.
    _found, (failure,) = begin(kernel, [container], replace(SECOND, limits=limits))
    assert "the recorder cannot look after the trace of web" in failure
    assert look(tmp_path) == before


@pytest.mark.parametrize("is_there", [False, True])
def test_a_record_that_cannot_be_written_ends_the_start(kernel, container, tmp_path, is_there):
    if is_there:
        begin(kernel, [container], FIRST)
    before = look(tmp_path)
    make_folder(metadata._FOLDER)
    os.symlink("elsewhere", f"{metadata._FOLDER}/{NAME}.json.part")  # which no file of ours follows
    _found, (failure,) = begin(kernel, [container], SECOND)
    assert "Too many levels of symbolic links" in failure
    if is_there:
        os.unlink(f"{metadata._FOLDER}/{NAME}.json.part")
    assert look(tmp_path) == before
    assert not (tmp_path / "elsewhere").exists()


def test_an_order_that_cannot_be_written_ends_the_start(kernel, container, tmp_path):
    os.mkdir(f"{orders.FOLDER}/.{NAME}")  # where it would be written
    before = look(tmp_path)
    _found, (failure,) = begin(kernel, [container], SECOND)
    assert "Is a directory" in failure
    assert look(tmp_path) == before


def test_an_earlier_recording_stays_where_a_start_fails(kernel, container, tmp_path):
    earlier = recordings.create(NAME, {}, b"head")
    before = look(tmp_path)
    kernel.steps.clear()
    kernel.refused = 5
    _found, failures = begin(kernel, [container], SECOND)
    assert len(failures) == 1 and os.path.isdir(earlier)
    assert look(tmp_path) == before


def test_a_look_ahead_changes_nothing_and_says_what_would_be(kernel, container, tmp_path):
    before = look(tmp_path)
    kernel.steps.clear()
    found, failures = begin(kernel, [container], SECOND, check_mode=True)
    assert (found.changed, found.made, failures, kernel.steps) == (True, [], [], [])
    assert look(tmp_path) == before
    foreseen = found.after["web"]
    found, _failures = begin(kernel, [container], SECOND)
    assert {**found.after["web"], "expires_at": None} == {**foreseen, "expires_at": None}


def test_a_trace_that_is_as_asked_is_left_alone(kernel, container, tmp_path):
    begin(kernel, [container], SECOND)
    before = look(tmp_path)
    kernel.steps.clear()
    for check_mode in (True, False):
        found, failures = begin(kernel, [container], SECOND, check_mode=check_mode)
        assert (found.changed, found.made, failures, kernel.steps) == (False, [], [], [])
        assert found.before["web"]["state"] == "started"
    after = look(tmp_path)
    place = f"run/recorder/{NAME}"
    # But for its ttl, which begins anew.
    assert after[place][1].pop("deadline") > before[place][1].pop("deadline")
    assert after == before


def test_a_container_that_does_not_run_is_refused_before_anything_is_made(kernel, container, tmp_path):
    before = look(tmp_path)
    kernel.steps.clear()
    stopped = replace(container, state="exited", pid=0)
    _found, (failure,) = begin(kernel, [stopped], FIRST)
    assert failure == (
        f"container web ({ID}) is exited: start it first, or trace its next start with follow_restarts=true"
    )
    awaited = replace(FIRST, limits=Limits(restarts=True))
    _found, (failure,) = begin(kernel, [stopped], awaited)
    assert "does not say where its control group will be: start it first" in failure
    assert (kernel.steps, look(tmp_path)) == ([], before)


def test_a_change_that_fails_takes_no_probe_of_an_earlier_one(kernel, container, tmp_path):
    for request in (SECOND, FIRST):
        begin(kernel, [container], request)
    before = look(tmp_path)
    assert "vfs_read" in kernels.get(f"{kernel.root}/kprobe_events")  # off, and its events may still be in the buffer
    kernel.steps.clear()
    kernel.refused = 3
    _found, failures = begin(kernel, [container], replace(SECOND, probes=(replace(PROBES[0], place="vfs_write"),)))
    assert len(failures) == 1 and "vfs_write" in kernel.steps[0]
    assert look(tmp_path) == before


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Where a container's control group will be when it starts."""
    folder = f"{tmp_path}/groups/{ID}{'c' * 52}"
    os.makedirs(os.path.dirname(folder))
    monkeypatch.setattr(cgroups, "find_common_directory", lambda path: path)
    return folder


AWAITED = replace(FIRST, limits=Limits(restarts=True), follow_exec=True)


def await_start(kernel, container, group, request=AWAITED):
    outcome, stopped = Outcome(), replace(container, state="exited", pid=0)
    with ExitStack() as begun:
        found = start.ensure_started(
            [stopped],
            outcome,
            begun,
            kernel.root,
            request,
            check_mode=False,
            predict_place=lambda _container: Place(group, True),
        )
        begun.pop_all()
    return found, [one["msg"] for one in outcome.as_result()]


def test_the_start_of_a_container_is_awaited_without_anybody_else_in_its_trace(kernel, container, group, tmp_path):
    found, failures = await_start(kernel, container, group)
    assert (found.changed, failures) == (True, [])
    instance = find_instance(kernel.root, container).instance
    # Somebody has been in the list, and has ended: an empty one means nobody then, and not the whole host.
    assert any("set_event_pid" in step for step in kernel.steps)
    assert instance.is_tracing() and instance.read_pids("set_event_pid") == set()
    order = orders.read_order(NAME)
    assert (order.group, order.limits.restarts, order.limits.descends) == (group, True, True)
    assert metadata.read_record(instance)["followed"]["exec"] == "descent"
    # The recorder adds who starts.
    kernels.put(f"{group}/cgroup.procs", "")
    os.symlink("/bin/sh", tmp_path / "containerd-shim")
    with subprocess.Popen(
        [str(tmp_path / "containerd-shim"), "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE
    ) as shim:
        first = int(shim.stdout.readline())
        try:
            kernels.put(f"{group}/cgroup.procs", f"{first}\n")
            wait_for(lambda: instance.read_pids("set_event_pid") == {first, shim.pid})
        finally:
            os.kill(first, 9)
    found, failures = await_start(kernel, container, group)
    assert (found.changed, failures) == (False, [])


def wait_for(condition):
    """Wait until CONDITION holds: another process is about to bring it about."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_start_that_cannot_be_awaited_is_refused(kernel, container, group, tmp_path):
    before = look(tmp_path)
    _found, (failure,) = await_start(kernel, container, f"{tmp_path}/nonesuch/deep")
    assert f"{tmp_path}/nonesuch, where its control group should be, is not there" in failure
    functions = replace(
        AWAITED, settings=replace(AWAITED.settings, files={**AWAITED.settings.files, "current_tracer": "function"})
    )
    kernels.put(f"{kernel.root}/available_filter_functions", "vfs_read\n")
    _found, (failure,) = await_start(kernel, container, group, functions)
    assert "tracers of functions do not follow a start: start it first" in failure
    os.unlink(f"{kernel.root}/available_filter_functions")
    assert look(tmp_path) == before
