# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the containers, also stopped ones, that cannot start without the start hook's device or runtime, which they were created with."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.podman import Podman
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_PROGRAM, HOST_PROGRAMS

_ENGINES = ("docker", "podman")
_PODMAN_STORE = "/var/lib/containers/storage"
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


def list_users(host: Host) -> tuple[list[User], list[str]]:
    """Return the containers of root's Docker and Podman on HOST that were created with devices or a runtime of the start hook.

    The second part says of which containers that is not known, and why.
    """
    found: list[User] = []
    troubles: list[str] = []
    for container in _list_containers(host, troubles):
        try:
            user = _find_user(container.runtime, _inspect(host, container))
        except ContainerGoneError:
            continue
        except ContainerError as error:
            troubles.append(f"container {container.name}: {error}")
            continue
        if user is not None:
            found.append(user)
    return found, troubles


def _list_containers(host: Host, troubles: list[str]) -> list[Container]:
    """Return root's containers of HOST, whose engines know devices and runtimes; add to TROUBLES what does not answer."""
    listed: list[Container] = []
    try:
        listed += host.list_containers(users=False)
    except ContainerError as error:
        troubles.append(str(error))
    if not troubles and not host.is_complete:
        troubles.append(host.describe_silence())
    has_podman = any(container.runtime == "podman" for container in listed) or "podman" in host.errors
    # Nobody may have run Podman since the boot, and then it has no state in /run. What it has in /var is its containers all the same.
    if not has_podman and os.path.isdir(_PODMAN_STORE) and shutil.which("podman"):
        try:
            listed += Podman().list_containers()
        except ContainerError as error:
            troubles.append(str(error))
    return [container for container in listed if container.runtime in _ENGINES]


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

    Docker has them among the requests for devices. Podman has them in the command by which the container was created, or, where that was by
    its API, only their hooks in what it has given to the runtime.
    """
    requests = (about.get("HostConfig") or {}).get("DeviceRequests") or ()
    words: Sequence[Any] = [name for request in requests for name in request.get("DeviceIDs") or ()]
    command = (about.get("Config") or {}).get("CreateCommand") or ()
    specification = about.get("OCIConfigPath")
    if specification and not command:
        yield from _gen_devices_of_hooks(str(specification))
    for word in (*words, *command):
        match = _DEVICE.match(str(word))
        if match:
            yield match.group(1)


def _gen_devices_of_hooks(path: str) -> Iterator[str]:
    """Yield the names of our devices whose hooks are in the runtime's specification at PATH, and are not there for an annotation."""
    try:
        with open(path, "rb") as file:
            document = json.load(file)
        hooks = (document.get("hooks") or {}).get("createRuntime") or ()
        profiles = [hook["args"][2] for hook in hooks if hook.get("path") == HOOK_PROGRAM]
        by_annotation = (document.get("annotations") or {}).get(wiring.ANNOTATION)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
        return  # it is there only once the container has been started
    yield from (f"{wiring.KIND}={profile}" for profile in profiles if profile != by_annotation)
