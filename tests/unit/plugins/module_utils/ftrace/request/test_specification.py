# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a user wants to trace to the settings of an instance."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.filters import make_filter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    PROCESS_EVENTS,
    SYS_ENTER,
    SYS_EXIT,
    Specification,
    add_probes,
    find_settings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import SyscallNumbers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError


def find(events=(), syscalls=(), **options):
    requests = [event if isinstance(event, EventRequest) else EventRequest(event) for event in events]
    numbers = syscalls if syscalls is None else SyscallNumbers(tuple(syscalls))
    return find_settings(
        Specification(
            **{"follow_exec": False, **options}, events={one.pattern: one for one in requests}, syscalls=numbers
        )
    )


def test_all_system_calls_by_default():
    settings = find()
    assert settings.events == {SYS_ENTER: "", SYS_EXIT: "", **dict.fromkeys(PROCESS_EVENTS, "")}
    assert settings.files == {
        "trace_clock": "mono",
        "buffer_size_kb": "2048",
        "options/overwrite": "1",
        "options/event-fork": "1",
        "options/disable_on_free": "0",
        "current_tracer": "nop",
    }


def test_clock_and_buffer():
    files = find(clock="boot", buffer_kb=64).files
    assert (files["trace_clock"], files["buffer_size_kb"]) == ("boot", "64")


@pytest.mark.parametrize("size", [-1, 0, 7])
def test_a_buffer_smaller_than_the_kernel_takes_is_refused(size):
    assert find(buffer_kb=8).files["buffer_size_kb"] == "8"
    with pytest.raises(TraceError, match="buffer_size"):
        find(buffer_kb=size)


def test_some_system_calls_in_the_order_of_their_numbers():
    events = find(syscalls=(59, 0, 257)).events
    assert events[SYS_ENTER] == events[SYS_EXIT] == "id == 0 || id == 59 || id == 257"
    assert events["sched:sched_process_exec"] == ""
    assert find(syscalls=(257, 59, 0)) == find(syscalls=(0, 257, 59))


def test_a_return_from_a_signals_handler_ends_with_another_number():
    wanted = SyscallNumbers((15,), (119, 173), has_returns=True)
    events = find_settings(Specification(syscalls=wanted)).events
    assert "id == 15" in events[SYS_ENTER]
    assert "-1" not in events[SYS_ENTER]
    assert "id == -1" in events[SYS_EXIT]
    # Of failures it is none.
    failures = find_settings(Specification(syscalls=wanted, errors_only=True)).events
    assert "id == -1" not in failures[SYS_EXIT]


def test_errors_only_look_at_the_end_of_calls():
    events = find(errors_only=True).events
    assert events[SYS_EXIT] == "ret < 0 && ret >= -4095"
    assert SYS_ENTER not in events


def test_errors_of_some_system_calls_only():
    events = find(errors_only=True, syscalls=(2, 1)).events
    assert events[SYS_EXIT] == "ret < 0 && ret >= -4095 && (id == 1 || id == 2)"
    assert SYS_ENTER not in events


def test_own_events_join_the_process_events_once():
    settings = find(events=("sched:sched_switch", "task:task_rename", "sched:sched_switch"))
    assert set(settings.events) == {"sched:sched_switch", *PROCESS_EVENTS, SYS_ENTER, SYS_EXIT}
    assert settings.events["sched:sched_switch"] == ""


def test_entries_that_are_asked_for_by_name_stay_with_errors_only():
    assert find(events=(SYS_ENTER,), errors_only=True).events[SYS_ENTER] == ""


def test_with_followed_execs_every_event_leaves_out_the_runtime():
    plain = find(syscalls=(1, 2), events=("sched:sched_switch",))
    settings = find(syscalls=(1, 2), events=("sched:sched_switch",), follow_exec=True)
    assert set(settings.events) == set(plain.events)
    noise = settings.events["sched:sched_switch"]
    copies = ("exe", "[0-9]", "[0-9][0-9]", "memfd:runc*", "memfd:crun*")
    for name in ("containerd-shim*", "runc*", "crun", "crashcart-runti", *copies):
        assert f'"{name}"' in noise
    # But not the rename from "exe", as busybox's shell starts its applets, to "cat": it tells who "cat" is.
    rename = settings.events["task:task_rename"]
    assert noise.replace("COMM", "newcomm") in rename
    assert "oldcomm" in rename and not any(f'"{name}"' in rename.partition("newcomm")[0] for name in copies)
    # Without the parentheses the second call would be recorded of the runtime, too.
    assert settings.events[SYS_EXIT] == "(id == 1 || id == 2) && " + noise
    assert settings.files == plain.files


