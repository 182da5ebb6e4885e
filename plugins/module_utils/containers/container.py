# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of the collection knows of a container, whatever runtime it is of."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

SHORT_ID_LENGTH = 12


class ContainerError(FleetError):
    """Something about a container that the user has to know; the text names it."""


class ContainerGoneError(ContainerError):
    """A container ended, or was removed, between two looks at it."""


@dataclass(frozen=True)
class Container:
    """A container as its engine lists it; PID is its first process on the host, 0 when none runs."""

    id: str
    name: str
    state: str
    pid: int
    image: str
    labels: dict[str, str]

    @property
    def short_id(self) -> str:
        """The twelve digits by which engines print an id."""
        return self.id[:SHORT_ID_LENGTH]

    def as_result(self) -> dict[str, Any]:
        """What modules return of a container."""
        return {"id": self.id, "name": self.name, "state": self.state, "pid": self.pid, "image": self.image}


_HINTS = {
    "paused": "unpause it first",
    "exited": "start it first",
    "created": "start it first",
    "restarting": "wait until it stays up, or stop its restart policy",
    "removing": "it is being removed",
    "dead": "it could not be removed by its engine",
}


def check_running(container: Container) -> None:
    """Raise ContainerError unless CONTAINER runs."""
    if container.state != "running" or container.pid <= 1:
        hint = _HINTS.get(container.state, "it has no process")
        raise ContainerError(f"container {container.name} ({container.short_id}) is {container.state}: {hint}")


def open_process(container: Container) -> Process:
    """The container's first process, held and verified to belong to it.

    The engine's word on a pid ages: the process may have died and its number gone to a process of the
    host. So the process that is held must stand in the container's cgroup, which bears the container's
    id, and outside the caller's mount namespace. Raises ContainerError when it does not.
    """
    name = f"container {container.name} ({container.short_id})"
    try:
        process = Process(container.pid)
    except ProcessGone as gone:
        raise ContainerGoneError(f"{name} has just ended") from gone
    try:
        memberships = cgroups.parse_cgroup(process.read("cgroup"))
        if not any(container.id in membership.path for membership in memberships):
            raise ContainerGoneError(f"{name} has just ended: pid {container.pid} now belongs to another process")
        if process.namespace("mnt") == os.readlink("/proc/self/ns/mnt"):
            raise ContainerError(f"{name} shares the host's mount namespace: there is nothing to attach to")
    except ProcessGone as gone:
        process.close()
        raise ContainerGoneError(f"{name} has just ended") from gone
    except BaseException:
        process.close()
        raise
    return process
