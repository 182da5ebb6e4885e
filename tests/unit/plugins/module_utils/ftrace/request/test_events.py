# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events and triggers in a user's words and in the kernel's."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import events
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import EventRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

AVAILABLE = [
    "sched:sched_switch",
    "sched:sched_wakeup",
    "sched:sched_waking",
    "task:task_rename",
    "syscalls:sys_enter_open",
    "syscalls:sys_enter_openat",
]


def resolve(*patterns):
    return list(events.resolve([EventRequest(pattern) for pattern in patterns], AVAILABLE))


@pytest.mark.parametrize(
    "entry",
    [
        *("", "sched", "sched:", ":x", "sched:a:b", "sched/x:y", "../sched:x", "sched:..", "sched:a b", "sched:x\n"),
        *(
            "ſched:x",
            "a:b;c",
            5,
            None,
            [],
            {},
            {"name": 5},
            {"name": "a:b", "filtre": "x"},
            {"name": "a:b", "filter": 1},
        ),
        *({"name": "a:b", "triggers": [1]}, {"name": "a:b", "triggers": ["stack trace"]}),
        *({"name": "a:b", "triggers": "enable_event:x"}, {"name": "a:b", "triggers": "enable_event:x:*"}),
        *({"name": "a:b", "filter": "x == 1) || (y == 2"}, {"name": "a:b", "filter": '(c == ")"'}),
        *({"name": "a:b", "filter": 'c == "x'}, {"name": "a:b", "triggers": ["traceoff if x == 1)"]}),
        *({"name": "a:b", "triggers": [""]}, {"name": "a:b", "triggers": ["!stacktrace"]}),
    ],
)
def test_what_is_no_event_is_refused(entry):
    with pytest.raises(TraceError):
        events.parse_request(entry)


def test_an_event_in_all_forms():
    assert events.parse_request("sched:sched_*") == EventRequest("sched:sched_*")
    assert events.parse_request(
        {"name": "a:b", "filter": "x  ==\n 1", "triggers": "traceoff:1  if x == 2"}
    ) == EventRequest("a:b", "x == 1", ("traceoff:1 if x == 2",))
    assert events.parse_request({"name": "a:b", "filter": None, "triggers": None}) == EventRequest("a:b")


def test_names_and_globs():
    assert resolve("sched:sched_wak*") == ["sched:sched_wakeup", "sched:sched_waking"]
    assert resolve("s*:*switch", "task:*") == ["sched:sched_switch", "task:task_rename"]
    assert resolve("syscalls:sys_enter_open") == ["syscalls:sys_enter_open"]
    assert resolve("*:*") == sorted(AVAILABLE)


def test_a_glob_means_no_probes_unless_their_system_is_named():
    found = events.resolve([EventRequest("s*:*")], [*AVAILABLE, "somebody:ours"], dynamic=["somebody:ours"])
    assert "somebody:ours" not in found and "sched:sched_switch" in found
    for pattern in ("somebody:*", "somebody:ours"):
        found = events.resolve([EventRequest(pattern)], [*AVAILABLE, "somebody:ours"], dynamic=["somebody:ours"])
        assert list(found) == ["somebody:ours"]
    # A probe in a group of that name does not hide the kernel's own.
    found = events.resolve([EventRequest("sch*:*")], [*AVAILABLE, "sched:x"], dynamic=["sched:x"])
    assert "sched:x" not in found and "sched:sched_switch" in found
    with pytest.raises(TraceError, match="no event '.*:ours'"):
        events.resolve([EventRequest("*:ours")], [*AVAILABLE, "somebody:ours"], dynamic=["somebody:ours"])


def test_a_globs_filter_leaves_alone_what_takes_none():
    found = events.resolve(
        [EventRequest("task:*", "pid == 1")], [*AVAILABLE, "task:x"], unfiltered=["task:task_rename"]
    )
    assert {event: one.filter for event, one in found.items()} == {"task:x": "pid == 1", "task:task_rename": ""}
    found = events.resolve([EventRequest("task:task_rename", "pid == 1")], AVAILABLE, unfiltered=["task:task_rename"])
    assert found["task:task_rename"].filter == "pid == 1"  # which is refused later


@pytest.mark.parametrize("quote", ['"', "'"])
def test_blanks_in_quotes_are_meant(quote):
    text = f"comm ==  {quote}two  words\t{quote} &&\n x == 1"
    request = events.parse_request({"name": "a:b", "filter": text, "triggers": f"traceoff  if {text}"})
    assert request.filter == f"comm == {quote}two  words\t{quote} && x == 1"
    assert events.parse_trigger(request.triggers[0]).condition == request.filter


