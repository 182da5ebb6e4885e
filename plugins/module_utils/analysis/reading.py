# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a trace in one pass: its system calls, the threads that made them, and counts of its other events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.call_paths import PathEvents
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import CallEvents, read_names
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import FunctionCounts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.io_uring import RingRequests
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.pairing import NEVER, PairedCalls
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.tasks import TaskNames

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints


@dataclass(frozen=True)
class Reading:
    """The content of a trace."""

    calls: PairedCalls  # the system calls that were requested
    syscalls: Mapping[int, str]  # their names by number
    tasks: TaskNames
    paths: Ints  # for each call, the index in PATH_NAMES of its path, or -1
    path_names: list[str]
    events: dict[str, int]  # number of all events by system:name
    functions: dict[str, int]  # number of calls of the kernel's functions
    requests: RingRequests  # through io_uring
    first_time: int  # nanoseconds of the trace's clock
    last_time: int
    damage: list[str]  # in words: the file holds other events than the kernel counted, so some of CALLS may be false


def read_trace(trace: Trace, manifest: Mapping[str, Any]) -> Reading:
    """Return the content of TRACE; MANIFEST has the names of its system calls, its tasks, and the requested trace."""
    first_tasks = manifest.get("first_tasks") or []
    last_tasks = manifest.get("tasks") or []
    syscalls = read_names(manifest)
    tasks = TaskNames(first_tasks, last_tasks, trace.head.cmdlines)
    compat = CompatTasks(first_tasks, last_tasks)
    call_events = CallEvents(
        trace.formats, syscalls, manifest.get("specification"), manifest.get("earlier_syscalls") or ()
    )
    functions = FunctionCounts()
    path_events = PathEvents(trace.formats)
    requests = RingRequests(trace.formats)
    events: Counter[int] = Counter()
    first, last = 1 << 62, 0
    for batch in trace.gen_batches():
        if not batch.times.size:
            continue
        events.update(dict(zip(*(column.tolist() for column in np.unique(batch.types, return_counts=True)))))
        first, last = min(first, int(batch.times.min())), max(last, int(batch.times.max()))
        call_events.feed(batch)
        tasks.feed(batch, trace.formats)
        compat.feed(batch, trace.formats)
        functions.feed(batch, trace.formats)
        path_events.feed(batch)
        requests.feed(batch)
    tasks.finish()
    compat.finish()
    damage = _compare(sum(events.values()), manifest)
    calls = call_events.pair(
        compat,
        is_complete=manifest.get("complete") is True,
        is_damaged=bool(damage),
        since=find_change(manifest),
    )
    by_number = {event_format.id: name for name, event_format in trace.formats.items()}
    return Reading(
        calls=calls,
        syscalls=syscalls,
        tasks=tasks,
        paths=path_events.find(calls.starters, calls.ends, calls.numbers, syscalls),
        path_names=path_events.names,
        events={by_number.get(number, f"event {number}"): count for number, count in sorted(events.items())},
        functions=functions.names(trace.head.kallsyms),
        requests=requests,
        first_time=first if events else 0,
        last_time=last,
        damage=damage,
    )


def _compare(events: int, manifest: Mapping[str, Any]) -> list[str]:
    """Return the damage, in words, when a trace holds another number of EVENTS than MANIFEST says the kernel counted; else []."""
    counted = manifest.get("entries")
    # A manifest without a version has the number of events that waited when the fetch began, which may differ.
    if counted is None or "version" not in manifest or counted == events:
        return []
    return [f"the file holds {events} events, and the kernel counted {counted}"]


def find_change(manifest: Mapping[str, Any]) -> int:
    """Return when the trace was started or last changed, in nanoseconds of its clock; NEVER when it is not known."""
    times = manifest.get("time")
    changed = times.get("changed") if isinstance(times, dict) else None
    if not isinstance(changed, dict):
        return NEVER
    real, offset = changed.get("real_time_ns"), changed.get("offset_ns")
    if not isinstance(real, int) or not isinstance(offset, int):
        return NEVER
    return max(NEVER, min(real - offset, -NEVER))  # the values came from a host and may be anything
