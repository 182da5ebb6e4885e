# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop traces, remove traces, and remove the leftovers of killed tasks."""

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
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import (
    client,
    handover,
    orders,
    recordings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX


def stop(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Stop tracing in all of FOUND; their events stay until a fetch. OUTCOME gets the failures."""
    _change_each(found, outcome, _stop)


def stop_rules(is_meant: Callable[[str], bool]) -> None:
    """Stop the rules that run and for whose names IS_MEANT is true; what they have recorded stays. Raises FleetError where that fails."""
    wanted = [order for order in orders.list_orders() if order.rule is not None and is_meant(order.rule.name)]
    found = [find_instance(order.root, order.container) for order in wanted]
    outcome = Outcome()
    stop([trace for trace in found if trace.find_state() == "started"], outcome)
    outcome.raise_first()


def _stop(trace: TraceInstance) -> None:
    with client.change(trace.instance.name) as change:
        was_on = trace.find_state() == "started"
        # The recording ends before tracing is switched off: its recorder would take the switch for a trigger's.
        handover.end_recording(trace.instance)
        if was_on:
            trace.instance.trace_off()
            record = metadata.read_record(trace.instance)
            if record:
                end = clocks.measure_offset(trace.instance.read_clock())
                ended = {
                    "end": end,
                    "ended": history.describe_caller(),
                    metadata.LAST_HOLDINGS: collect(trace.container),
                }
                metadata.write_record(trace.instance, {**record, **ended})
        handover.end_limits(change, trace.instance)


def remove(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Remove all of FOUND with their buffers, recordings and kept captures. OUTCOME gets the failures."""
    _change_each(found, outcome, _remove)


def _remove(trace: TraceInstance) -> None:
    take_back(trace, [])
    outbox.remove_kept(trace.instance.name)


def take_back(trace: TraceInstance, earlier: Sequence[str]) -> None:
    """Remove TRACE with its record, its unused probes and its recordings, but not the recordings in the folders EARLIER."""
    handover.forget(trace.instance)
    trace.instance.remove()
    metadata.remove_record(trace.instance)
    # A probe that another instance has switched on stays, as a leftover from now on.
    installed_probes.remove_unused(trace.instance, trace.short_id, busy_ok=True)
    for folder in recordings.list_folders(trace.instance.name):
        if folder not in earlier:
            recordings.remove(folder)


def _change_each(found: Sequence[TraceInstance], outcome: Outcome, change: Callable[[TraceInstance], None]) -> None:
    """Call CHANGE with each of FOUND while holding the trace's lock; OUTCOME gets the failures."""

    def serve(trace: TraceInstance) -> None:
        with outcome.serve(trace.who), try_lock("trace-" + trace.short_id):
            change(trace)

    serve_in_turns(found, serve, lambda trace, error: outcome.fail(trace.who, error), Patience())


def remove_leftovers(root: str, *, busy_ok: bool, check_mode: bool) -> bool:
    """Remove the probes of instances that are gone, as a killed task leaves them; return True if there were any.

    ROOT is the tracefs. In CHECK_MODE nothing is removed.
    Raises TraceError for probes that other people have switched on, unless BUSY_OK; all other probes are removed even then.
    """
    if check_mode:
        return bool(installed_probes.list_orphans(root, INSTANCE_PREFIX))
    return installed_probes.remove_orphans(root, INSTANCE_PREFIX, busy_ok=busy_ok)
