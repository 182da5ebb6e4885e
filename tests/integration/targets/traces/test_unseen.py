# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Others whom no watch of files tells of: by triggers, where memory was short, while no recorder ran, by what they have open."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

import pytest
from support import host
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

BUSY = "while true; do /bin/busybox true; done"
SYSCALLS = ["execve", "exit_group", "openat"]
GAP = "nobody watched the trace for some time: the recorder was killed"
SWITCH, WAKEUP = "events/sched/sched_switch/trigger", "events/sched/sched_wakeup/trigger"
ALWAYS = "if common_pid >= 0"
TRIGGERS = {
    "stops": {SWITCH: f"traceoff:1 {ALWAYS}"},
    "stops and starts": {SWITCH: f"traceoff {ALWAYS}", WAKEUP: f"traceon {ALWAYS}"},
    "switches events off": {SWITCH: f"disable_event:raw_syscalls:sys_enter {ALWAYS}"},
}


@pytest.fixture
def busy(container):
    return container("busybox", "/bin/busybox", "sh", "-c", BUSY)


def write(instance, file, text, flags=os.O_TRUNC):
    fd = os.open(os.path.join(instance.path, file), os.O_WRONLY | flags)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


def start(name, mode="ring", **options):
    """Start a trace, and return its instance once it has events."""
    room = {"min_free": "1MiB"} if mode == "record" else {}
    host.call_module("ftrace_instance", containers=[name], syscalls=SYSCALLS, mode=mode, **room, **options)
    instance = Instance(host.TRACEFS, "crashcart-" + host.docker("inspect", "-f", "{{.Id}}", name)[:12])
    host.wait_until(lambda: any(_has_had_events(instance, cpu) for cpu in instance.list_cpus()))
    return instance


def _has_had_events(instance, cpu):
    """Return True if CPU's buffer holds events, or held some that the recorder has taken since."""
    counters = instance.read_statistics(cpu)
    return counters.entries or counters.read


def fetch(name, folder):
    """Return why the captures of a fetch are not complete."""
    manifests = [one["manifest"] for one in fetch_here(folder, containers=[name])]
    assert manifests
    reasons = [reason for one in manifests for reason in one["reasons"]]
    assert all(one["complete"] for one in manifests) == (not reasons)
    return reasons


def find_recorder():
    return host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"]


@contextmanager
def no_recorder():
    """Between the death of a recorder and the next one."""
    pid = find_recorder()
    os.kill(pid, signal.SIGKILL)
    host.wait_until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))
    yield


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_the_kernel_may_drop_its_caches(busy, tmp_path, mode):
    instance = start(busy, mode)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("2")
    for text in "01":
        write(instance, "events/raw_syscalls/sys_enter/enable", text)
    assert "somebody else wrote to events/raw_syscalls/sys_enter/enable" in fetch(busy, tmp_path)


@pytest.mark.parametrize("mode", ["ring", "record"])
@pytest.mark.parametrize("name", TRIGGERS)
def test_triggers_of_events_that_the_trace_does_not_need(busy, tmp_path, name, mode):
    instance = start(busy, mode)
    for file, text in TRIGGERS[name].items():
        write(instance, file, text, 0)
    reasons = fetch(busy, tmp_path)
    assert any(text in reasons for text in ("somebody else changed set_event", "somebody else changed tracing_on"))
    for one in host.call_module("ftrace_info", containers=[busy], gather=["instances"])["instances"]:
        assert one["stopped"] in (None, "somebody else switched tracing off")


def test_a_trigger_that_is_gone_again_is_seen_while_it_is_there(busy, tmp_path):
    instance = start(busy)
    text = TRIGGERS["switches events off"][SWITCH]
    write(instance, SWITCH, text, 0)
    host.pause(1.5)  # the recorder looks once a second
    write(instance, SWITCH, "!" + text, 0)
    assert "somebody else changed set_event" in fetch(busy, tmp_path)


def test_another_event_is_noticed_until_it_is_off(busy, tmp_path):
    instance = start(busy)
    write(instance, "events/sched/sched_switch/enable", "1")
    for _number in range(2):
        assert fetch(busy, tmp_path) == ["somebody else changed set_event"]
    write(instance, "events/sched/sched_switch/enable", "0")
    fetch(busy, tmp_path)
    assert fetch(busy, tmp_path) == []


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_triggers_of_ours_are_nobody_elses(busy, tmp_path, mode):
    events = [
        {"name": "sched:sched_process_exit", "triggers": ["traceoff:3", "stacktrace:2"]},
        {"name": "sched:sched_process_fork", "triggers": ["enable_event:sched:sched_wakeup:1"]},
    ]
    instance = start(busy, mode, events=events)
    host.wait_until(lambda: not instance.is_tracing())
    assert fetch(busy, tmp_path) == []
    (told,) = host.call_module("ftrace_info", containers=[busy], gather=["instances"])["instances"]
    assert told["stopped"] in (None, "a trigger switched tracing off")


