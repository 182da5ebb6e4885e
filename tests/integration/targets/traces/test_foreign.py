# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Others who take, clear, stop or change a trace of ours: no capture that they have touched is complete, and it says why."""

from __future__ import annotations

import os
import signal

import pytest
from support import host
from support.fetching import fetch_here

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

# Makes calls all the time, so that there is always something to take.
BUSY = "while true; do /bin/busybox true; done"
SYSCALLS = ["execve", "exit_group", "openat"]


@pytest.fixture
def busy(container):
    return container("busybox", "/bin/busybox", "sh", "-c", BUSY)


def write(instance, file, text):
    with open(os.path.join(instance.path, file), "w", encoding="ascii") as opened:
        opened.write(text)


def take(instance, file):
    fd = os.open(os.path.join(instance.path, file), os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(fd, 4096)
    except BlockingIOError:
        pass  # nothing is there just now: it could have been
    finally:
        os.close(fd)


def toggle(instance, file, first, then):
    write(instance, file, first)
    write(instance, file, then)


def toggle_clock(instance):
    toggle(instance, "trace_clock", "global", "mono")


# Most leave the trace as it looked before. These are asked for in both modes and at each moment,
KINDS = {
    "clears": (lambda one: write(one, "trace", ""), "cleared the trace"),
    "reads trace_pipe": (lambda one: take(one, "trace_pipe"), "opened trace_pipe"),
    "reads raw pages": (lambda one: take(one, "per_cpu/cpu1/trace_pipe_raw"), "opened per_cpu/cpu1/trace_pipe_raw"),
    "stops and starts": (lambda one: toggle(one, "tracing_on", "0", "1"), "wrote to tracing_on"),
    "follows nobody": (lambda one: write(one, "set_event_pid", "1"), "wrote to set_event_pid"),
    "switches events": (
        lambda one: toggle(one, "events/raw_syscalls/enable", "0", "1"),
        "wrote to events/raw_syscalls/enable",
    ),
    "sizes the buffer": (lambda one: toggle(one, "buffer_size_kb", "64", "2048"), "wrote to buffer_size_kb"),
    "sizes pages": (lambda one: write(one, "buffer_subbuf_size_kb", "16"), "wrote to buffer_subbuf_size_kb"),
    "changes the clock": (toggle_clock, "wrote to trace_clock"),
}
# and these once: they are watched in the same way.
OTHERS = {
    "clears one CPU": (lambda one: write(one, "per_cpu/cpu0/trace", ""), "cleared the trace"),
    "reads one CPU's trace_pipe": (lambda one: take(one, "per_cpu/cpu0/trace_pipe"), "opened per_cpu/cpu0/trace_pipe"),
    "switches all events off": (lambda one: write(one, "events/enable", "0"), "wrote to events/enable"),
    "filters": (
        lambda one: write(one, "events/raw_syscalls/sys_enter/filter", "id == 1"),
        "wrote to events/raw_syscalls/sys_enter/filter",
    ),
    "leaves CPUs out": (lambda one: toggle(one, "tracing_cpumask", "1", "3"), "wrote to tracing_cpumask"),
    "does not follow forks": (
        lambda one: toggle(one, "options/event-fork", "0", "1"),
        "wrote to options/event-fork",
    ),
    "frees the buffer": (lambda one: write(one, "free_buffer", ""), "wrote to free_buffer"),
}
ACCESSES = {**KINDS, **OTHERS}


@pytest.mark.parametrize(
    ("access", "mode", "when"),
    [
        *((access, mode, when) for access in KINDS for mode in ("ring", "record") for when in ("at once", "later")),
        *((access, "ring", "later") for access in OTHERS),
        # What a recording holds is in files then.
        *((access, "ring", when) for access in ("clears", "filters") for when in ("after a change", "once stopped")),
    ],
)
def test_what_others_have_touched_is_not_complete(busy, tmp_path, access, when, mode):
    do, reason = ACCESSES[access]
    start(busy, mode)
    instance = find_instance(busy)
    if when == "later":
        host.wait_until(lambda: count(instance) > 100)
    if when == "after a change":
        start(busy, ttl="1h")
    if when == "once stopped":
        host.call_module("ftrace_instance", containers=[busy], state="stopped")
    do(instance)
    captures = stop_and_fetch(busy, tmp_path)
    reasons = [reason for one in captures for reason in one["reasons"]]
    assert any(reason in text for text in reasons), reasons
    assert not any(one["complete"] for one in captures)
    assert all(one["lost"] >= 0 and one["entries"] >= 0 for one in captures)


def start(name, mode="ring", **options):
    room = {"min_free": "1MiB"} if mode == "record" else {}
    return host.call_module("ftrace_instance", containers=[name], syscalls=SYSCALLS, mode=mode, **room, **options)


def count(instance):
    """Return how many events were recorded since the trace began."""
    statistics = [instance.read_statistics(cpu) for cpu in instance.list_cpus()]
    return sum(one.entries + one.read + one.overrun for one in statistics)


def find_instance(name):
    return Instance(host.TRACEFS, "crashcart-" + host.docker("inspect", "-f", "{{.Id}}", name)[:12])


def stop_and_fetch(name, folder):
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    manifests = [one["manifest"] for one in fetch_here(folder, containers=[name])]
    assert manifests
    return manifests


def test_a_touch_counts_for_one_capture_and_what_stays_altered_for_all(busy, tmp_path):
    start(busy)
    instance = find_instance(busy)
    host.wait_until(lambda: count(instance) > 100)
    take(instance, "trace_pipe")
    assert not fetch(busy, tmp_path)["complete"]
    assert fetch(busy, tmp_path)["reasons"] == []
    write(instance, "tracing_cpumask", "1")
    for _number in range(2):
        assert fetch(busy, tmp_path)["reasons"] == ["somebody else wrote to tracing_cpumask"]
    write(instance, "tracing_cpumask", "3")
    assert not fetch(busy, tmp_path)["complete"]
    assert fetch(busy, tmp_path)["complete"]


def test_who_shows_a_container_its_trace_pipe_sees_that_it_took_events(busy, tmp_path):
    start(busy, expose={"files": ["trace", "trace_pipe", "trace_marker"]})
    host.docker("exec", busy, "/bin/busybox", "sh", "-c", "echo a word > /dev/crashcart-trace/trace_marker")
    host.docker("exec", busy, "/bin/busybox", "head", "-n", "5", "/dev/crashcart-trace/trace")
    # To read its trace and to write into it is what it is shown for.
    assert fetch(busy, tmp_path)["reasons"] == []
    host.docker("exec", busy, "/bin/busybox", "head", "-n", "5", "/dev/crashcart-trace/trace_pipe")
    assert fetch(busy, tmp_path)["reasons"] == ["somebody opened trace_pipe, from which events are taken"]


@pytest.mark.parametrize("mode", ["ring", "record"])
def test_a_killed_recorder_is_a_gap_in_the_watch(busy, tmp_path, mode):
    start(busy, mode)
    host.wait_until(lambda: count(find_instance(busy)) > 100)
    os.kill(host.call_module("crashcart_info", gather=["recorder"])["recorder"]["pid"], signal.SIGKILL)
    captures = [one["manifest"] for one in fetch_here(tmp_path, containers=[busy])]
    reasons = [reason for manifest in captures for reason in manifest["reasons"]]
    assert any("the recorder was killed" in reason or "the recorder died" in reason for reason in reasons), reasons
    assert not any(manifest["complete"] for manifest in captures)


def test_what_modules_of_ours_do_is_nobody_elses(busy, tmp_path):
    """Each call that may come between a start and a fetch; another one's trace beside it is another matter."""
    start(busy)
    start(busy)
    host.call_module("ftrace_info", containers=[busy])
    start(busy, ttl="1h")
    start(busy, max_rate=10_000_000)
    host.call_module("ftrace_instance", containers=[busy], syscalls=["execve"], check_mode=True)
    host.call_module("ftrace_instance", containers=[busy], syscalls=["execve"])
    with pytest.raises(host.ModuleFailed):
        host.call_module("ftrace_instance", containers=[busy], events=["sched:sched_switch"], buffer_size="4TiB")
    assert fetch(busy, tmp_path)["reasons"] == []
    host.call_module("ftrace_instance", containers=[busy], state="stopped")
    host.call_module("ftrace_instance", containers=[busy], state="stopped")
    assert fetch(busy, tmp_path)["reasons"] == []
    host.call_module("ftrace_instance", containers=[busy], syscalls=["execve"])
    assert fetch(busy, tmp_path)["reasons"] == []


def fetch(name, folder):
    (capture,) = fetch_here(folder, containers=[name])
    return capture["manifest"]
