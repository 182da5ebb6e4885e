# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the trace instances that a module's options select, also those of containers that are gone."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import GONE, Selector
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import read_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX


def select_instances(
    module: Any, root: str, *, untraced_ok: bool = False, missing_ok: bool = False
) -> list[TraceInstance]:
    """Return the traces that MODULE's options select; all traces of this collection if the options select no containers.

    ROOT is the tracefs. A removed container is selected by the beginning of its id, twelve digits or more.
    Raises ContainerError if no selected container has a trace, unless UNTRACED_OK or allow_empty. With MISSING_OK a selected container may
    be missing if all runtimes have answered, and a warning names it.
    """
    if all(module.params[name] is None for name in ("containers", "labels", "query")):
        return _select_all(module, root)
    host = _open_host(module)
    selector = options.parse_selector(module, host)
    listed = options.list_candidates(module, host, selector, silence_ok=selector.query is None) if host else []
    if selector.query is None:  # a query asks the runtime about each container, which does not know those that are gone
        listed += _list_gone(root, listed)
    instances = list_instances(root, listed)
    orphans = [trace for trace in instances if trace.container is None]
    gone = {trace.container_id for trace in orphans}
    named = {pattern for pattern in selector.patterns or () if pattern[:SHORT_ID_LENGTH] in gone}
    chosen = [trace for trace in orphans if any(pattern.startswith(trace.container_id) for pattern in named)]
    rest = selector.without(named)
    if rest is not None:
        known_ok = missing_ok and host is not None and host.is_complete
        found = options.choose(module, rest, listed, running_only=False, missing_ok=known_ok, none_ok=True)
        wanted = {container.key for container in found}
        chosen += [trace for trace in instances if trace.container is not None and trace.container.key in wanted]
    if not chosen and not untraced_ok and not module.params["allow_empty"]:
        traced = ", ".join(trace.container_name for trace in instances) or "none"
        raise ContainerError(
            f"the selection matches no traced container; traced are: {traced} (allow_empty=true accepts this)"
        )
    return [_refresh(trace, host) for trace in chosen]


def _select_all(module: Any, root: str) -> list[TraceInstance]:
    """Return all traces of this collection; the runtimes tell the containers' names only, so they may be silent."""
    listed = []
    host = _open_host(module)
    if host is not None:
        listed = options.list_candidates(module, host, Selector(), silence_ok=True)
    return [_refresh(trace, host) for trace in list_instances(root, [*listed, *_list_gone(root, listed)])]


def _open_host(module: Any) -> Host | None:
    """Open the runtimes that MODULE's options name; if one does not answer, return None with a warning, or raise for a query."""
    try:
        return options.open_host(module)
    except ContainerError as error:
        if module.params["query"] is not None:
            raise
        module.warn(str(error))
        return None


def _list_gone(root: str, present: Sequence[Container]) -> list[Container]:
    """Return the containers of traces and kept captures that are not PRESENT: removed ones, or those of a silent runtime.

    Such a container can be selected by its name as long as no present container of the same owner has its name or id. So no other user
    of the host can hide it.
    """
    taken = {(container.owner_uid, word) for container in present for word in (container.id, container.name)}
    found = {}
    for trace in list_instances(root, present):
        about = read_container(trace) if trace.container is None else None
        if about is not None and taken.isdisjoint((about.get("owner_uid"), about[word]) for word in ("id", "name")):
            found[about["id"]] = Container(state=GONE, pid=0, **about)
    return list(found.values())


def _refresh(trace: TraceInstance, host: Host | None) -> TraceInstance:
    if trace.container is None or trace.container.state == GONE or host is None:
        return trace
    try:
        return TraceInstance(trace.instance, host.refresh(trace.container))
    except ContainerGoneError:
        return TraceInstance(trace.instance, None)


def list_instances(root: str, containers: Sequence[Container]) -> list[TraceInstance]:
    """Return all traces of this collection, each with its container if that is among CONTAINERS.

    These are the instances of the tracefs at ROOT, and the removed instances of which a recording, a capture or a record is kept.
    """
    # Root's containers go before those of users, because a user can give a container any id.
    by_id = {
        container.short_id: container
        for container in sorted(containers, key=lambda container: container.owner_uid is None)
    }
    try:
        present = os.listdir(os.path.join(root, "instances"))
    except FileNotFoundError:
        present = []
    names = sorted({*present, *recordings.list_names(), *outbox.list_kept_names(), *metadata.list_removed(root)})
    found = [
        TraceInstance(Instance(root, name), by_id.get(name[len(INSTANCE_PREFIX) :][:SHORT_ID_LENGTH]))
        for name in names
        if name.startswith(INSTANCE_PREFIX)
    ]
    return [trace if _has_right_owner(trace) else replace(trace, container=None) for trace in found]


def _has_right_owner(trace: TraceInstance) -> bool:
    """Return True if TRACE may be its container's: a user may have given a container the id of one that is gone."""
    if trace.container is None or trace.container.owner_uid is None:
        return True
    about = read_container(trace)
    return about is not None and about.get("owner_uid") == trace.container.owner_uid
