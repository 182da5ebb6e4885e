# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' side of traces that somebody looks after: have that begin, see what is so, have it end."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import history, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.head import read_head
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container, describe_host
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.client import Change
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits, check_buffers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

_STOP_ON_FREE = "options/disable_on_free"


def find_order(name: str) -> orders.Order | None:
    """How instance NAME is looked after now; None when nobody does."""
    order = orders.read_order(name)
    return order if order is not None and orders.is_taken(name) else None


def describe_order(name: str) -> dict[str, Any]:
    """Return how instance NAME is looked after, for a diff; empty when nobody does, or when it is only watched any more."""
    order = find_order(name)
    return describe_limits(order.limits, order.group) if order and not order.ended else {}


def find_end(name: str) -> float | None:
    """When the trace in instance NAME ends by its ttl, in seconds since the epoch by the host's clock; None where it does not."""
    order = find_order(name)
    return None if order is None else order.expires


def describe_limits(limits: Limits, group: str) -> dict[str, Any]:
    """LIMITS for a diff, with the folder of the control GROUP where starts are awaited."""
    return {**limits.describe(), **({"group": group} if limits.restarts else {})}


def check_possible(limits: Limits, root: str, buffer_kb: int) -> None:
    """Raise TraceError, before anything is changed, where there is no room for a recording through buffers of BUFFER_KB per CPU."""
    if not limits.is_recorded:
        return
    check_buffers(limits, buffer_kb * 1024 * len(Instance(root, "..").list_cpus()))
    place = recordings.FOLDER
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = recordings.find_free(place)
    if free < limits.min_free:
        raise TraceError(
            f"{place} has {free >> 20} MiB free, less than min_free ({limits.min_free >> 20} MiB): make room, or ask for less"
        )


def begin(
    change: Change, instance: Instance, container: Container, group: str, limits: Limits, record: dict[str, Any]
) -> None:
    """Have INSTANCE, which is set up and does not trace yet, looked after by LIMITS; RECORD is what is known of its start.

    GROUP is the folder of the control group of CONTAINER, '' where that is not known.
    """
    run = ""
    with ExitStack() as undo:
        if limits.is_recorded:
            for path in recordings.list_unbegun(instance.name):
                recordings.remove(path)
            run = recordings.create(instance.name, *describe(instance, container, limits, record))
            undo.callback(recordings.remove, run)
            recordings.note_discarded(run, metadata.read_discarded(record))
        order = orders.Order(
            instance.name,
            instance.root,
            os.stat(instance.path).st_ino,
            container,
            limits,
            orders.find_deadline(limits),
            run,
            group,
        )
        change.place(order)
        undo.pop_all()
    if run:
        metadata.note_taken(instance)


def describe(
    instance: Instance, container: Container, limits: Limits, record: dict[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """What has to be known of INSTANCE beside its pages once it is gone, and the head of a trace.dat without any pages."""
    page_size = instance.read_page_size()
    head = read_head(instance, page_size, record, [])
    about = {
        **describe_host(),
        "container": describe_container(container),
        "instance": instance.name,
        "clock": instance.read_clock(),
        "buffer_kb": instance.read("buffer_size_kb"),
        "events": instance.read_events(),
        "page_size": page_size,
        "cpus": instance.list_cpus(),
        "record": record,
        "limits": limits.describe(),
        "inode": os.stat(instance.path).st_ino,
        "watched": True,
    }
    return about, trace_dat.pack_head(head, [])


def renew(name: str, limits: Limits) -> None:
    """Give instance NAME its ttl anew."""
    order = orders.read_order(name)
    if order is not None and order.deadline is not None:
        orders.write_order(replace(order, deadline=orders.find_deadline(limits)))


def resume(change: Change, order: orders.Order) -> None:
    """Have a ring looked after as ORDER says again, where a change of it was refused; a recording has ended."""
    if not order.run and find_order(order.name) != order:
        change.place(order)


def end_recording(instance: Instance) -> bool:
    """Have the recording of INSTANCE finished, if it is recorded; whether it was."""
    order = orders.read_order(instance.name)
    was_recorded = order is not None and bool(order.run) and client.withdraw(instance.name)
    for recording in recordings.list_recordings(instance.name)[-1:]:
        recording.settle(instance)
    return was_recorded


def end_limits(change: Change, instance: Instance) -> None:
    """Have the ring of INSTANCE, which does not trace any more, only watched: until it is gone somebody may take what it holds."""
    order = orders.read_order(instance.name)
    if order is not None and not order.run and not order.ended:
        change.place(replace(order, ended="it was stopped"))


def forget(instance: Instance) -> None:
    """Have nobody look after INSTANCE any more, which is about to be removed; a recording of it is finished."""
    client.withdraw(instance.name)


def describe_state(instance: Instance, *, is_gone: bool = False) -> dict[str, Any]:
    """What modules return of INSTANCE, or of what is left where it IS_GONE, beside its settings."""
    expires = find_end(instance.name)
    found = recordings.list_recordings(instance.name)
    record = {} if is_gone else metadata.read_record(instance)
    stopped = record.get("stopped")
    removed = metadata.read_removed(instance) if is_gone else None
    if removed is not None:
        stopped = metadata.describe_removed(removed)
    if stopped is None and found and (is_gone or not instance.is_tracing()):
        stopped = found[-1].as_result()["stopped"]
    begun, ended = _find_history(record, found)
    is_on = not is_gone and instance.is_tracing()
    return {
        "mode": "record" if (found if is_gone else is_recorded(instance)) else "ring",
        "begun": begun,
        "ended": None if is_on else ended,
        "summary": history.summarize(begun, ended, stopped, expires, is_on=is_on),
        "stopped": stopped,
        "followed": record.get("followed"),
        "discarded": metadata.read_discarded(record).events,
        "expires": expires,
        "expires_at": None if expires is None else format_time(expires),
        "recordings": [one.as_result() for one in found],
    }


def _find_history(
    record: dict[str, Any], found: Sequence[recordings.Recording]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Who began the trace with RECORD, or the last of the recordings FOUND where there is none any more, and who ended it."""
    end = record.get("end")
    if not record and found:
        record, end = found[-1].about["record"], (found[-1].read_end() or {}).get("time")
    ended = record.get("ended") or (end and {"time": end["real_time_ns"] / 1e9, "user": None, "login": None})
    return record.get("begun"), ended


def is_recorded(instance: Instance) -> bool:
    """Whether INSTANCE is set up to be recorded to files."""
    return instance.read(_STOP_ON_FREE) == "1"


def list_watched() -> list[dict[str, Any]]:
    """What the recorder looks after, as modules return it."""
    return [
        {
            "instance": one.name,
            "container": one.container.name,
            "mode": "record" if one.run else "ring",
            "expires": one.expires,
            "expires_at": None if one.expires is None else format_time(one.expires),
        }
        for one in orders.list_orders()
    ]
