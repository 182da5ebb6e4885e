# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which trace instances a module's options mean: those of the selected containers, also of containers that are gone."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import select_containers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import keeping
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.instances import TraceInstance, list_instances


def select_instances(module: Any, root: str, *, untraced_ok: bool = False) -> list[TraceInstance]:
    """The existing instances that MODULE's options select; all of ours when they select nothing.

    A container that was removed is known by the beginning of its id, twelve digits or more.
    Raises ContainerError when no selected container has an instance, unless UNTRACED_OK or allow_empty.
    """
    if all(module.params[name] is None for name in ("containers", "labels", "query")):
        return _select_all(module, root)
    host = options.open_host(module)
    selector = options.parse_selector(module, host)
    listed = options.list_candidates(module, host, selector)
    if selector.query is None:  # which asks the runtime about each
        listed += keeping.list_recorded_containers(listed)
    instances = list_instances(root, listed)
    orphans = [one for one in instances if one.container is None]
    gone = {one.container_id for one in orphans}
    named = {pattern for pattern in selector.patterns or () if pattern[:SHORT_ID_LENGTH] in gone}
    chosen = [one for one in orphans if any(pattern.startswith(one.container_id) for pattern in named)]
    rest = selector.without(named)
    if rest is not None:
        wanted = {one.id for one in select_containers(rest, listed, running_only=False)}
        chosen += [one for one in instances if one.container is not None and one.container.id in wanted]
    if not chosen and not untraced_ok and not module.params["allow_empty"]:
        traced = ", ".join(one.container_name for one in instances) or "none"
        raise ContainerError(
            f"the selection matches no traced container; traced are: {traced} (allow_empty=true accepts this)"
        )
    return [_refresh(one, host) for one in chosen]


def _select_all(module: Any, root: str) -> list[TraceInstance]:
    """All instances of ours. The runtimes only say their containers' names, and may be gone."""
    try:
        host = options.open_host(module)
        listed = host.list_containers()
        listed += keeping.list_recorded_containers(listed)
        return [_refresh(one, host) for one in list_instances(root, listed)]
    except ContainerError:
        return list_instances(root, keeping.list_recorded_containers([]))


def _refresh(one: TraceInstance, host: Host) -> TraceInstance:
    if one.container is None or one.container.state == "gone":
        return one
    try:
        return TraceInstance(one.instance, host.refresh(one.container))
    except ContainerGoneError:
        return TraceInstance(one.instance, None)
