# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Access of others to a trace: inotify's own queue, on a folder that looks like an instance."""

from __future__ import annotations

import os
import subprocess

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

STATS = "entries: 0\noverrun: 0\ncommit overrun: 0\nbytes: 0\ndropped events: 0\nread events: {}\n"
FILES = {
    "trace": "",
    "trace_pipe": "",
    "trace_marker": "",
    "tracing_on": "0",
    "tracing_cpumask": "3",
    "set_event": "sched:sched_switch",
    "set_event_pid": "5",
    "trace_options": "event-fork",
    "options/event-fork": "1",
    "options/pause-on-trace": "0",
    "per_cpu/cpu0/stats": STATS.format(0),
    "per_cpu/cpu0/trace_pipe_raw": "",
    "events/enable": "0",
    "events/sched/enable": "0",
    "events/sched/sched_switch/enable": "1",
    "events/sched/sched_switch/filter": "none",
    "events/sched/sched_switch/trigger": "# Available triggers:\n# traceon",
}


@pytest.fixture
def instance(tmp_path):
    made = Instance(str(tmp_path), "crashcart-1")
    for name, text in FILES.items():
        path = os.path.join(made.path, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write(made, name, text)
    return made


@pytest.fixture
def watcher():
    made = Watcher()
    yield made
    made.close()


@pytest.fixture
def watch(watcher, instance):
    return Watch(watcher, instance, ["sched:sched_switch"], was_watched=False)


def set_counter(instance, events):
    # By another file in its place, since nobody writes to the kernel's.
    write(instance, "stats", STATS.format(events))
    os.rename(os.path.join(instance.path, "stats"), os.path.join(instance.path, "per_cpu/cpu0/stats"))


def write(instance, name, text):
    with open(os.path.join(instance.path, name), "w", encoding="ascii") as file:
        file.write(text)


def read(instance, name):
    with open(os.path.join(instance.path, name), encoding="ascii") as file:
        return file.read()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("trace", "somebody cleared the trace (trace)"),
        ("tracing_on", "somebody else wrote to tracing_on"),
        ("set_event_pid", "somebody else wrote to set_event_pid"),
        ("options/event-fork", "somebody else wrote to options/event-fork"),
        ("events/enable", "somebody else wrote to events/enable"),
        ("events/sched/sched_switch/filter", "somebody else wrote to events/sched/sched_switch/filter"),
    ],
)
def test_a_write_of_another_is_a_reason(watch, instance, name, reason):
    assert watch.list_reasons() == []
    write(instance, name, "1")
    assert watch.list_reasons() == [reason]


@pytest.mark.parametrize("name", ["trace_pipe", "per_cpu/cpu0/trace_pipe_raw"])
def test_who_opens_what_takes_events_is_a_reason(watch, instance, name):
    read(instance, name)
    assert watch.list_reasons() == [f"somebody opened {name}, from which events are taken"]


def test_to_read_or_to_mark_a_trace_does_no_harm(watch, instance):
    for name in ("trace", "set_event_pid", "tracing_on", "per_cpu/cpu0/stats"):
        read(instance, name)
    write(instance, "trace_marker", "x")
    assert watch.list_reasons() == []


def test_where_reading_pauses_it_is_a_reason(watcher, instance):
    write(instance, "options/pause-on-trace", "1")
    watch = Watch(watcher, instance, [], was_watched=False)
    read(instance, "trace")
    assert watch.list_reasons() == ["somebody read trace, and this kernel records nothing meanwhile"]


def test_what_a_module_changes_is_ours_and_what_it_would_not_do_is_not(watch, instance):
    watch.begin_change()
    write(instance, "tracing_on", "1")
    write(instance, "events/enable", "0")
    write(instance, "trace", "")
    watch.end_change([])
    assert watch.list_reasons() == ["somebody cleared the trace (trace)"]
    write(instance, "tracing_on", "1")
    assert watch.list_reasons()[1:] == ["somebody else wrote to tracing_on"]


