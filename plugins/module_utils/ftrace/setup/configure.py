# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read, check and write the settings of one trace instance."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any, Callable, Iterable, Protocol, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import undoing
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import events as event_words
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    Settings,
    leave_out_noise,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.boot import parse_release
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_PAGE_KB = 4
CPUS = "tracing_cpumask"


def parse_buffer_kb(text: str) -> int:
    """Return the KiB per CPU in TEXT, the content of buffer_size_kb; 0 if it has no number.

    Before its first use an instance says '7 (expanded: 1408)', of which the first number counts.
    """
    words = text.split()
    return int(words[0]) if words and words[0].isdigit() else 0


def with_all_cpus(settings: Settings) -> Settings:
    """Return SETTINGS with a CPU mask of all CPUs that this host may have."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        count = int(file.read().strip().rpartition(",")[2].rpartition("-")[2]) + 1
    digits = f"{(1 << count) - 1:x}"
    words = [digits[max(0, end - 8) : end] for end in range(len(digits), 0, -8)]
    return replace(settings, files={**settings.files, CPUS: ",".join(reversed(words))})


def _parse_cpus(text: str) -> int:
    return int(text.replace(",", ""), 16)


def read_triggers(instance: Instance) -> dict[str, list[str]]:
    """Return event → triggers, as the kernel shows them, for the events of INSTANCE that have some.

    An event's triggers stay when the event is switched off. So the events in the record of INSTANCE are read, too.
    """
    events = {**instance.read_events(), **metadata.read_record(instance).get("events", {})}
    existing = [event for event in events if os.path.isdir(os.path.join(instance.path, "events", *event.split(":")))]
    found = {event: event_words.parse_triggers(instance.read_triggers(event)) for event in existing}
    return {event: triggers for event, triggers in found.items() if triggers}


def read_settings(instance: Instance, wanted: Settings) -> Settings:
    """Return the present settings of INSTANCE: the files that WANTED names, all enabled events, and the triggers.

    A value that is as good as the one in WANTED is returned as WANTED has it, such as a rounded buffer size or a trigger with a used count.
    """
    files = {name: instance.read(name) for name in wanted.files}
    files["trace_clock"] = instance.read_clock()
    # The kernel rounds a buffer up to whole pages, and newer kernels show the rounded size.
    wanted_kb = int(wanted.files["buffer_size_kb"])
    if 0 <= parse_buffer_kb(files["buffer_size_kb"]) - wanted_kb <= _PAGE_KB:
        files["buffer_size_kb"] = str(wanted_kb)
    if CPUS in files and _parse_cpus(files[CPUS]) & _parse_cpus(wanted.files[CPUS]) == _parse_cpus(wanted.files[CPUS]):
        files[CPUS] = wanted.files[CPUS]
    for name in set(files) & {tracers.FILTER, tracers.NOTRACE}:
        known = tracers.list_functions(instance.root)
        present = tracers.parse_filter(files[name])
        is_same = present == tracers.find_functions(wanted.files[name], known)
        files[name] = wanted.files[name] if is_same else " ".join(sorted(present))
    enabled = {event: text for event, text in instance.read_events().items() if event not in wanted.switched}
    triggers = {
        event: match_triggers(wanted.triggers.get(event, ()), present)
        for event, present in read_triggers(instance).items()
    }
    return Settings(files, enabled, triggers, wanted.switched)


def match_triggers(wanted: tuple[str, ...], present: Iterable[str]) -> tuple[str, ...]:
    """Return the PRESENT triggers of an event; those that are WANTED come first, in the text and order of WANTED."""
    left = sorted(present)
    matched = []
    for trigger in wanted:
        same = next((text for text in left if event_words.is_same_trigger(trigger, text)), None)
        if same is not None:
            left.remove(same)
            matched.append(trigger)
    return (*matched, *map(event_words.format_present, left))


def check_possible(root: str, settings: Settings, names: Sequence[str]) -> None:
    """Raise TraceError if the instances called NAMES cannot have SETTINGS.

    The kernel of the tracefs at ROOT may lack a tracer, an event or a trigger, or the host the memory for the buffers. Nothing is changed.
    """
    files = settings.files
    request = tracers.TracerRequest(
        files.get("current_tracer", "nop"),
        tuple(files.get(tracers.FILTER, "").split()),
        tuple(files.get(tracers.NOTRACE, "").split()),
    )
    tracers.check_possible(root, request, names, parse_release(os.uname().release))
    for event in settings.events:
        folder = os.path.join(root, "events", *event.split(":"))
        if not os.path.isdir(folder):
            raise TraceError(f"the kernel has no event {event!r}; ftrace_info lists those it has")
        if not all(os.path.exists(os.path.join(folder, name)) for name in ("enable", "filter")):
            raise TraceError(f"event {event!r} is the kernel's own and cannot be switched on; choose another")
    if settings.triggers:
        event_words.check_triggers(settings.triggers, list_offered_triggers(root))
    cpus = len(Instance(root, "..").list_cpus())
    buffer_kb = int(settings.files["buffer_size_kb"])
    with open("/proc/meminfo", encoding="ascii") as file:
        available_kb = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    wanted_kb = buffer_kb * cpus * len(names)
    if wanted_kb > available_kb // 2:
        raise TraceError(
            f"buffer_size: {buffer_kb} KiB on {cpus} CPUs for {len(names)} containers is {wanted_kb} KiB,"
            f" more than half of the {available_kb} KiB that the host has free: ask for less"
        )


def list_offered_triggers(root: str) -> list[str]:
    """Return the names of the triggers that the kernel of the tracefs at ROOT offers."""
    top = Instance(root, "..")
    for event in top.read("available_events").splitlines():
        # An event that has a trigger shows this trigger instead of the offered ones.
        offered = event_words.parse_available_triggers(top.read_triggers(event))
        if offered:
            return offered
    return []


class Followers(Protocol):
    """The threads that an instance records."""

    def begin(self) -> None:
        """Record these threads and no others."""

    def restore(self) -> None:
        """Record the threads that were recorded before begin."""


def configure(
    instance: Instance,
    present: Settings | None,
    settings: Settings,
    followers: Followers,
    define: Callable[[], Any],
    look_after: Callable[[], Any],
) -> None:
    """Bring INSTANCE to SETTINGS, have it record FOLLOWERS, and switch it on.

    PRESENT is its present settings; None if it has to be made. DEFINE defines its probes, LOOK_AFTER gives it to the recorder.
    After a failure INSTANCE is as it was before; one that was made here is removed.
    """
    with undoing() as undo:
        if present is None:
            instance.create()
            undo.callback(_remove, instance)
        # The instance has to exist before its probes: a cleanup removes probes without an instance.
        define()
        if present is not None:
            undo.callback(_put_back, instance, present, settings, followers, is_on=instance.is_tracing())
        instance.trace_off()
        with metadata.noting_discarded(instance):
            try:
                _write(instance, present, settings, followers)
            except TraceError as error:
                error.args = (leave_out_noise(str(error)),)  # the mistake is in the user's part of a filter
                raise
        look_after()
        instance.trace_on()
        undo.pop_all()


def _remove(instance: Instance) -> None:
    """Remove INSTANCE, which was made here; where that fails the caller, who takes back all of a trace, tries again and tells why."""
    with suppress(TraceError):
        instance.remove()


def _write(instance: Instance, present: Settings | None, settings: Settings, followers: Followers) -> None:
    """Bring INSTANCE, which is off and PRESENT or new, to SETTINGS, and have it record FOLLOWERS."""
    _write_files(instance, present, settings)
    # Triggers are set anew with any change: the counts in a stopped trace may be used up.
    has_triggers = settings.triggers or (present and present.triggers)
    is_same = present is not None and present.events == settings.events and not has_triggers
    if present is not None and not is_same:
        clear_events(instance, {*present.events, *present.triggers})
    # The threads come before the events: with an empty list every process of the host would set off triggers, also while tracing is off.
    followers.begin()
    if not is_same:
        _write_events(instance, settings)


def _put_back(instance: Instance, present: Settings, settings: Settings, followers: Followers, *, is_on: bool) -> None:
    """Bring INSTANCE from a part of SETTINGS back to those that were PRESENT, and have it trace if it IS_ON."""
    # Any of the events of both may be on now, because SETTINGS may have been written in part.
    clear_events(instance, {*settings.events, *present.events, *present.triggers})
    # An unchanged file is not written again: the kernel may refuse that write for the reason that it refused the change.
    with metadata.noting_discarded(instance):
        _write_files(instance, read_settings(instance, present), present)
    followers.restore()
    _write_events(instance, present)
    if is_on:
        instance.trace_on()


def _write_files(instance: Instance, present: Settings | None, settings: Settings) -> None:
    """Bring the control files of INSTANCE to SETTINGS; those with the right value in PRESENT are not written."""
    for name, value in settings.files.items():
        if present is None or present.files[name] != value:
            _write_file(instance, name, value)


def _write_events(instance: Instance, settings: Settings) -> None:
    """Bring INSTANCE, whose events are off, to the events and triggers of SETTINGS."""
    for event, event_filter in settings.switched.items():
        instance.event_filter(event, event_filter)
    for event, triggers in settings.triggers.items():
        for text in triggers:
            # The condition is written as a filter first: older kernels give a reason for a filter that they refuse, but not for a trigger.
            instance.event_filter(event, event_words.parse_trigger(text).condition)
    # An event's filter comes before its switch: without the filter it would record other events for a moment.
    for event, event_filter in settings.events.items():
        instance.event_enable(event, event_filter)
    for event, triggers in settings.triggers.items():
        for text in triggers:
            instance.trigger_write(event, text)


def _write_file(instance: Instance, name: str, value: str) -> None:
    if name in (tracers.FILTER, tracers.NOTRACE):
        instance.write_patterns(name, value.split())
        return
    try:
        instance.write(name, value)
    except TraceError as error:
        if name != "buffer_size_kb":
            raise
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EBUSY:
            raise TraceError(
                f"buffer_size cannot change while another process reads the trace: end that process first ({error})"
            ) from error
        cpus = len(instance.list_cpus())
        raise TraceError(
            f"buffer_size: the kernel does not give {value} KiB on each of {cpus} CPUs, {int(value) * cpus} KiB in all:"
            f" ask for less ({error})"
        ) from error


def clear_events(instance: Instance, events: Iterable[str]) -> None:
    """Switch off all events of INSTANCE, and remove the triggers of EVENTS."""
    instance.events_disable()
    for event in events:
        for text in event_words.parse_triggers(instance.read_triggers(event)):
            instance.trigger_write(event, event_words.format_removal(text))
