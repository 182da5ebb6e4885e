# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts of the store's images: their creation, and the recognition of existing ones.

All mounts of an image share one read-only loop device with AUTOCLEAR, and so a superblock and its page cache. An
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
    """A mount of an image of the store, in any mount namespace.

    NAME, DIGEST: those of the image, from the path of its file.
    """

    mount: mounts.Mount
    name: str
    digest: str


class ImageFinder:
    """Recognises mounts of images by the loop devices that exist when the finder is made."""

    def __init__(self) -> None:
        devices = list(mounts.gen_loop_devices())
        found = ((device, store.parse_path(device.backing_file)) for device in devices)
        self._images = {device.device: image for device, image in found if image is not None}
        self.loop_devices = [device for device in devices if device.device in self._images]
        folders = {store.STORE, os.path.realpath(store.STORE)}
        # Texts of which a line of mountinfo has to hold one to be of an image: most lines need not be parsed.
        self.needles = (*(f" {device} " for device in self._images), *(f" - erofs {folder}/" for folder in folders))

    def find(self, found: list[mounts.Mount]) -> list[ImageMount]:
        """Return those of the mounts FOUND that are of an image, in their order."""
        named = ((mount, self.identify(mount)) for mount in found)
        return [ImageMount(mount, *image) for mount, image in named if image is not None]

    def identify(self, mount: mounts.Mount) -> tuple[str, str] | None:
        """Return name and digest of the image that MOUNT is of; None when MOUNT is of something else."""
        if mount.filesystem == "erofs" and mount.device.startswith("0:"):  # no block device
            return store.parse_path(mount.source)
        return self._images.get(mount.device)


@contextmanager
def open_loop_device(image: store.StoredImage) -> Iterator[mounts.LoopDevice]:
    """Yield the image's loop device, held open in the context; afterwards its mounts keep it."""
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
    """Yield COUNT detached read-only mounts of IMAGE as descriptors, which are closed after the context.

    Raises FleetError where the kernel has no detached mounts.
    """
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
    """Return a descriptor of a detached read-only mount of block device DEVICE with a file system of KIND.

    Raises FleetError where the kernel has no detached mounts.
    """
    try:
        return mounts.mount_create(kind, device, MOUNT_ATTRIBUTES)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise FleetError(NO_DETACHED_MOUNTS) from error
        raise


def _create_from_file(path: str, count: int) -> list[int]:
    """Return COUNT mounts of the EROFS file PATH as descriptors; none where the kernel wants a block device."""
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
    """Return another mount of the same superblock; None where the kernel cannot clone detached mounts (before Linux 6.15)."""
    try:
        return syscalls.open_tree(mount_fd, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