def test_our_own_writes_are_nobody_elses(watch, instance):
    with watch.ours("tracing_on"):
        write(instance, "tracing_on", "1")
        read(instance, "per_cpu/cpu0/trace_pipe_raw")
    assert watch.list_reasons() == []


def test_what_another_has_altered_counts_until_it_is_as_before(watch, instance):
    write(instance, "tracing_cpumask", "1")
    write(instance, "set_event_pid", "1")
    assert len(watch.list_reasons()) == 2
    watch.settle()
    assert len(watch.list_reasons()) == 2
    write(instance, "tracing_cpumask", "3")
    assert len(watch.list_reasons()) == 2
    watch.settle()
    # Of a list that the kernel changes itself nobody knows how it was.
    assert watch.list_reasons() == ["somebody else wrote to set_event_pid"]
    watch.begin_change()
    write(instance, "set_event_pid", "5")
    watch.end_change([])
    watch.settle()
    assert watch.list_reasons() == []


def test_what_was_taken_or_cleared_counts_once(watch, instance):
    read(instance, "trace_pipe")
    write(instance, "trace", "")
    assert len(watch.list_reasons()) == 2
    watch.settle()
    assert watch.list_reasons() == []


def test_a_module_that_leaves_what_another_has_altered_does_not_approve_of_it(watch, instance):
    write(instance, "tracing_cpumask", "1")
    watch.begin_change()
    write(instance, "tracing_on", "1")
    watch.end_change([])
    watch.settle()
    assert watch.list_reasons() == ["somebody else wrote to tracing_cpumask"]


def test_events_that_a_module_sets_anew_are_as_wanted(watch, instance):
    write(instance, "events/sched/sched_switch/filter", "prev_pid == 1")
    watch.begin_change()
    write(instance, "events/sched/sched_switch/enable", "1")
    watch.end_change([])
    watch.settle()
    assert len(watch.list_reasons()) == 1
    watch.begin_change()
    write(instance, "events/enable", "0")
    watch.end_change([])
    watch.settle()
    assert watch.list_reasons() == []


def test_the_counters_tell_of_readers_whom_nobody_saw(watch, instance):
    set_counter(instance, 40)
    watch.compare_counters()
    assert "somebody else has taken 40 events" in watch.list_reasons()
    watch.settle()
    watch.rebase_counters()
    set_counter(instance, 3)
    watch.compare_counters()
    assert "the kernel's counters began anew: somebody cleared the trace" in watch.list_reasons()


def test_a_gap_in_the_watch_is_a_reason_once(watcher, instance):
    watch = Watch(watcher, instance, [], was_watched=True)
    assert watch.list_reasons() == ["nobody watched the trace for some time: the recorder was killed"]
    watch.settle()
    assert watch.list_reasons() == []


def test_what_cannot_be_watched_is_a_reason(instance, watcher, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watcher, "add", refuse)
    watch = Watch(watcher, instance, [], was_watched=False)
    assert "the trace cannot be watched: No space left on device" in watch.list_reasons()
    watch.settle()
    assert "the trace cannot be watched: No space left on device" in watch.list_reasons()


def test_two_traces_are_watched_apart(watcher, watch, instance, tmp_path):
    other = Instance(str(tmp_path), "crashcart-2")
    for name, text in FILES.items():
        os.makedirs(os.path.dirname(os.path.join(other.path, name)), exist_ok=True)
        write(other, name, text)
    second = Watch(watcher, other, [], was_watched=False)
    write(other, "trace", "")
    assert (watch.list_reasons(), len(second.list_reasons())) == ([], 1)
    second.close()
    write(other, "trace", "")
    second.settle()
    assert second.list_reasons() == []


