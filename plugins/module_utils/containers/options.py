# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which every module selects containers, and the containers that they select."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Callable, Sequence

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import PROCESS_PREFIX, PROCESS_RUNTIME
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Who
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import (
    JMESPATH_IMPORT_ERROR,
    compile_query,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import (
    Selector,
    UnknownContainerError,
    describe_running,
    pair_labels,
    select_containers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Refuse
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

ARGUMENTS: dict[str, dict[str, Any]] = {
    "containers": {"type": "list", "elements": "str"},
    "labels": {"type": "dict"},
    "query": {"type": "str"},
    "docker_host": {"type": "str"},
    "allow_empty": {"type": "bool", "default": False},
}


def open_host(module: Any) -> Host:
    """Return the runtimes that MODULE's options mean."""
    return Host(module.params["docker_host"])


def parse_selector(module: Any, host: Host | None) -> Selector:
    """Return the selector for MODULE's options; a query and Podman's names need HOST.

    Raises ContainerError for options that cannot be meant.
    """
    patterns, labels, query = (module.params[name] for name in ("containers", "labels", "query"))
    if labels is not None and not labels:
        raise ContainerError("labels is empty: leave it out, or name a label")
    if query is not None and JMESPATH_IMPORT_ERROR:
        raise ContainerError(missing_required_lib("jmespath"))
    return Selector(
        # An empty list asks for nothing; it must never mean everything.
        patterns=None
        if patterns is None
        else tuple(host.find_meant(pattern.strip()) if host else pattern.strip() for pattern in patterns),
        labels=pair_labels(labels),
        query=compile_query(query, host.inspect) if host and query is not None else None,
        any_owner=module.params["docker_host"] is not None,
    )


def select(
    module: Any, host: Host, *, required: bool, missing_ok: bool = False, refuse: Refuse | None = None
) -> list[Container]:
    """Return the containers that MODULE's options select, with their current pids and states.

    With REQUIRED the options have to ask for something, and only running containers are meant. Without it, options that ask for nothing mean
    every container in any state. With MISSING_OK the named containers need not exist, and a warning names the missing ones.
    REFUSE(container, error) is called for a container that was asked for by its name and is removed meanwhile; without REFUSE that raises
    ContainerGoneError.
    """
    selector = parse_selector(module, host)
    if required and selector.is_empty:
        raise ContainerError(
            "say which containers: give containers, labels or query (containers='*' means all that run)"
        )
    listed = list_candidates(module, host, selector, absence_ok=missing_ok)
    missing_ok &= host.is_complete
    try:
        chosen = choose(module, selector, listed, running_only=required, missing_ok=missing_ok)
    except ContainerError as error:
        if isinstance(error, UnknownContainerError) and error.is_process:
            raise
        if selector.may_mean_users:
            raise host.explain(error) from error
        # Users are asked only for the message: the missing containers may be theirs.
        known = len(host.warnings)
        listed = [*host.list_containers(), *(container for container in listed if container.runtime == PROCESS_RUNTIME)]
        _warn(module, host.warnings[known:])
        try:
            chosen = choose(module, selector, listed, running_only=required, missing_ok=missing_ok)
        except ContainerError as left:
            raise host.explain(left) from left
    refreshed = []
    for container in chosen:
        is_named = selector.names(container)
        try:
            fresh = host.refresh(container)
        except ContainerGoneError as error:
            if is_named and not (missing_ok or module.params["allow_empty"]):
                if refuse is None:
                    raise
                refuse(container, error)
            continue  # nobody asked for it by name, and containers come and go
        # The caller judges a container that was asked for by its name.
        if fresh.state == "running" or is_named or not required:
            refreshed.append(fresh)
    return refreshed


def choose(
    module: Any,
    selector: Selector,
    listed: list[Container],
    *,
    running_only: bool,
    missing_ok: bool = False,
    none_ok: bool = False,
) -> list[Container]:
    """Return the containers among LISTED that SELECTOR names.

    Raises ContainerError for names that no container has and, unless NONE_OK, for a selection that matches none.
    With MISSING_OK a warning takes the place of the exception; with the option allow_empty nothing does.
    """
    allow_empty = module.params["allow_empty"]
    missing: list[UnknownContainerError] = []
    chosen = select_containers(
        selector, listed, running_only=running_only, refuse=missing.append if missing_ok or allow_empty else None
    )
    module.crashcart_not_found = [error.pattern for error in missing]
    if allow_empty or selector.is_empty:
        return chosen
    if missing:
        # With the same text on all hosts Ansible shows the warning once.
        _warn(
            module,
            [
                f"nothing to do for {', '.join(repr(error.pattern) for error in missing)}: no container here is called so"
            ],
        )
    elif not (chosen or none_ok):
        if not missing_ok:
            raise ContainerError(
                f"the selection matches no container; {describe_running(listed)} (allow_empty=true accepts this)"
            )
        _warn(module, ["nothing to do: the selection matches no container here"])
    return chosen


def list_candidates(
    module: Any, host: Host, selector: Selector, *, silence_ok: bool = False, absence_ok: bool = False
) -> list[Container]:
    """Return the containers from which SELECTOR chooses: those of HOST, and the processes that it names.

    Runtimes that do not answer cause warnings. Users are asked only where SELECTOR may mean their containers.
    Raises ContainerError where no runtime answers, unless SILENCE_OK; with ABSENCE_OK, or allow_empty, the host need not have any runtime.
    """
    processes = [pattern for pattern in selector.patterns or () if pattern.startswith(PROCESS_PREFIX)]
    named = []
    for pattern in processes:
        with suppress(ContainerError):  # choose() reports the missing process
            named.append(host.find_process(pattern))
    if processes and len(processes) == len(selector.patterns or ()):
        return named
    try:
        listed = host.list_containers(users=selector.may_mean_users)
    except ContainerError as silence:
        _warn(module, host.warnings)
        if not (silence_ok or (host.is_complete and (absence_ok or module.params["allow_empty"]))):
            raise
        module.warn(escape(f"no runtime of this host says what containers it has: {silence}"))
        return named
    for name, error in host.errors.items():
        module.warn(escape(f"containers of {name} are not looked at: {error}"))
    _warn(module, host.warnings)
    return listed + named


def describe_selection(module: Any, chosen: Sequence[Container | Who]) -> dict[str, list[str]]:
    """Return the part of every result that describes MODULE's selection: names of the CHOSEN containers, and patterns that no container has."""
    return {
        "selected": sorted(container.name for container in chosen),
        "not_found": [escape(pattern) for pattern in getattr(module, "crashcart_not_found", [])],
    }


def require_selection(module: Any, what: str) -> None:
    """Raise ContainerError where MODULE's options neither select containers nor say that everything is meant, or say both.

    WHAT describes everything, in words.
    """
    if module.params["everything"]:
        if is_selecting(module):
            raise ContainerError(
                "everything=true cannot be combined with a selection: leave out containers, labels and query, or everything"
            )
    elif not is_selecting(module):
        raise ContainerError(f"say which containers: give containers, labels or query (everything=true means {what})")


def refuse_everything(module: Any, states: str) -> None:
    """Raise ContainerError where MODULE's options say that everything is meant, which only STATES allow."""
    if module.params["everything"]:
        raise ContainerError(f"everything can be used with {states} only (containers='*' means all that run)")


def run_for_users(
    module: Any, host: Host, containers: list[Container], function: Callable[[list[Container]], Any], what: str
) -> list[Any]:
    """Return the result of Host.run_for_users, and pass its warnings to MODULE."""
    known = len(host.warnings)
    found = host.run_for_users(containers, function, what)
    _warn(module, host.warnings[known:])
    return found


def is_selecting(module: Any) -> bool:
    """Return True if MODULE's options say which containers are meant."""
    return any(module.params[name] is not None for name in ("containers", "labels", "query"))


def _warn(module: Any, warnings: list[str]) -> None:
    for warning in warnings:
        module.warn(escape(warning))
