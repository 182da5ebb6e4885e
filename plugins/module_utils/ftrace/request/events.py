# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Events as a user names them, with filters and triggers, and as the kernel has them. Pure.

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
# Of a trigger's count the kernel shows what is left of it.
_COUNT = re.compile(r":(?:unlimited|count=\d+|\d+)\Z")
# Blanks in quotes are meant; the kernel knows no way to quote a quote.
_QUOTED_OR_BLANK = re.compile(r"\"[^\"]*\"|'[^']*'|\s+")
# What the kernel adds of a histogram.
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
    """Events to record: PATTERN is system:name, each a name or a shell glob.

    Where IS_OPTIONAL the kernel may lack them, or NEEDED_FIELD of them.
    """

    pattern: str
    filter: str = ""
    triggers: tuple[str, ...] = ()
    is_optional: bool = False
    needed_field: str = ""


@dataclass(frozen=True)
class Trigger:
    """What an event sets off: the kernel's words for it, such as traceoff:3, and under which condition ('' for always)."""

    action: str
    condition: str

    @property
    def name(self) -> str:
        """The first word, such as traceoff."""
        return self.action.split(":")[0]

    @property
    def target(self) -> str | None:
        """The event (system:name) that this one switches on or off."""
        words = self.action.split(":")
        return ":".join(words[1:3]) if words[0] in _SWITCHES and len(words) >= 3 else None


def parse_request(entry: Any) -> EventRequest:
    """An entry of the option events: text, or a dictionary with name, filter and triggers. Raises TraceError."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or set(entry) - _KEYS:
        raise TraceError(f"events: {entry!r} is neither system:name nor a dictionary with name, filter and triggers")
    triggers = entry.get("triggers") or []
    if isinstance(triggers, str):
        triggers = [triggers]
    event_filter = entry.get("filter") or ""
    if not isinstance(event_filter, str) or not all(isinstance(one, str) for one in triggers):
        raise TraceError(f"events: filter and triggers of {entry['name']!r} have to be text")
    if not _EVENT_PATTERN.match(entry["name"]):
        raise TraceError(f"{entry['name']!r} is not an event: write system:name, for example sched:sched_switch")
    for condition in (event_filter, *(parse_trigger(text).condition for text in triggers)):
        if not _is_balanced(condition):
            raise TraceError(
                f"events: {condition!r} of {entry['name']!r} has a parenthesis, or a quote, without its other one"
            )
    return EventRequest(entry["name"], _squeeze(event_filter), tuple(map(_squeeze, triggers)))


def _is_balanced(condition: str) -> bool:
    """Whether CONDITION stays one when it is put in parentheses, beside another one."""
    depth = 0
    for character in _QUOTED_OR_BLANK.sub("", condition):
        depth += (character == "(") - (character == ")")
        if depth < 0 or character in "\"'":
            return False
    return depth == 0


def _squeeze(text: str) -> str:
    return _QUOTED_OR_BLANK.sub(lambda found: " " if found.group().isspace() else found.group(), text).strip()


def parse_trigger(text: str) -> Trigger:
    """A trigger as the kernel writes it: ACTION[:…] [if CONDITION]."""
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
    """Event → request for all AVAILABLE events that REQUESTS mean; of several for one event the last counts.

    No glob means one of the events DYNAMIC, which are probes, of others or of other traces; to have one its system is named.
    A glob's filter leaves the events UNFILTERED as they are. Raises TraceError, which names near ones, for a request that means none.
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
    # Both halves by themselves: a star never leads from one over to the other.
    return sorted(
        event
        for event in known
        if (event not in dynamic or event.startswith(system + ":"))
        and fnmatch.fnmatchcase(event.partition(":")[0], system)
        and fnmatch.fnmatchcase(event.partition(":")[2], name)
    )


def find_near(pattern: str, known: Iterable[str]) -> list[str]:
    """Up to three of KNOWN events that PATTERN may have been meant for."""
    by_name: dict[str, list[str]] = {}
    for event in known:
        by_name.setdefault(event.partition(":")[2], []).append(event)
    bare = pattern.replace("*", "")
    name = bare.partition(":")[2]
    elsewhere = [event for near in difflib.get_close_matches(name, by_name, 3, 0.8) for event in sorted(by_name[near])]
    return list(dict.fromkeys([*elsewhere, *difflib.get_close_matches(bare, known, 3)]))[:3]


def format_trigger(text: str, condition: str) -> str:
    """TEXT as it is written to the kernel, under CONDITION besides its own."""
    trigger = parse_trigger(text)
    own = f" && ({trigger.condition})" if trigger.condition else ""
    return f"{trigger.action} if {condition}{own}"


def is_same_trigger(wanted: str, present: str) -> bool:
    """Whether the kernel's text PRESENT is what became of WANTED: counts run down, histograms get more parameters."""
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
    """What takes away the trigger that the kernel shows as PRESENT."""
    bare = _STATE.sub("", present)
    trigger = parse_trigger(bare)
    return f"!{bare}" if trigger.name == "hist" else f"!{_COUNT.sub('', trigger.action)}"


def format_present(present: str) -> str:
    """The trigger that the kernel shows as PRESENT, as it can be written again."""
    action, if_, condition = _STATE.sub("", present).partition(" if ")
    return (
        re.sub(r":count=(\d+)\Z", r":\1", action[: -len(":unlimited")] if action.endswith(":unlimited") else action)
        + if_
        + condition
    )


def parse_triggers(text: str) -> list[str]:
    """The triggers in the text of an event's control file trigger."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def strip_state(text: str) -> str:
    """The triggers in TEXT, of that control file, sorted and without what the kernel changes in them: counts run down."""
    lines = []
    for line in parse_triggers(text):
        action, if_, condition = _STATE.sub("", line).partition(" if ")
        lines.append(_COUNT.sub("", action) + if_ + condition)
    return "\n".join(sorted(lines))


def parse_available_triggers(text: str) -> list[str]:
    """Names of triggers that the kernel offers, from that file of an event that has none; empty for one that has."""
    for line in text.splitlines():
        words = line.lstrip("#").split()
        if line.startswith("#") and words and words[-1] != "triggers:":
            return words
    return []


def check_triggers(wanted: Mapping[str, Sequence[str]], offered: Sequence[str]) -> None:
    """Raise TraceError for a trigger that the kernel does not offer."""
    for event, triggers in wanted.items():
        for trigger in map(parse_trigger, triggers):
            if offered and trigger.name not in offered:
                option = TRIGGER_OPTIONS.get(trigger.name)
                reason = f"this kernel was made without it ({option})" if option else f"it has {', '.join(offered)}"
                raise TraceError(f"trigger {trigger.name!r} of event {event}: {reason}")
