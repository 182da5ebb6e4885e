# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop traces, remove them, and remove what killed tasks have left of them."""

from __future__ import annotations

from typing import Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Patience,
    serve_in_turns,
    try_lock,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import history, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, handover, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX


def stop(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Stop recording in all of FOUND; they keep what they have. OUTCOME gets those that go on."""
    _change_each(found, outcome, _stop)


def _stop(one: TraceInstance) -> None:
    with client.change(one.instance.name) as change:
        was_on = one.find_state() == "started"
        # First: to its recorder it would be a trigger that stops the trace.
        handover.end_recording(one.instance)
        if was_on:
            one.instance.trace_off()
            record = metadata.read_record(one.instance)
            if record:
                end = clocks.measure_offset(one.instance.read_clock())
                metadata.write_record(one.instance, {**record, "end": end, "ended": history.describe_caller()})
        handover.end_limits(change, one.instance)


def remove(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Remove all of FOUND with what they have recorded, in files, too. OUTCOME gets those that stay."""
    _change_each(found, outcome, _remove)


def _remove(one: TraceInstance) -> None:
    take_back(one, [])
    outbox.remove_kept(one.instance.name)


def take_back(one: TraceInstance, earlier: Sequence[str]) -> None:
    """Remove ONE with what it has recorded, but for the recordings in the folders EARLIER."""
    handover.forget(one.instance)
    one.instance.remove()
    metadata.remove_record(one.instance)
    # What others have switched on is a leftover from now on.
    installed_probes.remove_unused(one.instance, one.short_id, busy_ok=True)
    for folder in recordings.list_folders(one.instance.name):
        if folder not in earlier:
            recordings.remove(folder)


def _change_each(found: Sequence[TraceInstance], outcome: Outcome, change: Callable[[TraceInstance], None]) -> None:
    """Call CHANGE with each of FOUND, while nobody else changes it; OUTCOME gets where that fails."""

    def serve(one: TraceInstance) -> None:
        with outcome.serve(one.who), try_lock("trace-" + one.short_id):
            change(one)

    serve_in_turns(found, serve, lambda one, error: outcome.fail(one.who, error), Patience())


def remove_leftovers(root: str, *, busy_ok: bool, check_mode: bool) -> bool:
    """Remove the probes of instances that are gone, as after a killed task; whether there were any.

    Raises TraceError for those that others have switched on, unless BUSY_OK; all others are removed then.
    """
    if check_mode:
        return bool(installed_probes.list_orphans(root, INSTANCE_PREFIX))
    return installed_probes.remove_orphans(root, INSTANCE_PREFIX, busy_ok=busy_ok)
