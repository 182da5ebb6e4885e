# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand traces over to the recorder, tell how it looks after them, and take them back."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.head import read_head
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container, describe_host
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, orders, recordings, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.client import Change
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits, check_buffers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError


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
    change: Change,
    instance: Instance,
    container: Container,
    group: str,
    limits: Limits,
    record: dict[str, Any],
    rule: Rule | None = None,
) -> None:
    """Hand INSTANCE, which is set up and does not trace yet, over to the recorder with LIMITS.

    GROUP is the folder of the control group of CONTAINER ('' if not known), RECORD the record of the trace's start. RULE is the rule that
    CONTAINER stands for; None for one container.
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
            rule=rule,
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
    if not order.run and state.find_order(order.name) != order:
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