def test_what_was_altered_while_nobody_watched_counts_until_it_is_as_before(busy, tmp_path):
    instance = start(busy)
    assert fetch(busy, tmp_path) == []
    with no_recorder():
        write(instance, "tracing_cpumask", "1")
        write(instance, "events/raw_syscalls/sys_enter/filter", "id == 1")
        write(instance, "set_event_pid", "1")
    lasting = {
        "somebody else changed tracing_cpumask",
        "somebody else changed events/raw_syscalls/sys_enter/filter",
    }
    assert lasting < set(fetch(busy, tmp_path))
    host.pause(1.5)
    for _number in range(2):
        assert set(fetch(busy, tmp_path)) == {*lasting, "somebody else changed set_event_pid"}
    start(busy)
    assert int(instance.read("tracing_cpumask"), 16) == 2 ** os.cpu_count() - 1
    fetch(busy, tmp_path)
    assert fetch(busy, tmp_path) == []


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_gap_counts_for_one_capture(busy, tmp_path, is_gone):
    start(busy)
    if is_gone:
        with no_recorder():
            pass
    else:
        os.kill(find_recorder(), signal.SIGKILL)
    assert fetch(busy, tmp_path) == [GAP]
    assert fetch(busy, tmp_path) == []


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_who_has_what_takes_events_open_is_a_reason_until_it_is_closed(busy, tmp_path, mode):
    instance = start(busy, mode)
    readers = [
        os.open(f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
        for cpu in instance.list_cpus()
    ]
    try:
        fetch(busy, tmp_path)
        with_pid = f"(pid {os.getpid()}) has per_cpu/cpu0/trace_pipe_raw open"
        for _number in range(2):
            for fd in readers:
                host.wait_until(lambda fd=fd: has_read(fd))
            assert any(with_pid in reason for reason in fetch(busy, tmp_path))
    finally:
        for fd in readers:
            os.close(fd)
    fetch(busy, tmp_path)
    assert fetch(busy, tmp_path) == []


def has_read(fd):
    try:
        return bool(os.read(fd, 4096))
    except BlockingIOError:
        return True  # nothing is there just now: it could have been


def wait_until_missed(name):
    """Wait until the recorder has noticed that the trace instance of container NAME is gone."""

    def is_missed():
        found = host.call_module("ftrace_info", gather=["instances"])["instances"]
        return any(one["container"] == name and "somebody removed" in (one["stopped"] or "") for one in found)

    host.wait_until(is_missed)


@pytest.mark.parametrize("when", ["at once", "while nobody watched"])
def test_a_ring_that_somebody_removed_is_told_of_until_it_is_forgotten(busy, tmp_path, when):
    instance = start(busy)
    if when == "at once":
        os.rmdir(instance.path)
        wait_until_missed(busy)
    else:
        with no_recorder():
            os.rmdir(instance.path)
        host.call_module("ftrace_instance", containers=[busy], state="stopped", allow_empty=True)
    for _number in range(2):
        with pytest.raises(host.ModuleFailed, match="somebody removed its trace instance .*; what it held is gone"):
            fetch_here(tmp_path, containers=[busy])
    (told,) = host.call_module("ftrace_info", containers=[busy], gather=["instances"])["instances"]
    assert "somebody removed its trace instance" in told["stopped"]
    start(busy)
    assert fetch(busy, tmp_path) == []
    os.rmdir(instance.path)
    wait_until_missed(busy)
    host.call_module("ftrace_instance", containers=[busy], state="absent")
    with pytest.raises(host.ModuleFailed, match="matches no traced container"):
        fetch_here(tmp_path, containers=[busy])


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_recorder_that_does_not_answer_is_named(busy, tmp_path, mode):
    start(busy, mode)
    pid = find_recorder()
    os.kill(pid, signal.SIGSTOP)
    try:
        if mode == "ring":
            with pytest.raises(host.ModuleFailed, match=rf"the recorder of this host \(pid {pid}\) does not answer"):
                fetch_here(tmp_path, containers=[busy])
        else:
            assert any(f"(pid {pid}) does not answer" in reason for reason in fetch(busy, tmp_path))
    finally:
        os.kill(pid, signal.SIGCONT)
    # The kernel has counted what was lost meanwhile.
    assert not any("does not answer" in reason for reason in fetch(busy, tmp_path))