def test_a_star_does_not_lead_from_system_to_name():
    with pytest.raises(TraceError):
        resolve("s*switch:x*")


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("sched:sched_swich", "near ones: sched:sched_switch"),
        ("shed:sched_switch", "near ones: sched:sched_switch"),
        ("task:task_renamed*", "near ones: task:task_rename"),
        ("nothing:like_it_at_all", "near ones: none like it"),
    ],
)
def test_of_what_is_missing_near_ones_are_named(pattern, near):
    with pytest.raises(TraceError, match=near):
        resolve(pattern)


def test_what_a_profile_asks_for_may_be_missing():
    assert events.resolve([EventRequest("x:y", is_optional=True)], AVAILABLE) == {}


def test_of_several_requests_for_an_event_the_last_counts():
    found = events.resolve([EventRequest("sched:*"), EventRequest("sched:sched_switch", "prev_pid == 1")], AVAILABLE)
    assert {event: one.filter for event, one in found.items()} == {
        "sched:sched_switch": "prev_pid == 1",
        "sched:sched_wakeup": "",
        "sched:sched_waking": "",
    }


def test_an_event_that_is_switched_has_to_be_there():
    with pytest.raises(TraceError, match="no event 'sched:sched_wakin' to switch; near ones: sched:sched_waking"):
        events.resolve([EventRequest("sched:*", triggers=("enable_event:sched:sched_wakin",))], AVAILABLE)


@pytest.mark.parametrize(
    ("wanted", "present", "is_same"),
    [
        ("stacktrace if x >= 0", "stacktrace:unlimited if x >= 0", True),
        ("stacktrace if x >= 0", "stacktrace:unlimited if x >= 1", False),
        ("stacktrace", "stacktrace:unlimited", True),
        ('stacktrace if comm == "a [x"', 'stacktrace:unlimited if comm == "a [x"', True),
        ("traceoff:3 if x == 1", "traceoff:count=1 if x == 1", True),
        ("traceoff if x == 1", "traceoff:count=1 if x == 1", False),
        ("traceoff:3", "traceoff:unlimited", False),
        ("traceoff", "traceon:unlimited", False),
        ("enable_event:a:b", "enable_event:a:b:unlimited", True),
        ("enable_event:a:b:2", "enable_event:a:b:count=2", True),
        ("enable_event:a:b", "enable_event:a:c:unlimited", False),
        ("hist:key=x if y", "hist:keys=x:vals=hitcount:sort=hitcount:size=2048 if y [active]", True),
        ("hist:keys=x,z", "hist:keys=x:vals=hitcount:sort=hitcount:size=2048 [active]", False),
    ],
)
def test_a_trigger_is_known_again(wanted, present, is_same):
    assert events.is_same_trigger(wanted, present) == is_same


@pytest.mark.parametrize(
    ("present", "removal", "again"),
    [
        ("stacktrace:unlimited if x", "!stacktrace", "stacktrace if x"),
        ("traceoff:count=2", "!traceoff", "traceoff:2"),
        ("enable_event:a:b:unlimited if x", "!enable_event:a:b", "enable_event:a:b if x"),
        ("hist:keys=x:size=8 if y [active]", "!hist:keys=x:size=8 if y", "hist:keys=x:size=8 if y"),
    ],
)
def test_a_trigger_is_taken_away_and_written_again(present, removal, again):
    assert events.format_removal(present) == removal
    assert events.format_present(present) == again


def test_the_text_of_an_events_triggers():
    none = "# Available triggers:\n# traceon traceoff stacktrace"
    assert (events.parse_triggers(none), events.parse_available_triggers(none)) == (
        [],
        ["traceon", "traceoff", "stacktrace"],
    )
    one = "stacktrace:unlimited"
    assert (events.parse_triggers(one), events.parse_available_triggers(one)) == ([one], [])


def test_a_trigger_that_the_kernel_lacks():
    events.check_triggers({"a:b": ["traceoff:1 if x"]}, ["traceoff"])
    with pytest.raises(TraceError, match=r"trigger 'hist' of event a:b: .*CONFIG_HIST_TRIGGERS"):
        events.check_triggers({"a:b": ["hist:keys=x"]}, ["traceoff"])
    with pytest.raises(TraceError, match="trigger 'jump' of event a:b: it has traceoff, stacktrace"):
        events.check_triggers({"a:b": ["jump"]}, ["traceoff", "stacktrace"])