def change_unseen(instance, name, text):
    """Have the file be another way without a write to it, as the kernel does."""
    unseen = os.path.join(instance.root, "unseen")
    with open(unseen, "w", encoding="ascii") as file:
        file.write(text)
    os.rename(unseen, os.path.join(instance.path, name))


@pytest.mark.parametrize("name", ["set_event", "tracing_on", "events/sched/sched_switch/trigger"])
def test_what_changes_without_a_write_is_a_reason_until_it_is_as_before(watcher, instance, name):
    watch = Watch(watcher, instance, ["sched:sched_switch"], was_watched=False)
    before = read(instance, name)
    change_unseen(instance, name, "traceoff:unlimited")
    for _number in range(2):
        assert watch.list_reasons() == [f"somebody else changed {name}"]
        watch.settle()
    change_unseen(instance, name, before)
    watch.settle()
    assert watch.list_reasons() == []


def test_a_trigger_of_ours_runs_down_and_stops_the_trace(watcher, instance):
    write(instance, "events/sched/sched_switch/trigger", "traceoff:count=2 if x == 1\n")
    write(instance, "tracing_on", "1")
    watch = Watch(watcher, instance, ["sched:sched_switch"], was_watched=False)
    assert watch.may_stop_itself
    change_unseen(instance, "events/sched/sched_switch/trigger", "traceoff:count=0 if x == 1\n")
    change_unseen(instance, "tracing_on", "0")
    assert watch.list_reasons() == []


def test_after_a_gap_the_settings_are_compared_with_what_was_wanted(watcher, instance):
    kept = []
    first = Watch(watcher, instance, [], was_watched=False, remember=kept.append)
    first.close()
    write(instance, "tracing_cpumask", "1")
    second = Watch(watcher, instance, [], was_watched=True, wanted=kept[-1])
    assert second.has_gap
    second.settle()
    assert second.list_reasons() == ["somebody else changed tracing_cpumask"]
    second.begin_change()
    write(instance, "tracing_cpumask", "3")
    second.end_change([])
    second.settle()
    assert second.list_reasons() == []


def test_what_a_module_has_changed_is_wanted_after_a_gap(watcher, instance):
    kept = []
    watch = Watch(watcher, instance, [], was_watched=False, remember=kept.append)
    watch.begin_change()
    write(instance, "tracing_cpumask", "1")
    watch.end_change([])
    assert kept[-1]["tracing_cpumask"] == "1"


def test_who_has_what_takes_events_open_is_a_reason_until_it_is_closed(watch, instance):
    path = os.path.join(instance.path, "per_cpu/cpu0/trace_pipe_raw")
    with open(path, "rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as other:
        try:
            watch.list_reasons()
            for _number in range(2):
                watch.settle()
                told = f"somebody (pid {other.pid}) has per_cpu/cpu0/trace_pipe_raw open, from which events are taken"
                assert watch.list_reasons() == [told]
            # Whom it was lent to is none of them.
            watch.settle(ours={other.pid})
            assert watch.list_reasons() == []
        finally:
            other.kill()


def test_an_event_that_is_on_as_before_is_no_reason_any_more(watch, instance):
    write(instance, "events/sched/sched_switch/enable", "0")
    write(instance, "events/sched/sched_switch/enable", "1")
    assert len(watch.list_reasons()) == 1
    watch.settle()
    assert watch.list_reasons() == []


def test_an_event_that_was_made_anew_is_watched(watch, instance):
    watch.begin_change()
    os.rename(os.path.join(instance.path, "events/sched/sched_switch"), os.path.join(instance.root, "old"))
    os.mkdir(os.path.join(instance.path, "events/sched/sched_switch"))
    for name in ("enable", "filter", "trigger"):
        write(instance, f"events/sched/sched_switch/{name}", "0")
    watch.end_change(["sched:sched_switch"])
    watch.settle()
    write(instance, "events/sched/sched_switch/filter", "x == 1")
    assert watch.list_reasons() == ["somebody else wrote to events/sched/sched_switch/filter"]
