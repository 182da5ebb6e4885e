# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which every module selects containers, and what they select."""

from __future__ import annotations

from typing import Any, Callable

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import PROCESS_PREFIX, PROCESS_RUNTIME
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import (
    JMESPATH_IMPORT_ERROR,
    compile_query,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import (
    Selector,
    describe_running,
    select_containers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

ARGUMENTS: dict[str, dict[str, Any]] = {
    "containers": {"type": "list", "elements": "str"},
    "labels": {"type": "dict"},
    "query": {"type": "str"},
    "docker_host": {"type": "str"},
    "allow_empty": {"type": "bool", "default": False},
}


def open_host(module: Any) -> Host:
    """The runtimes that MODULE's options mean."""
    return Host(module.params["docker_host"])


def parse_selector(module: Any, inspect: Callable[[Container], dict[str, Any]]) -> Selector:
    """What MODULE's options ask for; a query is put to what INSPECT says of a container."""
    patterns, labels, query = (module.params[name] for name in ("containers", "labels", "query"))
    if labels is not None and not labels:
        raise ContainerError("labels is empty: leave it out, or name a label")
    if query is not None and JMESPATH_IMPORT_ERROR:
        raise ContainerError(missing_required_lib("jmespath"))
    return Selector(
        # An empty list asks for nothing; it must not come to mean everything.
        patterns=None if patterns is None else tuple(patterns),
        labels=tuple((name, None if value is None else str(value)) for name, value in (labels or {}).items()),
        query=compile_query(query, inspect) if query is not None else None,
        any_owner=module.params["docker_host"] is not None,
    )


def select(module: Any, host: Host, *, required: bool) -> list[Container]:
    """The containers that MODULE's options select, with their pids and states of now.

    With REQUIRED something has to be asked for and only running containers are meant. Without it
    nothing asked for means every container in any state.
    """
    selector = parse_selector(module, host.inspect)
    if required and selector.is_empty:
        raise ContainerError(
            "say which containers: give containers, labels or query (containers='*' means all that run)"
        )
    listed = list_candidates(module, host, selector)
    try:
        chosen = _choose(module, host, selector, listed, running_only=required)
    except ContainerError:
        if selector.may_mean_users:
            raise
        # Users are asked for the sake of the message only: what was asked for may be theirs.
        known = len(host.warnings)
        listed = [*host.list_containers(), *(one for one in listed if one.runtime == PROCESS_RUNTIME)]
        _warn(module, host.warnings[known:])
        chosen = _choose(module, host, selector, listed, running_only=required)
    refreshed = []
    for container in chosen:
        is_named = selector.names(container)
        try:
            fresh = host.refresh(container)
        except ContainerGoneError:
            if is_named:
                raise
            continue  # nobody asked for this one; containers come and go
        # One that was asked for by its name is the caller's to judge.
        if fresh.state == "running" or is_named or not required:
            refreshed.append(fresh)
    return refreshed


def _choose(
    module: Any, host: Host, selector: Selector, listed: list[Container], *, running_only: bool
) -> list[Container]:
    try:
        chosen = select_containers(selector, listed, running_only=running_only)
    except ContainerError as error:
        raise host.explain(error) from error
    if not chosen and not selector.is_empty and not module.params["allow_empty"]:
        raise host.explain(
            ContainerError(
                f"the selection matches no container; {describe_running(listed)} (allow_empty=true accepts this)"
            )
        )
    return chosen


def list_candidates(module: Any, host: Host, selector: Selector, *, silence_ok: bool = False) -> list[Container]:
    """What SELECTOR chooses from: the containers of HOST, and the processes that it names. Of what is silent it warns; users are asked
    only where it may mean theirs.

    Raises ContainerError where all of them are silent, unless SILENCE_OK.
    """
    processes = [one for one in selector.patterns or () if one.startswith(PROCESS_PREFIX)]
    named = [host.find_process(one) for one in processes]
    if named and len(named) == len(selector.patterns or ()):
        return named
    try:
        listed = host.list_containers(users=selector.may_mean_users)
    except ContainerError as silence:
        _warn(module, host.warnings)
        if not silence_ok:
            raise
        module.warn(escape(f"no runtime of this host says what containers it has: {silence}"))
        return named
    for name, error in host.errors.items():
        module.warn(escape(f"containers of {name} are not looked at: {error}"))
    _warn(module, host.warnings)
    return listed + named


def run_for_users(
    module: Any, host: Host, containers: list[Container], function: Callable[[list[Container]], Any], what: str
) -> list[Any]:
    """Host.run_for_users, with its warnings told."""
    known = len(host.warnings)
    found = host.run_for_users(containers, function, what)
    _warn(module, host.warnings[known:])
    return found


def is_selecting(module: Any) -> bool:
    """Whether MODULE's options say which containers."""
    return any(module.params[name] is not None for name in ("containers", "labels", "query"))


def _warn(module: Any, warnings: list[str]) -> None:
    for warning in warnings:
        module.warn(escape(warning))
