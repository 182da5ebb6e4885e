# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand traces over to the recorder, tell how it looks after them, and take them back."""

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
    """Return the order by which the recorder looks after instance NAME now; None if it does not."""
    order = orders.read_order(name)
    return order if order is not None and orders.is_taken(name) else None


def describe_order(name: str) -> dict[str, Any]:
    """Return the limits by which the recorder looks after instance NAME, for a diff.

    Empty if the recorder does not, or if it only watches the ring of a trace that has ended.
    """
    order = find_order(name)
    return describe_limits(order.limits, order.group) if order and not order.ended else {}


def find_end(name: str) -> float | None:
    """Return when the ttl of the trace in instance NAME ends, in seconds since the epoch by the host's clock; None if it has none."""
    order = find_order(name)
    return None if order is None else order.expires


def describe_limits(limits: Limits, group: str) -> dict[str, Any]:
    """Return LIMITS for a diff; if restarts are awaited, with the folder GROUP of the control group."""
    return {**limits.describe(), **({"group": group} if limits.restarts else {})}


def check_possible(limits: Limits, root: str, buffer_kb: int) -> None:
    """Raise TraceError if a recording by LIMITS, through buffers of BUFFER_KB per CPU, has no room; nothing is changed.

    ROOT is the tracefs.
    """
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
    """Hand INSTANCE, which is set up and does not trace yet, over to the recorder with LIMITS.

    GROUP is the folder of the control group of CONTAINER ('' if not known), RECORD the record of the trace's start.
    Raises FleetError if the recorder does not take it on.
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
    """Return the description of a recording, which is needed when INSTANCE is gone, and the head of its trace.dat."""
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
    """Begin the ttl of instance NAME anew."""
    order = orders.read_order(name)
    if order is not None and order.deadline is not None:
        orders.write_order(replace(order, deadline=orders.find_deadline(limits)))


def resume(change: Change, order: orders.Order) -> None:
    """Have the recorder look after a ring by ORDER again after a change that was refused; a recording is not resumed."""
    if not order.run and find_order(order.name) != order:
        change.place(order)


def end_recording(instance: Instance) -> bool:
    """Finish the recording of INSTANCE, and return True if it was recorded."""
    order = orders.read_order(instance.name)
    was_recorded = order is not None and bool(order.run) and client.withdraw(instance.name)
    for recording in recordings.list_recordings(instance.name)[-1:]:
        recording.settle(instance)
    return was_recorded


def end_limits(change: Change, instance: Instance) -> None:
    """Have the recorder only watch the ring of INSTANCE, which was stopped: until the ring is gone somebody may take its events."""
    order = orders.read_order(instance.name)
    if order is not None and not order.run and not order.ended:
        change.place(replace(order, ended="it was stopped"))


def forget(instance: Instance) -> None:
    """Take INSTANCE, which is about to be removed, away from the recorder, which finishes its recording."""
    client.withdraw(instance.name)


def describe_state(instance: Instance, *, is_gone: bool = False) -> dict[str, Any]:
    """Return what modules return of INSTANCE beside its settings; if it IS_GONE, what its record and recordings tell."""
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
        "recordings": [recording.as_result() for recording in found],
    }


def _find_history(
    record: dict[str, Any], found: Sequence[recordings.Recording]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return who began and who ended the trace with RECORD; without a record those of the last of the recordings FOUND."""
    end = record.get("end")
    if not record and found:
        record, end = found[-1].about["record"], (found[-1].read_end() or {}).get("time")
    ended = record.get("ended") or (end and {"time": end["real_time_ns"] / 1e9, "user": None, "login": None})
    return record.get("begun"), ended


def is_recorded(instance: Instance) -> bool:
    """Return True if INSTANCE is set up to be recorded to files."""
    return instance.read(_STOP_ON_FREE) == "1"


def list_watched() -> list[dict[str, Any]]:
    """Return all orders of the recorder in the form in which modules return them."""
    return [
        {
            "instance": order.name,
            "container": order.container.name,
            "mode": "record" if order.run else "ring",
            "expires": order.expires,
            "expires_at": None if order.expires is None else format_time(order.expires),
        }
        for order in orders.list_orders()
    ]
