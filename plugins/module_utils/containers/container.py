# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the rest of the collection knows of a container, whatever runtime it is of."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
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
    field 22 of /proc/PID/stat, where the runtime vouches for that. OWNER_UID is the user of the host whose runtime says all this,
    None for root: what a user's says is believed only of processes whose user and mount namespaces are that user's. MAY_MOUNT is false
    where the runtime vouches that no process of it was given CAP_SYS_ADMIN. HOME is what it gives every command as such, None where that is
    the user's.
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
    may_mount: bool = True
    home: str | None = None

    @property
    def short_id(self) -> str:
        """The twelve digits by which engines print an id; twelve digits made of it where an id is any text."""
        if cgroups.ENGINE_ID.match(self.id):
            return self.id[:SHORT_ID_LENGTH]
        return hashlib.sha256(self.full_name.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_ID_LENGTH]

    @property
    def key(self) -> tuple[int | None, str, str]:
        """What no other container of the host has: an id may be any text, and a user may take whichever."""
        return self.owner_uid, self.runtime, self.id

    @property
    def full_name(self) -> str:
        """Its id with all that goes before it in a selection: RUNTIME:ID, and RUNTIME:UID/ID for a user's."""
        owner = "" if self.owner_uid is None else f"{self.owner_uid}/"
        return f"{self.runtime}:{owner}{self.id}"

    @property
    def may_start(self) -> bool:
        """Whether its engine may start it again, and it does not run now."""
        return self.state in _ENDED

    def as_result(self) -> dict[str, Any]:
        """What modules return of a container."""
        names = ("id", "name", "state", "pid", "image", "runtime")
        return {**{name: getattr(self, name) for name in names}, "user": self.owner_uid}


def make_container(**fields: Any) -> Container:
    """A container of FIELDS by its runtime's words, which may be anything that JSON can hold; raises ValueError where they make none."""
    for name in ("id", "name", "state"):
        if not isinstance(fields[name], str) or not fields[name]:
            raise ValueError(f"{name} is no text")
    pid, image, labels = fields["pid"], fields["image"] or "", fields["labels"] or {}
    if isinstance(pid, bool) or not isinstance(pid, int) or not 0 <= pid <= _MAX_PID:
        raise ValueError("pid is no number of a process")
    if not isinstance(image, str):
        raise ValueError("image is no text")
    if not isinstance(labels, dict) or not all(isinstance(one, str) for pair in labels.items() for one in pair):
        raise ValueError("labels are no map of texts")
    return Container(**{**fields, "image": image, "labels": labels})


_MAX_PID = 1 << 22
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
    with ExitStack() as undo:
        undo.callback(process.close)
        try:
            _check_process(process, container, name)
        except ProcessGone as gone:
            raise ContainerGoneError(f"{name} has just ended") from gone
        undo.pop_all()
    return process


def _check_process(process: Process, container: Container, name: str) -> None:
    """Raise ContainerError where PROCESS is not CONTAINER's, of which messages say NAME, or not one to be touched."""
    if not _is_of(process, container):
        raise ContainerGoneError(f"{name} has just ended: pid {container.pid} now belongs to another process")
    if process.namespace("mnt") == os.readlink("/proc/self/ns/mnt"):
        raise ContainerError(f"{name} shares the host's mount namespace: there is nothing to attach to")
    if container.owner_uid is not None and {process.read_owner(), process.read_mount_owner()} != {container.owner_uid}:
        # A user's process may be in a mount namespace of the host's, as a service's is, and in a user namespace of its own.
        raise ContainerError(
            f"{name} of user {container.owner_uid} is said to be process {container.pid}, which is in no user namespace, or in"
            " no mount namespace, of that user: it is not touched"
        )


def _is_of(process: Process, container: Container) -> bool:
    """Whether PROCESS is CONTAINER's: its cgroup bears an id that nothing else can have, or it started when the runtime says."""
    memberships = cgroups.parse_cgroup(process.read("cgroup"))
    if cgroups.ENGINE_ID.match(container.id) and any(container.id in one.path for one in memberships):
        return True
    return container.start_ticks is not None and process.read_start_ticks() == container.start_ticks
