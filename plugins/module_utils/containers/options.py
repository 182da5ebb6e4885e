# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which every module selects containers, and what they select."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import docker_engine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import (
    Selector,
    describe_running,
    select_containers,
)

ARGUMENTS: dict[str, dict[str, Any]] = {
    "containers": {"type": "list", "elements": "str"},
    "labels": {"type": "dict"},
    "query": {"type": "str"},
    "docker_host": {"type": "str"},
    "allow_empty": {"type": "bool", "default": False},
}


def open_engine(module: Any) -> docker_engine.DockerEngine:
    """The engine that MODULE's options name; the module fails when the SDK is missing."""
    if docker_engine.DOCKER_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("docker"), exception=docker_engine.DOCKER_IMPORT_ERROR)
    return docker_engine.DockerEngine(module.params["docker_host"])


def parse_selector(module: Any, engine: docker_engine.DockerEngine) -> Selector:
    """What MODULE's options ask for."""
    patterns, labels, query = (module.params[name] for name in ("containers", "labels", "query"))
    if labels is not None and not labels:
        raise ContainerError("labels is empty: leave it out, or name a label")
    if query is not None and docker_engine.JMESPATH_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("jmespath"), exception=docker_engine.JMESPATH_IMPORT_ERROR)
    return Selector(
        # An empty list asks for nothing; it must not come to mean everything.
        patterns=None if patterns is None else tuple(patterns),
        labels=tuple((name, None if value is None else str(value)) for name, value in (labels or {}).items()),
        query=docker_engine.compile_query(query, engine) if query is not None else None,
    )


def select(module: Any, engine: docker_engine.DockerEngine, *, required: bool) -> list[Container]:
    """The containers that MODULE's options select, with their pids and states of now.

    With REQUIRED something has to be asked for and only running containers are meant. Without it
    nothing asked for means every container in any state.
    """
    selector = parse_selector(module, engine)
    if required and selector.is_empty:
        raise ContainerError(
            "say which containers: give containers, labels or query (containers='*' means all that run)"
        )
    listed = engine.list_containers()
    chosen = select_containers(selector, listed, running_only=required)
    if not chosen and not selector.is_empty and not module.params["allow_empty"]:
        raise ContainerError(
            f"the selection matches no container; {describe_running(listed)} (allow_empty=true accepts this)"
        )
    refreshed = []
    for container in chosen:
        try:
            refreshed.append(engine.refresh(container))
        except ContainerGoneError:
            if selector.names(container):
                raise
            # Nobody asked for this one; containers come and go.
    return refreshed
