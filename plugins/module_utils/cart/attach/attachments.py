# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attachments in containers, and their removal.

Attachments are read from the kernel: a mount in a container of an image of the store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import (
    expiry,
    methods,
    placement,
    tool_users,
    volumes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.expiry import Expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    MountsTooMany,
    Target,
    hold_container,
    open_targets,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_device
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time


@dataclass(frozen=True)
class Attachment:
    """An image that is mounted in a container.

    DEVICE: the mount's major:minor. FORMAT: its file system. METHOD: see methods.py. HAS_END: true if the attachment ends by itself (expiry.py).
    DEADLINE: when it ends, in seconds of CLOCK_BOOTTIME.
    """

    container: Container
    path: str
    image: str
    digest: str
    device: str
    format: str
    method: str
    has_end: bool = False
    deadline: float | None = field(default=None, compare=False)

    @property
    def place(self) -> tuple[str, str]:
        """Return the attachment's place: the container's id and the path in it."""
        return self.container.id, self.path

    @property
    def expires(self) -> float | None:
        """Return when the attachment ends by itself, in seconds since the epoch by the host's clock; None for never."""
        return None if self.deadline is None else expiry.find_time(self.deadline)

    def ending(self, ends: Mapping[tuple[str, str], float]) -> Attachment:
        """Return the attachment with the deadline that ENDS have for its place."""
        return replace(self, has_end=self.place in ends, deadline=ends.get(self.place))

    def as_result(self) -> dict[str, Any]:
        """Return the fields that modules report of an attachment."""
        return {
            "container": self.container.name,
            "id": self.container.id,
            "pid": self.container.pid,
            "path": self.path,
            "image": self.image,
            "digest": self.digest,
            "method": self.method,
            "expires": self.expires,
            "expires_at": None if self.expires is None else format_time(self.expires),
        }


@dataclass(frozen=True)
class Busy:
    """The behaviour of a detach where processes use the tools.

    CHOICE: fail, wait, kill or lazy. TIMEOUT_S: the longest time that wait and kill last.
    """

    choice: str = "fail"
    timeout_s: float = 30.0


def find_attachments(target: Target, finder: ImageFinder) -> list[Attachment]:
    """Return the attachments in TARGET, the lowest mount first."""
    return [
        Attachment(
            target.container,
            image_mount.mount.mount_point,
            image_mount.name,
            image_mount.digest,
            image_mount.mount.device,
            image_mount.mount.filesystem,
            methods.find_method(image_mount.mount),
        )
        for image_mount in finder.find(target.read_mounts(*finder.needles))
        # Other places only show the image by chance: the container has folders of the host, and one of them is another container's volume.
        if os.path.basename(image_mount.mount.mount_point).startswith("crashcart")
    ]


def find_tools(target: Target, finder: ImageFinder, image_name: str | None) -> Attachment | None:
    """Return the attachment that was made last in TARGET, of the image called IMAGE_NAME if that is given; None for none.

    The container may have bound the image to another path, where its programs do not work: such mounts do not count. Other mounts over the image
    do not matter to a command.
    """
    found = find_attachments(target, finder)
    first: dict[str, Attachment] = {}
    for attachment in found:
        first.setdefault(attachment.digest, attachment)
    usable = [
        attachment
        for attachment in found
        if image_name in (None, attachment.image) and attachment.path == _find_prefix(first[attachment.digest])
    ]
    return usable[-1] if usable else None


def _find_prefix(first: Attachment) -> str:
    """Return the path at which the image of FIRST, its lowest mount, works."""
    stored = store.find_image(first.image)
    return stored.prefix if stored is not None and stored.digest == first.digest else first.path


def take_away(targets: Sequence[Target], outcome: Outcome, found: Sequence[Attachment], busy: Busy) -> None:
    """Unmount FOUND from the locked TARGETS, and remove the empty folder; OUTCOME gets the failures.

    FOUND are attachments with one path, one for each mount.
    """
    path = found[0].path
    is_lazy = busy.choice == "lazy"
    from_volumes = {attachment.container.id for attachment in found if attachment.method == "rslave"}
    for target in targets:
        with outcome.serve(target, ended_ok=True):
            if busy.choice in ("wait", "kill"):
                tool_users.end_users(target, path, busy.timeout_s, kill=busy.choice == "kill")
            if target.id in from_volumes:
                volumes.detach([target], path, lazy=is_lazy)
    own = [attachment for attachment in found if attachment.method != "rslave"]
    others = [
        target
        for target in outcome.list_left(targets)
        if any(attachment.container.id == target.id for attachment in own)
    ]
    counts = [sum(attachment.container.id == target.id for attachment in own) for target in others]
    devices = {parse_device(attachment.device) for attachment in own}
    removable = placement.find_removable(others, path)

    def detach_here(index: int, parent_fd: int, name: str) -> None:
        placement.detach(counts[index], devices, lazy=is_lazy, parent_fd=parent_fd, name=name)
        if removable[index]:
            placement.remove_our_folder(parent_fd, name)

    outcome.fail_each(others, placement.try_in_targets(others, path, detach_here, "detach from"), ended_ok=True)


def end_attachment(ended: Expiry, *, due_only: bool = False) -> None:
    """Unmount an attachment lazily, also where processes still use it, and drop its expiry; with DUE_ONLY only if its time has come.

    Raises FleetError where that fails.
    """
    with open_targets([ended.container], ended_ok=True) as targets, hold_container(ended.container):
        # Before the lock was taken, another call may have given it more time, or detached it.
        if due_only and ended not in expiry.list_expiries():
            return
        outcome = Outcome()
        found = find_all(targets, outcome, path=ended.path, ended_ok=True)
        if found:
            take_away(targets, outcome, found, Busy("lazy"))
        outcome.check()
        expiry.drop([ended])


def find_all(
    targets: Sequence[Target],
    outcome: Outcome,
    *,
    path: str | None = None,
    image: str | None = None,
    ended_ok: bool = False,
) -> list[Attachment]:
    """Return the attachments in TARGETS (at PATH, of IMAGE); OUTCOME gets the targets in which they cannot be read."""
    finder = ImageFinder()
    ends = list_ends()
    found = []
    for target in targets:
        with outcome.serve(target, ended_ok=ended_ok):
            found += [
                attachment.ending(ends)
                for attachment in find_attachments(target, finder)
                if path in (None, attachment.path) and image in (None, attachment.image)
            ]
    return found


def list_ends() -> dict[tuple[str, str], float]:
    """Return the deadlines of all attachments that end by themselves, by their places."""
    return {ending.place: ending.deadline for ending in expiry.list_expiries()}


def list_attachments(containers: Sequence[Container]) -> tuple[list[Attachment], list[str]]:
    """Return the attachments in CONTAINERS, and a phrase for each container that has too many mounts to read.

    Containers that have ended, or whose mounts the caller may not read, count as empty.
    """
    found: list[Attachment] = []
    unknown = []
    for container in containers:
        outcome = Outcome()
        try:
            with open_targets([container], ended_ok=True) as targets:
                found += find_all(targets, outcome)
                outcome.raise_first()
        except MountsTooMany as error:
            unknown.append(str(error))
        except (ContainerError, OSError):
            continue
    return found, unknown
