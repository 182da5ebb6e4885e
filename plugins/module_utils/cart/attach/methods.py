# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods by which an image gets into containers.

fsmount: a detached mount, moved to its place (Linux 5.2). mknod: a mount of the image's block device by mount(2), for older
kernels. rslave: a mount on the host, in a folder that containers have as an rslave volume (volumes.py).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import mounting, volumes
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.attachments import NODE
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import create_mounts, open_loop_device
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN

METHODS = ("fsmount", "mknod", "rslave")
_MOUNT_FLAGS = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV


def choose_method(asked: str) -> tuple[str, str]:
    """Return the method for this kernel where ASKED may be auto, and the reason for it."""
    if asked != "auto":
        return asked, "it was asked for"
    try:
        os.close(syscalls.fsopen("tmpfs"))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        return "mknod", "the kernel has no detached mounts (Linux 5.2)"
    return "fsmount", "the kernel has detached mounts, which need nothing of the container"


def attach(
    method: str, targets: Sequence[Target], image: store.StoredImage, path: str
) -> Sequence[ContainerError | None]:
    """Mount IMAGE at PATH in each of TARGETS, which lack it and are locked; return for each of TARGETS the error, or None."""
    if not targets:
        return []
    return {"fsmount": _attach_by_fsmount, "mknod": _attach_by_mknod, "rslave": volumes.attach}[method](
        targets, image, path
    )


def foresee(method: str, targets: Sequence[Target], path: str) -> Sequence[ContainerError | None]:
    """Return for each of TARGETS the error that attaching at PATH by METHOD would have, or None; nothing is changed."""
    if method == "rslave":
        found = volumes.find_folders(targets, path)
        return [folder if isinstance(folder, ContainerError) else None for folder in found]
    host_devices = mounting.list_host_devices()
    return mounting.try_in_targets(
        targets, path, lambda _index, parent_fd, name: mounting.foresee(parent_fd, name, host_devices), "attach to"
    )


def _attach_by_fsmount(targets: Sequence[Target], image: store.StoredImage, path: str) -> list[ContainerError | None]:
    host_devices = mounting.list_host_devices()
    with create_mounts(image, len(targets)) as fds:

        def attach_here(index: int, parent_fd: int, name: str) -> None:
            mounting.attach(lambda target_fd: syscalls.move_mount(fds[index], target_fd), parent_fd, name, host_devices)

        return mounting.try_in_targets(targets, path, attach_here, "attach to", keep=fds)


def _attach_by_mknod(targets: Sequence[Target], image: store.StoredImage, path: str) -> list[ContainerError | None]:
    """Attach by a device node in a tmpfs that only the entering process sees: the node must never be in a container."""
    host_devices = mounting.list_host_devices()
    with open_loop_device(image) as device:
        number = os.stat(device.path).st_rdev
        node_fds: list[int] = []

        def make_node() -> None:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount_make_private("/")
            syscalls.mount("tmpfs", RUN, "tmpfs", 0)
            node_fds.append(os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            os.mknod(NODE, stat.S_IFBLK | 0o400, number, dir_fd=node_fds[0])

        def mount_on(target_fd: int) -> None:
            # mount(2) takes the place from the current folder, and the node from the root.
            os.fchdir(node_fds[0])
            os.chroot(".")
            os.fchdir(target_fd)
            syscalls.mount(f"/{NODE}", ".", image.format, _MOUNT_FLAGS)

        def attach_here(_index: int, parent_fd: int, name: str) -> None:
            mounting.attach(mount_on, parent_fd, name, host_devices)

        return mounting.try_in_targets(targets, path, attach_here, "attach to", prepare=make_node)
