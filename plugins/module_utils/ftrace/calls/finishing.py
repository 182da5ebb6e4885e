# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finish traces: stop them, move what they recorded to the captures that wait for a controller, and remove them."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Callable, Collection, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import SHORT_ID_LENGTH
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end, selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import awaiting
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch as fetching
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import recording
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import InstanceGone


def select(
    root: str, ids: Sequence[str], docker_host: str | None, warn: Callable[[str], None] = lambda _text: None
) -> list[TraceInstance]:
    """Return the traces of the containers with IDS, also of those that are gone; an id without a trace is passed over.

    ROOT is the tracefs. WARN gets warnings, such as that of an engine that does not answer.
    """
    parameters = {
        "containers": list(ids),
        "labels": None,
        "query": None,
        "docker_host": docker_host,
        "allow_empty": True,
    }
    return selection.select_instances(SimpleNamespace(params=parameters, warn=warn), root, untraced_ok=True)


def finish(
    found: Sequence[TraceInstance],
    outcome: Outcome,
    home: fetching.Home,
    *,
    leave: Collection[str] = (),
    is_alone: bool = False,
    warn: Callable[[str], None] = lambda _text: None,
) -> dict[str, Any]:
    """Stop the traces FOUND, stage what they have recorded for HOME, and remove those that hold nothing more.

    Traces of containers with an id of LEAVE go on, and are only fetched. If the call IS_ALONE, there is no controller to fetch now, and
    the next fetch brings everything. OUTCOME gets the traces that fail and stay, WARN warnings.
    The result is that of fetching.fetch, with `left`: the ids of traces that still hold events because the host has no room for them.
    """
    spared = {container_id[:SHORT_ID_LENGTH] for container_id in leave}
    mine = [trace for trace in found if trace.short_id not in spared]
    try:
        client.ensure_recorder()  # somebody may have killed it
    except FleetError as error:
        warn(str(error))  # neither a stop nor a fetch needs a recorder
    was_there = any(trace.instance.exists() for trace in mine)
    end.stop(mine, outcome)
    found = [*found, *awaiting.distribute(mine, outcome, warn)]
    result = _stage(found, outcome, home) if is_alone else fetching.fetch(found, outcome, home, warn, consume=True)
    held = [trace for trace in found if not outcome.has_failed(trace.who) and _holds_events(trace)]
    holding = {trace.short_id for trace in held}
    empty = [trace for trace in mine if trace.short_id not in holding and not outcome.has_failed(trace.who)]
    _remove(empty, outcome)
    left = [trace.container_id for trace in held if trace in mine or result["more"]]
    return {**result, "changed": result["changed"] or was_there, "left": left}


def _stage(found: Sequence[TraceInstance], outcome: Outcome, home: fetching.Home) -> Mapping[str, Any]:
    empty, has_more = fetching.stage(found, outcome, home.methods)
    return {"changed": True, "transfer": None, "empty": empty, "cursor": str(home.cursor), "more": has_more}


def _holds_events(trace: TraceInstance) -> bool:
    """Return True if events of TRACE wait for another fetch, which a removal would lose."""
    with suppress(InstanceGone):
        return recording.count_entries(trace) > 0
    return False


def _remove(traces: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Remove TRACES, and first the files that are exposed in their containers. OUTCOME gets the failures."""
    holders = [trace.container for trace in traces if trace.container is not None]
    exposure.remove(holders, outcome, {trace.instance.name for trace in traces})
    end.remove([trace for trace in traces if not outcome.has_failed(trace.who)], outcome)
