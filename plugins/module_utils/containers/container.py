# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as the rest of the collection knows them, of any runtime."""

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
    """A problem with a container that the user has to know; the text names the container."""


class ContainerGoneError(ContainerError):
    """A container that ended, or was removed, while it was being looked at."""


@dataclass(frozen=True)
class Container:
    """A container as its runtime describes it.

    PID: its first process on the host, 0 when none runs. RUNTIME: the name that users know (docker, podman, containerd, ...).
    START_TICKS: when PID started (field 22 of /proc/PID/stat), where the runtime vouches for it.
    OWNER_UID: the user of the host whose runtime lists the container; None for root. The word of a user's runtime is believed only of processes
    in that user's own user and mount namespaces.
    MAY_MOUNT: false where the runtime vouches that no process of the container was given CAP_SYS_ADMIN.
    HOME: the HOME that the container gives to every command; None where each command has the home of its user.
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
        """Return twelve hexadecimal digits for the container: the first ones of an engine's id, or of a hash where an id may be any text."""
        if cgroups.ENGINE_ID.match(self.id):
            return self.id[:SHORT_ID_LENGTH]
        return hashlib.sha256(self.full_name.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_ID_LENGTH]

    @property
    def key(self) -> tuple[int | None, str, str]:
        """Return a key that no other container of the host has; the id alone may be any text, and a user may choose it."""
        return self.owner_uid, self.runtime, self.id

    @property
    def full_name(self) -> str:
        """Return the id with its prefix, as a selection takes it: RUNTIME:ID, or RUNTIME:UID/ID for a user's container."""
        owner = "" if self.owner_uid is None else f"{self.owner_uid}/"
        return f"{self.runtime}:{owner}{self.id}"

    @property
    def may_start(self) -> bool:
        """Return True if the container does not run now and its engine may start it again."""
        return self.state in _ENDED

    def as_result(self) -> dict[str, Any]:
        """Return the fields that modules report of the container."""
        names = ("id", "name", "state", "pid", "image", "runtime")
        return {**{name: getattr(self, name) for name in names}, "user": self.owner_uid}


def make_container(**fields: Any) -> Container:
    """Return a container of FIELDS, which come from a runtime and may be anything that JSON can hold.

    Raises ValueError where a field has the wrong form.
    """
    for name in ("id", "name", "state"):
        if not isinstance(fields[name], str) or not fields[name]:
            raise ValueError(f"{name} is no text")
    pid, image, labels = fields["pid"], fields["image"] or "", fields["labels"] or {}
    if isinstance(pid, bool) or not isinstance(pid, int) or not 0 <= pid <= _MAX_PID:
        raise ValueError("pid is no number of a process")
    if not isinstance(image, str):
        raise ValueError("image is no text")
    if not isinstance(labels, dict) or not all(isinstance(text, str) for pair in labels.items() for text in pair):
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
    """Return the container's first process, held open and verified to belong to the container.

    The pid that a runtime names may be out of date: the process may have died and its number gone to a process of the host.
    So the process must have started when the runtime says, or its cgroup must bear the container's id; and it must be in another
    mount namespace than the caller. Raises ContainerGoneError where it has ended, and ContainerError where it must not be touched.
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
    """Raise ContainerError unless PROCESS belongs to CONTAINER and may be touched; messages call the container NAME."""
    if not _is_of(process, container):
        raise ContainerGoneError(f"{name} has just ended: pid {container.pid} now belongs to another process")
    if process.namespace("mnt") == os.readlink("/proc/self/ns/mnt"):
        raise ContainerError(f"{name} shares the host's mount namespace: there is nothing to attach to")
    if container.owner_uid is not None and {process.read_owner(), process.read_mount_owner()} != {container.owner_uid}:
        # Both are checked: a user's process may have a user namespace of its own and yet a mount namespace of the host, as a service has.
        raise ContainerError(
            f"{name} of user {container.owner_uid} is left alone: its runtime says that it is process {container.pid}, which is not in a user"
            " namespace and a mount namespace of that user"
        )


def _is_of(process: Process, container: Container) -> bool:
    """Return True if PROCESS is CONTAINER's: its cgroup bears an engine's unique id, or the process started when the runtime says."""
    memberships = cgroups.parse_cgroup(process.read("cgroup"))
    if cgroups.ENGINE_ID.match(container.id) and any(container.id in membership.path for membership in memberships):
        return True
    return container.start_ticks is not None and process.read_start_ticks() == container.start_ticks
