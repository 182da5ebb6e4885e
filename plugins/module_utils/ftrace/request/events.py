# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Match the events, filters and triggers that a user names with those that the kernel has. Pure.

Source: Documentation/trace/events.rst of the kernel.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from dataclasses import dataclass, replace
from typing import Any, Collection, Iterable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

_EVENT_PATTERN = re.compile(r"[A-Za-z0-9_*?\[\]!-]+:[A-Za-z0-9_*?\[\]!-]+\Z")
_IS_GLOB = re.compile(r"[*?\[]")
_KEYS = {"name", "filter", "triggers"}
# The kernel shows how much of a trigger's count is left, not the count that was written.
_COUNT = re.compile(r":(?:unlimited|count=\d+|\d+)\Z")
# Blanks in quotes belong to the text; the kernel has no way to escape a quote.
_QUOTED_OR_BLANK = re.compile(r"\"[^\"]*\"|'[^']*'|\s+")
# The kernel appends a histogram's state to its trigger.
_STATE = re.compile(r" \[(?:active|paused|disabled)\]\Z")
_HIST_ALIASES = {"key": "keys", "val": "vals", "values": "vals"}
_SWITCHES = ("enable_event", "disable_event")
TRIGGER_OPTIONS = {
    "hist": "CONFIG_HIST_TRIGGERS",
    "enable_hist": "CONFIG_HIST_TRIGGERS",
    "disable_hist": "CONFIG_HIST_TRIGGERS",
    "snapshot": "CONFIG_TRACER_SNAPSHOT",
    "stacktrace": "CONFIG_STACKTRACE",
}


@dataclass(frozen=True)
class EventRequest:
    """Events to record.

    PATTERN: system:name, where each half is a name or a shell glob.
    FILTER: the kernel's filter expression; '' for none.
    TRIGGERS: the triggers to set, as a user writes them.
    IS_OPTIONAL: True if the kernel may lack the events.
    NEEDED_FIELD: a field without which an event is left out; '' for none.
    """

    pattern: str
    filter: str = ""
    triggers: tuple[str, ...] = ()
    is_optional: bool = False
    needed_field: str = ""


@dataclass(frozen=True)
class Trigger:
    """A trigger of an event.

    ACTION: the action in the kernel's syntax, such as traceoff:3.
    CONDITION: the filter expression under which the event sets it off; '' for always.
    """

    action: str
    condition: str

    @property
    def name(self) -> str:
        """Return the action's name without its parameters, such as traceoff."""
        return self.action.split(":")[0]

    @property
    def target(self) -> str | None:
        """Return the event (system:name) that the trigger switches on or off; None if it switches none."""
        words = self.action.split(":")
        return ":".join(words[1:3]) if words[0] in _SWITCHES and len(words) >= 3 else None


def parse_request(entry: Any) -> EventRequest:
    """Parse ENTRY of the option events: system:name, or a dictionary with name, filter and triggers.

    Raises TraceError for an entry of another form, and for a filter or trigger with an unmatched parenthesis or quote.
    """
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or set(entry) - _KEYS:
        raise TraceError(f"events: {entry!r} is neither system:name nor a dictionary with name, filter and triggers")
    triggers = entry.get("triggers") or []
    if isinstance(triggers, str):
        triggers = [triggers]
    event_filter = entry.get("filter") or ""
    if not isinstance(event_filter, str) or not all(isinstance(text, str) for text in triggers):
        raise TraceError(f"events: filter and triggers of {entry['name']!r} have to be text")
    if not _EVENT_PATTERN.match(entry["name"]):
        raise TraceError(f"{entry['name']!r} is not an event: write system:name, for example sched:sched_switch")
    for condition in (event_filter, *(parse_trigger(text).condition for text in triggers)):
        if not _is_balanced(condition):
            raise TraceError(
                f"events: {condition!r} of {entry['name']!r} has an unmatched parenthesis or quote: close it"
            )
    return EventRequest(entry["name"], _squeeze(event_filter), tuple(map(_squeeze, triggers)))


def _is_balanced(condition: str) -> bool:
    """Return True if CONDITION can stand in parentheses beside another condition."""
    depth = 0
    for character in _QUOTED_OR_BLANK.sub("", condition):
        depth += (character == "(") - (character == ")")
        if depth < 0 or character in "\"'":
            return False
    return depth == 0


def _squeeze(text: str) -> str:
    return _QUOTED_OR_BLANK.sub(lambda found: " " if found.group().isspace() else found.group(), text).strip()


def parse_trigger(text: str) -> Trigger:
    """Parse a trigger in the kernel's syntax: ACTION[:…] [if CONDITION].

    Raises TraceError for another form, and for a switch (enable_event, disable_event) that does not name one event.
    """
    action, _if, condition = _squeeze(text).partition(" if ")
    if not re.match(r"[a-z_]+(:|\Z)", action) or " " in action:
        raise TraceError(f"{text!r} is not a trigger: write ACTION, or ACTION if CONDITION, for example 'stacktrace'")
    trigger = Trigger(action, condition)
    if trigger.name in _SWITCHES and (trigger.target is None or _IS_GLOB.search(action)):
        raise TraceError(f"{text!r} does not name the event that it switches: write {trigger.name}:system:name")
    return trigger