def test_no_system_calls():
    assert set(find(syscalls=None, events=("sched:sched_switch",)).events) == {"sched:sched_switch", *PROCESS_EVENTS}


def test_calls_of_both_architectures_share_a_filter():
    numbers = SyscallNumbers((257, 3), (295, 3))
    settings = find_settings(Specification(syscalls=numbers, follow_exec=False))
    assert settings.events[SYS_ENTER] == "id == 3 || id == 257 || id == 295"


def test_filters_and_triggers_of_events():
    switch = EventRequest(
        "sched:sched_switch", "prev_pid == 1", ("stacktrace", "enable_event:sched:sched_waking if next_pid == 1")
    )
    settings = find(events=(switch,))
    assert settings.events["sched:sched_switch"] == "prev_pid == 1"
    # Without a condition every process of the host would set them off.
    assert settings.triggers == {
        "sched:sched_switch": (
            "stacktrace if common_pid >= 0",
            "enable_event:sched:sched_waking if common_pid >= 0 && (next_pid == 1)",
        )
    }
    assert settings.switched == {"sched:sched_waking": ""}
    settings = find(events=(switch,), follow_exec=True)
    noise = settings.events["sched:sched_process_exec"]
    assert settings.events["sched:sched_switch"] == "(prev_pid == 1) && " + noise
    assert settings.triggers["sched:sched_switch"][0] == "stacktrace if " + noise
    assert settings.switched == {"sched:sched_waking": noise}


def test_a_switched_event_that_is_recorded_anyway_is_no_special_case():
    switch = EventRequest("sched:sched_switch", triggers=("disable_event:sched:sched_waking",))
    settings = find(events=(switch, "sched:sched_waking"))
    assert settings.switched == {}


def test_a_users_filter_of_system_calls_and_ours_hold_together():
    events = find([EventRequest(SYS_ENTER, "common_pid == 1 || id == 3")], syscalls=(1, 5)).events
    assert events[SYS_ENTER] == "(id == 1 || id == 5) && (common_pid == 1 || id == 3)"
    assert events[SYS_EXIT] == "id == 1 || id == 5"
    assert find([EventRequest(SYS_ENTER, "id == 3")]).events[SYS_ENTER] == "id == 3"


def test_process_events_take_no_filter():
    with pytest.raises(TraceError, match="takes no filter"):
        find(events=(EventRequest("task:task_newtask", "pid == 1"),))
    triggers = find(events=(EventRequest("task:task_newtask", triggers=("stacktrace",)),)).triggers
    assert set(triggers) == {"task:task_newtask"}


def test_a_filter_that_no_kernel_takes_is_refused():
    find(syscalls=range(1, 200, 2))
    with pytest.raises(TraceError, match="fewer syscalls"):
        find(syscalls=range(1, 1000, 2))
    # The kernel counts all of it.
    limit = max(count for count in range(1, 400) if len(make_filter("id", range(1, 2 * count, 2))) <= 4095)
    find(syscalls=range(1, 2 * limit, 2))
    with pytest.raises(TraceError):
        find(syscalls=range(1, 2 * limit + 2, 2))
    with pytest.raises(TraceError):
        find(syscalls=range(1, 2 * limit, 2), follow_exec=True)


def test_probes_of_a_container_keep_the_runtime_out():
    settings = find(syscalls=None, follow_exec=True)
    more = add_probes(settings, {"crashcart_x:a": "", "crashcart_x:b": "ret < 0"}, follow_exec=True)
    assert {**settings.events, **more.events} == more.events
    assert more.events["crashcart_x:a"] == settings.events["sched:sched_process_exec"]
    assert more.events["crashcart_x:b"] == f"(ret < 0) && {more.events['crashcart_x:a']}"
    alone = add_probes(find(), {"crashcart_x:b": "ret < 0"}, follow_exec=False)
    assert alone.events["crashcart_x:b"] == "ret < 0"


def test_two_probes_of_one_name():
    with pytest.raises(TraceError, match="probe a: there are two"):
        find(probes=(ProbeRequest("a", "kprobe", "vfs_read"), ProbeRequest("a", "kprobe", "vfs_write")))
