# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attachments in containers; attach.py makes them, and removal.py takes them away.

Attachments are read from the kernel: a mount in a container of an image of the store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    MountsTooMany,
    Target,
    open_targets,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

NODE = "crashcart-image"  # the device node that the method mknod mounts, and so the source of its mounts


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
            _find_method(image_mount.mount),
        )
        for image_mount in finder.find(target.read_mounts(*finder.needles))
        # Other places only show the image by chance: the container has folders of the host, and one of them is another container's volume.
        if os.path.basename(image_mount.mount.mount_point).startswith("crashcart")
    ]


def _find_method(mount: Mount) -> str:
    """Return the method by which the image's MOUNT in a container was made."""
    if mount.master:
        return "rslave"
    return "mknod" if mount.source == f"/{NODE}" else "fsmount"


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
