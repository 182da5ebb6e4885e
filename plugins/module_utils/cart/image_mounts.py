# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How an image of the store becomes a mount, and how a mount is known to be one.

Mounts go over one read-only loop device with AUTOCLEAR for each image, so that all share a superblock and its page cache. An
EROFS image is mounted from its file, without a loop device, where the kernel can (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE).
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls

MOUNT_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV

NO_DETACHED_MOUNTS = (
    "the kernel has no detached mounts (Linux 5.2), so only crashcart_attach works here, by method mknod; use 'docker exec' and"
    " the like with what it attaches"
)


@dataclass(frozen=True)
class ImageMount:
    """A mount of an image of the store, somewhere: NAME and DIGEST of the image come from the path of its file."""

    mount: mounts.Mount
    name: str
    digest: str


class ImageFinder:
    """Knows mounts of images, by the loop devices that there are when it is made."""

    def __init__(self) -> None:
        devices = list(mounts.gen_loop_devices())
        found = ((one, store.parse_path(one.backing_file)) for one in devices)
        self._images = {device.device: image for device, image in found if image is not None}
        self.loop_devices = [one for one in devices if one.device in self._images]
        folders = {store.STORE, os.path.realpath(store.STORE)}
        # What the line of such a mount in mountinfo has to hold: most lines need not be parsed.
        self.needles = (*(f" {device} " for device in self._images), *(f" - erofs {folder}/" for folder in folders))

    def find(self, found: list[mounts.Mount]) -> list[ImageMount]:
        """Those of the mounts FOUND that are of an image, in their order."""
        named = ((mount, self.identify(mount)) for mount in found)
        return [ImageMount(mount, *image) for mount, image in named if image is not None]

    def identify(self, mount: mounts.Mount) -> tuple[str, str] | None:
        """Name and digest of the image that MOUNT is of; None when it is of something else."""
        if mount.filesystem == "erofs" and mount.device.startswith("0:"):  # no block device
            return store.parse_path(mount.source)
        return self._images.get(mount.device)


@contextmanager
def open_loop_device(image: store.StoredImage) -> Iterator[mounts.LoopDevice]:
    """The image's loop device, held for as long as the context lasts (mounts keep it afterwards)."""
    with hold_lock("image-" + image.digest[:12]):
        image_fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            loop_fd, device = mounts.loop_open(image_fd)
        finally:
            os.close(image_fd)
    try:
        yield device
    finally:
        os.close(loop_fd)


@contextmanager
def create_mounts(image: store.StoredImage, count: int) -> Iterator[list[int]]:
    """COUNT detached read-only mounts of IMAGE, as descriptors that last as long as the context."""
    fds: list[int] = []
    try:
        if image.format == "erofs":
            fds += _create_from_file(image.path, count)
        if fds:
            yield fds
            return
        with open_loop_device(image) as device:
            for _number in range(count):
                fds.append(create_mount(device.path, image.format))
            yield fds
    finally:
        for fd in fds:
            os.close(fd)


def create_mount(device: str, kind: str) -> int:
    """A detached read-only mount of the image on block device DEVICE, a file system of KIND, as a descriptor."""
    try:
        return mounts.mount_create(kind, device, MOUNT_ATTRIBUTES)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise FleetError(NO_DETACHED_MOUNTS) from error
        raise


def _create_from_file(path: str, count: int) -> list[int]:
    """COUNT mounts of the EROFS file PATH; none where the kernel wants a block device."""
    try:
        fds = [mounts.mount_create("erofs", path, MOUNT_ATTRIBUTES)]
    except OSError as error:
        if error.errno == errno.ENOTBLK:
            return []
        raise
    with ExitStack() as undo:
        undo.callback(os.close, fds[0])
        for _number in range(1, count):
            fds.append(_clone_mount(fds[0]) or mounts.mount_create("erofs", path, MOUNT_ATTRIBUTES))
            undo.callback(os.close, fds[-1])
        undo.pop_all()
    return fds


def _clone_mount(mount_fd: int) -> int | None:
    """Another mount of the same superblock; None where the kernel clones no detached mounts (before Linux 6.15)."""
    try:
        return syscalls.open_tree(mount_fd, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
