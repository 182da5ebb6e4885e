# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the containers, also stopped ones, that cannot start without the start hook's device or runtime, which they were created with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring

_ENGINES = ("docker", "podman")
_ALWAYS = ("always", "unless-stopped", "on-failure")


@dataclass(frozen=True)
class User:
    """A container that was created with the device or a runtime of the start hook.

    NAME, ID, ENGINE, STATE: as its engine has them.
    BY: the name of the device or runtime.
    RESTARTS: True if its engine is to start it again by itself.
    ERROR: why its engine could not start it last; '' if it could.
    """

    name: str
    id: str
    engine: str
    state: str
    by: str
    restarts: bool
    error: str

    @property
    def is_hindered(self) -> bool:
        """Return True if its engine was to start it, and failed over the device or the runtime."""
        return self.restarts and self.state not in ("running", "paused") and bool(self.error)


def list_users(host: Host) -> list[User]:
    """Return these containers of root's Docker and Podman on HOST."""
    found = []
    for container in host.list_containers(users=False):
        if container.runtime not in _ENGINES:
            continue
        try:
            user = _find_user(container.runtime, host.inspect(container))
        except ContainerGoneError:
            continue
        if user is not None:
            found.append(user)
    return found


def _find_user(engine: str, about: Mapping[str, Any]) -> User | None:
    chosen = about.get("HostConfig") or {}
    by = _find_runtime(chosen) or _find_device(about)
    if by is None:
        return None
    state = about.get("State") or {}
    return User(
        name=str(about.get("Name", "")).lstrip("/"),
        id=str(about.get("Id", "")),
        engine=engine,
        state=str(state.get("Status", "")),
        by=by,
        restarts=(chosen.get("RestartPolicy") or {}).get("Name") in _ALWAYS,
        error=str(state.get("Error") or ""),
    )


def _find_runtime(chosen: Mapping[str, Any]) -> str | None:
    runtime = str(chosen.get("Runtime") or "")
    return runtime if wiring.is_ours(runtime) else None


def _find_device(about: Mapping[str, Any]) -> str | None:
    """Return the name of our device in the description ABOUT; None if it has none.

    Docker has it among the requests for devices. Podman has it in the command by which the container was created, or elsewhere by version.
    """
    text = json.dumps(about)
    start = text.find(wiring.KIND + "=")
    if start < 0:
        return None
    end = start + len(wiring.KIND) + 1
    while end < len(text) and (text[end].isalnum() or text[end] in "-_."):
        end += 1
    return text[start:end]
