# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance's control files, in a folder that plays tracefs: what is written how, and what is said of what the kernel refuses."""

from __future__ import annotations

import errno
import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    Instance,
    InstanceGone,
    TraceError,
    has_field,
)
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.ftrace import kernel as kernels

NAME = "crashcart-0123456789ab"
LOG = "[  1.5] event filter parse error: error: Field not found\n  Command: nonesuch == 1\n           ^\n"


@pytest.fixture
def instance(kernel):
    made = Instance(kernel.root, NAME)
    made.create()
    kernel.steps.clear()
    return made


def refuse(kernel, number):
    def write(_fd, _data):
        raise OSError(number, os.strerror(number))

    kernel.write = write


def test_an_instance_begins_switched_off_and_for_root_only(kernel):
    made = Instance(kernel.root, NAME)
    assert not made.exists()
    made.create()
    assert made.exists() and not made.is_tracing()
    assert os.stat(made.path).st_mode & 0o077 == 0
    with pytest.raises(TraceError, match=f"cannot make trace instance {NAME}: File exists"):
        made.create()


def test_an_event_is_on_with_its_filter_first(kernel, instance):
    instance.event_enable("sched:sched_switch", "prev_pid == 1")
    folder = f"instances/{NAME}/events/sched/sched_switch"
    assert kernel.steps == [f"write 'prev_pid == 1' to {folder}/filter", f"write '1' to {folder}/enable"]
    assert instance.read_events() == {"sched:sched_switch": "prev_pid == 1"}
    kernel.steps.clear()
    instance.event_filter("sched:sched_switch", "")
    assert kernel.steps == [f"write '0' to {folder}/filter"]
    instance.event_filter("sched:sched_switch", "")  # none is there, and to take one away would be an error
    assert len(kernel.steps) == 1
    assert instance.read_events() == {"sched:sched_switch": ""}
    # One that a trigger is to enable is listed, and is not on.
    kernels.put(f"{instance.path}/events/sched/sched_switch/enable", "0*\n")
    assert instance.read("set_event") == "sched:sched_switch" and instance.read_events() == {}
    instance.event_enable("sched:sched_switch", "")
    instance.events_disable()
    assert instance.read("set_event") == "" and instance.read_events() == {}


def test_many_threads_are_written_in_pieces_that_the_kernel_takes(kernel, instance, monkeypatch):
    monkeypatch.setattr(kernels, "is_alive", lambda _pid: True)
    instance.add_pids("set_event_pid", range(1, 451))
    assert [step.count(" ") - 3 for step in kernel.steps] == [199, 199, 49]
    instance.add_pids("set_event_pid", {1000})
    assert instance.read_pids("set_event_pid") == {*range(1, 451), 1000}
    instance.write("set_event_pid", "")
    assert instance.read_pids("set_event_pid") == set()


def test_patterns_are_written_one_by_one(kernel, instance):
    kernels.put(f"{instance.path}/set_ftrace_filter", "")
    instance.write_patterns("set_ftrace_filter", ["vfs_*", "do_exit"])
    assert [step.split()[1] for step in kernel.steps] == ["'vfs_*'", "'do_exit'"]
    kernel.refused = 3
    with pytest.raises(TraceError, match="the kernel refuses 'b' for set_ftrace_filter of trace instance"):
        instance.write_patterns("set_ftrace_filter", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("number", "log", "text"),
    [
        (
            errno.EINVAL,
            LOG,
            r"Invalid argument; it says: event filter parse error: error: Field not found in <here>nonesuch == 1$",
        ),
        (errno.EINVAL, "", r"Invalid argument$"),
        (errno.EINVAL, None, r"Invalid argument$"),
        (errno.EBUSY, LOG, r"Device or resource busy$"),
        (524, LOG, r"its probe is on an instruction that cannot be probed \(ENOTSUPP\): put it on another function"),
    ],
)
def test_what_is_refused_is_told_with_what_the_kernel_says_of_it(kernel, instance, number, log, text):
    os.unlink(f"{instance.path}/error_log")
    if log is not None:
        kernels.put(f"{instance.path}/error_log", log)
    refuse(kernel, number)
    with pytest.raises(TraceError, match=f"the kernel refuses 'x' for trace_clock of trace instance {NAME}: {text}"):
        instance.write("trace_clock", "x")


def test_an_instance_that_goes_is_told_from_one_that_refuses(kernel, instance):
    with pytest.raises(TraceError) as raised:
        instance.read("nonesuch")
    assert not isinstance(raised.value, InstanceGone)
    refuse(kernel, errno.ENODEV)
    with pytest.raises(InstanceGone):
        instance.trace_on()
    kernel.rmdir(instance.path)
    for call in (instance.is_tracing, instance.list_cpus, lambda: instance.read_statistics(0), instance.trace_off):
        with pytest.raises(InstanceGone):
            call()
    instance.remove()  # it has gone, and that was wanted


def test_an_instance_that_is_held_open_says_by_whom_and_gives_its_memory_back(kernel, instance, monkeypatch):
    def busy(_path):
        raise OSError(errno.EBUSY, "Device or resource busy")

    kernel.rmdir = busy
    monkeypatch.setattr(tracefs, "_REMOVE_TIMEOUT_S", 0.0)
    with open(f"{instance.path}/trace", encoding="ascii"), pytest.raises(TraceError) as raised:
        instance.remove()
    assert (
        f"cannot remove trace instance {NAME}: Device or resource busy; its files are held open by pid {os.getpid()}"
        in str(raised.value)
    )
    assert kernel.steps[-1] == f"write '0' to instances/{NAME}/free_buffer"


def test_pages_are_as_long_as_their_format_says(instance):
    assert instance.read_page_size() == kernels.PAGE_SIZE
    kernels.put(f"{instance.path}/events/header_page", "nothing\n")
    with pytest.raises(TraceError, match="does not say how long a page is"):
        instance.read_page_size()


def test_fields_of_events(kernel):
    text = 'format:\n\tfield:int pid;\toffset:8;\n\tfield:char comm[16];\toffset:12;\n\nprint fmt: "pid; "\n'
    kernels.put(f"{kernel.root}/events/sched/sched_switch/format", text)
    found = [
        name for name in ("pid", "comm", "omm", "offset", "print") if has_field(kernel.root, "sched:sched_switch", name)
    ]
    assert found == ["pid", "comm"]


def test_a_probe_that_somebody_uses_is_not_removed_and_its_users_are_named(kernel, instance):
    dynamic_events.define(kernel.root, "kprobe_events", "p:crashcart_x/reads vfs_read")
    (probe,) = dynamic_events.list_probes(kernel.root, "crashcart_")
    assert dynamic_events.exists(kernel.root, probe.event) and dynamic_events.list_probes(kernel.root, "other") == []
    instance.event_enable(probe.event, "")
    write = kernel.write

    def busy(fd, data):
        if data.startswith(b"-:"):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return write(fd, data)

    kernel.write = busy
    with pytest.raises(
        TraceError, match=f"cannot remove the probe crashcart_x:reads: .*: it is on in {NAME}, switch it off"
    ):
        dynamic_events.remove(kernel.root, probe, 0.0)
    del kernel.write
    dynamic_events.remove(kernel.root, probe, 0.0)
    assert not dynamic_events.exists(kernel.root, probe.event)
