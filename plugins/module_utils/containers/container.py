# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of the collection knows of a container, whatever runtime it is of."""

from __future__ import annotations

import hashlib
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
    """A container as its runtime tells it; PID is its first process on the host, 0 when none runs.

    RUNTIME is the name under which users know the runtime (docker, podman, containerd, ...). START_TICKS is when PID started, by
    field 22 of /proc/PID/stat, where the runtime vouches for that. OWNER_UID is the user of a rootless runtime: what such a
    runtime says is believed only of processes in a user namespace of that user.
    """

    id: str
    name: str
    state: str
    pid: int
    image: str
    labels: dict[str, str]
    runtime: str = "docker"
    start_ticks: int | None = None
    owner_uid: int | None = None

    @property
    def short_id(self) -> str:
        """The twelve digits by which engines print an id; twelve digits made of it where an id is any text."""
        if cgroups.ENGINE_ID.match(self.id):
            return self.id[:SHORT_ID_LENGTH]
        return hashlib.sha256(f"{self.runtime}:{self.id}".encode("utf-8", "surrogateescape")).hexdigest()[
            :SHORT_ID_LENGTH
        ]

    @property
    def may_start(self) -> bool:
        """Whether its engine may start it again, and it does not run now."""
        return self.state in _ENDED

    def as_result(self) -> dict[str, Any]:
        """What modules return of a container."""
        names = ("id", "name", "state", "pid", "image", "runtime")
        return {name: getattr(self, name) for name in names}


_ENDED = frozenset(("created", "exited", "restarting", "configured", "stopping", "stopped"))
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

    A runtime's word on a pid ages: the process may have died and its number gone to a process of the
    host. So the process that is held must have started when the runtime says, or stand in a cgroup that bears the
    container's id; and it must be outside the caller's mount namespace. Raises ContainerError when it does not.
    """
    name = f"container {container.name} ({container.short_id})"
    try:
        process = Process(container.pid)
    except ProcessGone as gone:
        raise ContainerGoneError(f"{name} has just ended") from gone
    try:
        if not _is_of(process, container):
            raise ContainerGoneError(f"{name} has just ended: pid {container.pid} now belongs to another process")
        if process.namespace("mnt") == os.readlink("/proc/self/ns/mnt"):
            raise ContainerError(f"{name} shares the host's mount namespace: there is nothing to attach to")
        if container.owner_uid not in (None, process.read_owner()):
            raise ContainerError(
                f"{name} of user {container.owner_uid} is said to be process {container.pid}, which is in no user namespace of"
                " that user: it is not touched"
            )
    except ProcessGone as gone:
        process.close()
        raise ContainerGoneError(f"{name} has just ended") from gone
    except BaseException:
        process.close()
        raise
    return process


def _is_of(process: Process, container: Container) -> bool:
    """Whether PROCESS is CONTAINER's: its cgroup bears an id that nothing else can have, or it started when the runtime says."""
    memberships = cgroups.parse_cgroup(process.read("cgroup"))
    if cgroups.ENGINE_ID.match(container.id) and any(container.id in one.path for one in memberships):
        return True
    return container.start_ticks is not None and process.read_start_ticks() == container.start_ticks