def resolve(
    requests: Sequence[EventRequest],
    available: Iterable[str],
    *,
    dynamic: Collection[str] = (),
    unfiltered: Collection[str] = (),
) -> dict[str, EventRequest]:
    """Return event → request for all AVAILABLE events that REQUESTS match; the last match of an event counts.

    DYNAMIC are events that other people or other traces have defined. A glob matches them only where it names their system in full.
    UNFILTERED are events that a glob's filter does not apply to.
    Raises TraceError, which names similar events, for a request that matches none and is not optional.
    """
    known = set(available)
    found: dict[str, EventRequest] = {}
    for request in requests:
        names = _match(request.pattern, known, dynamic)
        if not names and not request.is_optional:
            near = ", ".join(find_near(request.pattern, known)) or "none like it"
            raise TraceError(f"the kernel has no event {request.pattern!r}; near ones: {near} (ftrace_info lists all)")
        for name in names:
            is_free = name in unfiltered and name != request.pattern
            found[name] = replace(request, pattern=name, filter="" if is_free else request.filter)
        for trigger in map(parse_trigger, request.triggers if names else ()):
            if trigger.target is not None and trigger.target not in known:
                near = ", ".join(find_near(trigger.target, known)) or "none like it"
                raise TraceError(f"the kernel has no event {trigger.target!r} to switch; near ones: {near}")
    return found


def _match(pattern: str, known: set[str], dynamic: Collection[str]) -> list[str]:
    if not _IS_GLOB.search(pattern):
        return [pattern] if pattern in known else []
    system, _colon, name = pattern.partition(":")
    # Each half is matched by itself, so that a star never matches across the colon.
    return sorted(
        event
        for event in known
        if (event not in dynamic or event.startswith(system + ":"))
        and fnmatch.fnmatchcase(event.partition(":")[0], system)
        and fnmatch.fnmatchcase(event.partition(":")[2], name)
    )


def find_near(pattern: str, known: Iterable[str]) -> list[str]:
    """Return up to three of the KNOWN events that are most similar to PATTERN."""
    by_name: dict[str, list[str]] = {}
    for event in known:
        by_name.setdefault(event.partition(":")[2], []).append(event)
    bare = pattern.replace("*", "")
    name = bare.partition(":")[2]
    elsewhere = [event for near in difflib.get_close_matches(name, by_name, 3, 0.8) for event in sorted(by_name[near])]
    return list(dict.fromkeys([*elsewhere, *difflib.get_close_matches(bare, known, 3)]))[:3]


def format_trigger(text: str, condition: str) -> str:
    """Return trigger TEXT as it is written to the kernel, with CONDITION added to its own condition."""
    trigger = parse_trigger(text)
    own = f" && ({trigger.condition})" if trigger.condition else ""
    return f"{trigger.action} if {condition}{own}"


def is_same_trigger(wanted: str, present: str) -> bool:
    """Return True if the kernel's text PRESENT is the trigger that was written as WANTED.

    The kernel shows the rest of a count, and adds parameters to a histogram.
    """
    ours, theirs = parse_trigger(wanted), parse_trigger(_STATE.sub("", present))
    if ours.condition != theirs.condition or ours.name != theirs.name:
        return False
    if ours.name == "hist":
        return _read_parameters(ours.action).items() <= _read_parameters(theirs.action).items()
    has_count = (_find_count(ours.action) is not None, _find_count(theirs.action) is not None)
    return _COUNT.sub("", ours.action) == _COUNT.sub("", theirs.action) and has_count[0] == has_count[1]


def _find_count(action: str) -> str | None:
    found = _COUNT.search(action)
    return found.group() if found and found.group() != ":unlimited" else None


def _read_parameters(action: str) -> dict[str, str]:
    parameters = {}
    for word in action.split(":")[1:]:
        key, _equals, value = word.partition("=")
        parameters[_HIST_ALIASES.get(key, key)] = value
    return parameters


def format_removal(present: str) -> str:
    """Return the text that removes the trigger that the kernel shows as PRESENT."""
    bare = _STATE.sub("", present)
    trigger = parse_trigger(bare)
    return f"!{bare}" if trigger.name == "hist" else f"!{_COUNT.sub('', trigger.action)}"


def format_present(present: str) -> str:
    """Return the trigger that the kernel shows as PRESENT in a form that can be written again."""
    action, if_, condition = _STATE.sub("", present).partition(" if ")
    return (
        re.sub(r":count=(\d+)\Z", r":\1", action[: -len(":unlimited")] if action.endswith(":unlimited") else action)
        + if_
        + condition
    )


def parse_triggers(text: str) -> list[str]:
    """Return the triggers in TEXT, the content of an event's control file `trigger`."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def strip_state(text: str) -> str:
    """Return the triggers in TEXT, the content of an event's control file `trigger`, without counts and states.

    The kernel changes counts and states by itself. The lines are sorted.
    """
    lines = []
    for line in parse_triggers(text):
        action, if_, condition = _STATE.sub("", line).partition(" if ")
        lines.append(_COUNT.sub("", action) + if_ + condition)
    return "\n".join(sorted(lines))


def parse_available_triggers(text: str) -> list[str]:
    """Return the names of the triggers that the kernel offers.

    TEXT is the content of the control file `trigger` of an event without triggers; any other event's file gives an empty list.
    """
    for line in text.splitlines():
        words = line.lstrip("#").split()
        if line.startswith("#") and words and words[-1] != "triggers:":
            return words
    return []


def check_triggers(wanted: Mapping[str, Sequence[str]], offered: Sequence[str]) -> None:
    """Raise TraceError if WANTED (event → triggers) has a trigger that is not among those OFFERED by the kernel."""
    for event, triggers in wanted.items():
        for trigger in map(parse_trigger, triggers):
            if offered and trigger.name not in offered:
                option = TRIGGER_OPTIONS.get(trigger.name)
                reason = f"this kernel was made without it ({option})" if option else f"it has {', '.join(offered)}"
                raise TraceError(f"trigger {trigger.name!r} of event {event}: {reason}")
