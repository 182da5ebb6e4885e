# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attaching by a volume: a container with a folder of the host as an rslave volume sees what is mounted in that folder.

All containers that share the folder get the tools, and lose them, together. The mount is on the host, so it does not end with
the container. Source: mount_namespaces(7), propagation.
"""

from __future__ import annotations

import errno
import os
from typing import Iterable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder, create_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

_LOCK = "volumes"


def find_folder(inside: Iterable[mounts.Mount], on_host: Sequence[mounts.Mount], path: str) -> str | None:
    """Return the host's folder whose mounts propagate to PATH in the container with the mounts INSIDE; None where no such folder exists.

    The last of INSIDE that covers PATH counts; it has to be a slave of one of the mounts ON_HOST.
    """
    covering = [mount for mount in inside if _is_below(path, mount.mount_point)]
    if not covering or not covering[-1].master:
        return None
    volume = covering[-1]
    wanted = os.path.normpath(volume.root + "/" + os.path.relpath(path, volume.mount_point))
    for mount in on_host:
        if mount.peer_group == volume.master and _is_below(wanted, mount.root):
            return os.path.normpath(os.path.join(mount.mount_point, os.path.relpath(wanted, mount.root)))
    return None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def find_folders(targets: Sequence[Target], path: str) -> list[str | ContainerError]:
    """Return the host's folder for PATH of each of TARGETS, or the error for a target without such a volume."""
    on_host = mounts.read_mounts()
    folders: list[str | ContainerError] = []
    for target in targets:
        try:
            folder = find_folder(target.read_mounts(), on_host, path)
        except ProcessGone:
            folders.append(ContainerGoneError(f"container {target.name} has just ended"))
            continue
        except ContainerError as error:
            folders.append(error)
            continue
        folders.append(
            folder
            or ContainerError(
                f"container {target.name} has no rslave volume at {path}: start it with"
                f" --volume FOLDER:{path}:rslave, FOLDER being in a shared mount of the host, or use method fsmount"
            )
        )
    return folders


def attach(targets: Sequence[Target], image: store.StoredImage, path: str) -> list[ContainerError | None]:
    """Mount IMAGE in the host's folders that TARGETS have at PATH; return for each of TARGETS the error, or None."""
    with hold_lock(_LOCK):
        finder = ImageFinder()
        taken = {attached.mount.mount_point for attached in finder.find(mounts.read_mounts())}
        found = find_folders(targets, path)
        folders = sorted({folder for folder in found if isinstance(folder, str)} - taken)
        refused: dict[str, ContainerError] = {}
        with create_mounts(image, len(folders)) as fds:
            for fd, folder in zip(fds, folders):
                try:
                    _attach_at(fd, folder)
                except ContainerError as error:
                    refused[folder] = error
    return [folder if isinstance(folder, ContainerError) else refused.get(folder) for folder in found]


def _attach_at(mount_fd: int, folder: str) -> None:
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder_fd = mounts.open_beneath(root_fd, folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.listdir(folder_fd):
                raise OSError(errno.EEXIST, "it is not empty, and would be covered")
            syscalls.move_mount(mount_fd, folder_fd)
        finally:
            os.close(folder_fd)
    except OSError as error:
        raise ContainerError(f"cannot mount the image in the host's folder {folder}: {error.strerror}") from error
    finally:
        os.close(root_fd)


def detach(targets: Sequence[Target], path: str, *, lazy: bool) -> None:
    """Unmount images from the host's folders that TARGETS have at PATH.

    Raises ContainerError where an image cannot be unmounted.
    """
    # Inside, PATH now shows the image's mount, whose master is the mount on the host.
    finder = ImageFinder()
    inside = [
        attached.mount
        for target in targets
        for attached in finder.find(target.read_mounts())
        if attached.mount.mount_point == path
    ]
    masters = {mount.master for mount in inside if mount.master}
    _unmount([mount for mount in _list_host_mounts() if mount.peer_group in masters], lazy=lazy)


def list_folders() -> list[str]:
    """Return the host's folders on which images are mounted."""
    return [mount.mount_point for mount in _list_host_mounts()]


def detach_all(*, lazy: bool) -> None:
    """Unmount every image from the host's folders, whether or not containers still see it.

    Raises ContainerError where an image cannot be unmounted.
    """
    _unmount(_list_host_mounts(), lazy=lazy)


def _list_host_mounts() -> list[mounts.Mount]:
    return [image_mount.mount for image_mount in ImageFinder().find(mounts.read_mounts())]


def _unmount(found: Sequence[mounts.Mount], *, lazy: bool) -> None:
    """Try to unmount all of FOUND, and raise ContainerError for the failures."""
    failures = []
    with hold_lock(_LOCK):
        for mount in reversed(found):
            try:
                _unmount_one(mount, lazy=lazy)
            except ContainerError as error:
                failures.append(str(error))
    if failures:
        raise ContainerError("; ".join(failures))


def _unmount_one(mount: mounts.Mount, *, lazy: bool) -> None:
    if os.lstat(mount.mount_point).st_dev != mounts.parse_device(mount.device):
        raise ContainerError(
            f"something that is not ours is mounted over the tools in the host's folder {mount.mount_point}: unmount"
            " that first"
        )
    try:
        syscalls.umount2(mount.mount_point, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise ContainerError(
                f"the tools in the host's folder {mount.mount_point} are in use; busy=lazy takes them out of sight"
            ) from error
        if error.errno != errno.EINVAL:  # another process was faster
            raise
