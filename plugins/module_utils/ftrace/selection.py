# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which trace instances a module's options mean: those of the selected containers, also of containers that are gone."""

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
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import read_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX

_GONE = "gone"


def select_instances(
    module: Any, root: str, *, untraced_ok: bool = False, missing_ok: bool = False
) -> list[TraceInstance]:
    """The existing instances that MODULE's options select; all of ours where they select nothing, as `everything`, a look or a fetch may.

    A container that was removed is known by the beginning of its id, twelve digits or more.
    Raises ContainerError when no selected container has an instance, unless UNTRACED_OK or allow_empty. With MISSING_OK what is selected
    need not be there where all runtimes have answered, and a warning names it.
    """
    if all(module.params[name] is None for name in ("containers", "labels", "query")):
        return _select_all(module, root)
    host = _open_host(module)
    selector = options.parse_selector(module, host)
    listed = options.list_candidates(module, host, selector, silence_ok=selector.query is None) if host else []
    if selector.query is None:  # which asks the runtime about each
        listed += _list_gone(root, listed)
    instances = list_instances(root, listed)
    orphans = [one for one in instances if one.container is None]
    gone = {one.container_id for one in orphans}
    named = {pattern for pattern in selector.patterns or () if pattern[:SHORT_ID_LENGTH] in gone}
    chosen = [one for one in orphans if any(pattern.startswith(one.container_id) for pattern in named)]
    rest = selector.without(named)
    if rest is not None:
        known_ok = missing_ok and host is not None and host.is_complete
        found = options.choose(module, rest, listed, running_only=False, missing_ok=known_ok, none_ok=True)
        wanted = {one.key for one in found}
        chosen += [one for one in instances if one.container is not None and one.container.key in wanted]
    if not chosen and not untraced_ok and not module.params["allow_empty"]:
        traced = ", ".join(one.container_name for one in instances) or "none"
        raise ContainerError(
            f"the selection matches no traced container; traced are: {traced} (allow_empty=true accepts this)"
        )
    return [_refresh(one, host) for one in chosen]


def _select_all(module: Any, root: str) -> list[TraceInstance]:
    """All instances of ours. The runtimes only say their containers' names, and may be gone."""
    listed = []
    host = _open_host(module)
    if host is not None:
        listed = options.list_candidates(module, host, Selector(), silence_ok=True)
    return [_refresh(one, host) for one in list_instances(root, [*listed, *_list_gone(root, listed)])]


def _open_host(module: Any) -> Host | None:
    """The runtimes that MODULE means; None, with a warning, where the one that it names does not answer. A query needs it."""
    try:
        return options.open_host(module)
    except ContainerError as error:
        if module.params["query"] is not None:
            raise
        module.warn(str(error))
        return None


def _list_gone(root: str, present: Sequence[Container]) -> list[Container]:
    """Containers of traces, and of what is kept of these, that are not among those PRESENT: removed ones, or of a runtime that is silent.

    They can be chosen by name as long as nobody else has it, which no user of the host can bring about.
    """
    taken = {(one.owner_uid, word) for one in present for word in (one.id, one.name)}
    found = {}
    for one in list_instances(root, present):
        about = read_container(one) if one.container is None else None
        if about is not None and taken.isdisjoint((about.get("owner_uid"), about[word]) for word in ("id", "name")):
            found[about["id"]] = Container(state=_GONE, pid=0, **about)
    return list(found.values())


def _refresh(one: TraceInstance, host: Host | None) -> TraceInstance:
    if one.container is None or one.container.state == _GONE or host is None:
        return one
    try:
        return TraceInstance(one.instance, host.refresh(one.container))
    except ContainerGoneError:
        return TraceInstance(one.instance, None)


def list_instances(root: str, containers: Sequence[Container]) -> list[TraceInstance]:
    """All instances of ours below the tracefs at ROOT, and those of which something is kept, with those of CONTAINERS that they are of."""
    # Root's go before those of users, who may take any id.
    by_id = {one.short_id: one for one in sorted(containers, key=lambda one: one.owner_uid is None)}
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
    return [one if _is_theirs(one) else replace(one, container=None) for one in found]


def _is_theirs(one: TraceInstance) -> bool:
    """Whether the trace may be its container's: a user may have taken the id of one that is gone."""
    if one.container is None or one.container.owner_uid is None:
        return True
    about = read_container(one)
    return about is not None and about.get("owner_uid") == one.container.owner_uid
