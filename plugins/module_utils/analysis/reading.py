# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass over a trace: its system calls and who made them, and what else there was."""

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
    """What was in a trace. CALLS are those of its system calls that were asked for, SYSCALLS their names by number, TASKS who threads were.

    PATHS has for each call the number in PATH_NAMES of the path that it was given, or -1. EVENTS counts all events by system:name, FUNCTIONS
    calls of the kernel's own functions. REQUESTS counts what was asked for through io_uring. Times are nanoseconds of the trace's clock.
    DAMAGE says in words that the file holds other events than the kernel counted: some of CALLS may be nobody's.
    """

    calls: PairedCalls
    syscalls: Mapping[int, str]
    tasks: TaskNames
    paths: Ints
    path_names: list[str]
    events: dict[str, int]
    functions: dict[str, int]
    requests: RingRequests
    first_time: int
    last_time: int
    damage: list[str]


def read_trace(trace: Trace, manifest: Mapping[str, Any]) -> Reading:
    """What is in TRACE; MANIFEST names its system calls and its tasks, and tells what was asked for."""
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
        since=_find_change(manifest),
    )
    by_number = {one.id: name for name, one in trace.formats.items()}
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
    """Return what is wrong where a trace holds another number of EVENTS than the kernel counted, as MANIFEST says."""
    counted = manifest.get("entries")
    # Manifests without a version counted what waited when the fetch began.
    if counted is None or "version" not in manifest or counted == events:
        return []
    return [f"the file holds {events} events, and the kernel counted {counted}"]


def _find_change(manifest: Mapping[str, Any]) -> int:
    """When the trace was last begun or changed, in nanoseconds of its clock; long ago where nobody knows."""
    times = manifest.get("time")
    changed = times.get("changed") if isinstance(times, dict) else None
    if not isinstance(changed, dict):
        return NEVER
    real, offset = changed.get("real_time_ns"), changed.get("offset_ns")
    if not isinstance(real, int) or not isinstance(offset, int):
        return NEVER
    return max(NEVER, min(real - offset, -NEVER))  # it came from a host
