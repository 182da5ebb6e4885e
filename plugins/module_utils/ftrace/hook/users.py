# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the containers, also stopped ones, that cannot start without the start hook's device or runtime, which they were created with."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.podman import Podman
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOST_PROGRAMS

_ENGINES = ("docker", "podman")
_ALWAYS = ("always", "unless-stopped", "on-failure")
_DEVICE = re.compile(rf"(?:--device=)?({re.escape(wiring.KIND)}=[A-Za-z0-9_.-]+)\Z")


@dataclass(frozen=True)
class User:
    """A container that was created with devices or a runtime of the start hook.

    NAME, ID, ENGINE, STATE: as its engine has them.
    BY: the names of the devices and of the runtime.
    RESTARTS: True if its engine is to start it again by itself.
    ERROR: why its engine could not start it last; '' if it could.
    """

    name: str
    id: str
    engine: str
    state: str
    by: tuple[str, ...]
    restarts: bool
    error: str

    @property
    def is_running(self) -> bool:
        """Return True if the container runs, or is paused."""
        return self.state in ("running", "paused")

    @property
    def is_hindered(self) -> bool:
        """Return True if its engine was to start the container, and failed over the devices or the runtime."""
        names = (*self.by, HOST_PROGRAMS)
        return self.restarts and not self.is_running and any(name in self.error for name in names)


def list_users(host: Host) -> list[User]:
    """Return the containers of root's Docker and Podman on HOST that were created with devices or a runtime of the start hook."""
    found = []
    for container in host.list_containers(users=False):
        if container.runtime not in _ENGINES:
            continue
        try:
            user = _find_user(container.runtime, _inspect(host, container))
        except ContainerGoneError:
            continue
        if user is not None:
            found.append(user)
    return found


def _inspect(host: Host, container: Container) -> dict[str, Any]:
    """Return the description of CONTAINER. Podman's service does not tell how a container was created, and its command does."""
    if container.runtime == "podman" and shutil.which("podman"):
        return Podman().inspect(container)
    return host.inspect(container)


def _find_user(engine: str, about: Mapping[str, Any]) -> User | None:
    chosen = about.get("HostConfig") or {}
    runtime = str(chosen.get("Runtime") or "")
    by = (*([runtime] if wiring.is_ours(runtime) else []), *_gen_devices(about))
    if not by:
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


def _gen_devices(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of our devices in the description ABOUT.

    Docker has them among the requests for devices. Podman has them in the command by which the container was created.
    """
    requests = (about.get("HostConfig") or {}).get("DeviceRequests") or ()
    words: Sequence[Any] = [name for request in requests for name in request.get("DeviceIDs") or ()]
    words = [*words, *((about.get("Config") or {}).get("CreateCommand") or ())]
    for word in words:
        match = _DEVICE.match(str(word))
        if match:
            yield match.group(1)
