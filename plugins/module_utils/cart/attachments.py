# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach a tool image to running containers, and take it away again.

The image is a read-only loop device with AUTOCLEAR; each container gets a detached mount of it, moved to its
place by a child that stands in the container's mount namespace. What is attached is read from the kernel:
a mount whose loop device has its file in the store.
"""

from __future__ import annotations

import errno
import os
import shlex
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    TIMEOUT_S,
    Target,
    hold_lock,
    hold_locks,
    open_targets,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    open_mount_namespace,
    run_in_mount_namespaces,
)

MOUNT_ATTRIBUTES = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


@dataclass(frozen=True)
class Attachment:
    """An image mounted in a container. IMAGE and DIGEST come from the loop device's file; FORMAT is its file system."""

    container: Container
    path: str
    image: str
    digest: str
    device: str
    format: str

    def as_result(self) -> dict[str, Any]:
        """What modules return of an attachment."""
        return {
            "container": self.container.name,
            "id": self.container.id,
            "pid": self.container.pid,
            "path": self.path,
            "image": self.image,
            "digest": self.digest,
            "method": "fsmount",
        }


def find_loop_devices() -> dict[str, tuple[str, str]]:
    """major:minor of every loop device of the store → name and digest of its image."""
    found = {}
    for device in mounts.gen_loop_devices():
        image = store.parse_path(device.backing_file)
        if image is not None:
            found[device.device] = image
    return found


def find_attachments(target: Target, loop_devices: dict[str, tuple[str, str]]) -> list[Attachment]:
    """What of ours is mounted in TARGET, the lowest mount first."""
    return [
        Attachment(target.container, mount.mount_point, *loop_devices[mount.device], mount.device, mount.filesystem)
        for mount in target.read_mounts(*(f" {device} " for device in loop_devices))
        if loop_devices and mount.device in loop_devices
    ]


@contextmanager
def open_image(image: store.StoredImage) -> Iterator[mounts.LoopDevice]:
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


def create_mount(device: str, kind: str) -> int:
    """A detached read-only mount of the image on block device DEVICE, a file system of KIND, as a descriptor."""
    return mounts.mount_create(kind, device, MOUNT_ATTRIBUTES)


def list_missing(targets: Sequence[Target], image: store.StoredImage, path: str) -> list[Target]:
    """The targets that lack IMAGE at PATH. Raises ContainerError where something else is mounted there."""
    loop_devices = find_loop_devices()
    missing = []
    for target in targets:
        here = [mount for mount in target.read_mounts(f" {path} ") if mount.mount_point == path]
        if not here:
            missing.append(target)
            continue
        found = loop_devices.get(here[-1].device)
        if found is None:
            raise ContainerError(
                f"container {target.container.name}: {path} already holds a mount of {here[-1].source}"
                f" ({here[-1].filesystem}) that is not ours; unmount it first"
            )
        if found[1] != image.digest:
            raise ContainerError(
                f"container {target.container.name}: another image ({found[0]}, {found[1][:12]}) is attached at {path};"
                " detach it first"
            )
    return missing


def attach(targets: Sequence[Target], image: store.StoredImage, path: str) -> None:
    """Mount IMAGE at PATH in every one of TARGETS (which lack it and are locked)."""
    with open_image(image) as device, ExitStack() as stack:
        fds = []
        for _target in targets:
            fds.append(create_mount(device.path, image.format))
            stack.callback(os.close, fds[-1])
        _run(targets, path, lambda index, parent_fd, name: _attach_here(fds[index], parent_fd, name), "attach to", fds)


def detach(targets: Sequence[Target], found: Sequence[Attachment], *, lazy: bool) -> None:
    """Unmount FOUND (all of one path, one for each mount) from the locked TARGETS, and remove the empty folder."""
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    counts = [sum(one.container.id == target.container.id for one in found) for target in targets]
    path = found[0].path
    devices = {os.makedev(*map(int, one.device.split(":"))) for one in found}

    def detach_here(index: int, parent_fd: int, name: str) -> None:
        _detach_here(counts[index], devices, flags, parent_fd, name)

    _run(targets, path, detach_here, "detach from")


def foresee(targets: Sequence[Target], path: str) -> None:
    """Raise ContainerError, as attach would, where nothing can be mounted at PATH in one of TARGETS."""
    _run(targets, path, lambda _index, parent_fd, name: _foresee(parent_fd, name), "attach to")


def _foresee(parent_fd: int, name: str) -> None:
    if _find_folder(parent_fd, name) or not os.fstatvfs(parent_fd).f_flag & os.ST_RDONLY:
        return
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def _attach_here(mount_fd: int, parent_fd: int, name: str) -> None:
    found = _find_folder(parent_fd, name)
    if not found:
        os.mkdir(name, 0o755, dir_fd=parent_fd)
    try:
        target_fd = mounts.open_beneath(parent_fd, name, os.O_PATH | os.O_DIRECTORY)
        syscalls.move_mount(mount_fd, target_fd)
        os.close(target_fd)
    except OSError:
        if not found:
            os.rmdir(name, dir_fd=parent_fd)
        raise


def _find_folder(parent_fd: int, name: str) -> bool:
    """Whether there is a folder to mount on; raises OSError where something else stands there."""
    try:
        fd = mounts.open_beneath(parent_fd, name, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OSError(errno.EEXIST, "what stands there is not a directory") from error
        raise
    try:
        if os.listdir(fd):
            raise OSError(errno.EEXIST, "the directory there is not empty")
    finally:
        os.close(fd)
    return True


def _detach_here(count: int, devices: set[int], flags: int, parent_fd: int, name: str) -> None:
    os.fchdir(parent_fd)
    for _mount in range(count):
        if os.stat(name, follow_symlinks=False).st_dev not in devices:
            raise OSError(errno.EPERM, "something that is not ours is mounted over the tools; unmount that first")
        syscalls.umount2(name, flags)
    _remove_folder(parent_fd, name)


def _remove_folder(parent_fd: int, name: str) -> None:
    # Only a folder that bears our name may be ours; somebody else's was there before and stays.
    if not name.startswith("crashcart"):
        return
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EROFS, errno.ENOTDIR):
            raise


def _run(
    targets: Sequence[Target],
    path: str,
    function: Callable[[int, int, str], Any],
    verb: str,
    keep: Sequence[int] = (),
) -> Any:
    """FUNCTION(index, descriptor of PATH's parent, PATH's name) inside each of TARGETS; raises if any failed."""
    parent, name = os.path.split(path)
    with ExitStack() as stack:
        namespaces: list[MountNamespace] = []
        for target in targets:
            namespace = open_mount_namespace(target.process)
            stack.callback(namespace.close)
            namespaces.append(namespace)

        def enter(index: int) -> Any:
            parent_fd = mounts.open_beneath(namespaces[index].root_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return function(index, parent_fd, name)
            finally:
                os.close(parent_fd)

        outcomes = run_in_mount_namespaces(namespaces, enter, keep, TIMEOUT_S)
    failures = [
        f"cannot {verb} container {target.container.name} at {path}: {_explain(outcome, target, path)}"
        for target, outcome in zip(targets, outcomes)
        if isinstance(outcome, OSError)
    ]
    if failures:
        raise ContainerError("; ".join(failures))
    return outcomes


def _explain(error: OSError, target: Target, path: str) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.EBUSY:
        users = find_users(target, path)
        names = ", ".join(users) if users else "no process that can be seen (a mount inside it?)"
        return f"the tools are in use by {names}; end them, or unmount lazily with busy=lazy"
    if error.errno == errno.EROFS:
        return f"{text}: give a path on a tmpfs, or over an empty directory that is there"
    if error.errno == errno.ELOOP:
        return f"{text}: a symbolic link stands in the way, and none is followed"
    return text


def find_users(target: Target, path: str) -> list[str]:
    """Processes in TARGET's mount namespace that run from PATH, stand in it or hold it open, as 'name (pid N)'."""
    namespace = target.process.namespace("mnt")
    devices = {mount.device for mount in target.read_mounts() if mount.mount_point == path}
    users = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/mnt") == namespace and _uses(entry, path, devices):
                with open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file:
                    users.append(f"{file.read().strip()!r} (pid {entry})")
        except OSError:
            continue  # it ended while we looked
    return users


def _uses(pid: str, path: str, devices: set[str]) -> bool:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
    for link in links:
        try:
            if (os.readlink(link) + "/").startswith(path + "/"):
                return True
        except OSError:
            continue  # closed meanwhile
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split()
            major, _colon, minor = fields[3].partition(":")
            if f"{int(major, 16)}:{int(minor, 16)}" in devices:
                return True
    return False


@dataclass(frozen=True)
class Change:
    """What was attached before a call, and what is after it (or would be, in check mode)."""

    before: list[Attachment]
    after: list[Attachment]


def ensure_attached(containers: Sequence[Container], image_name: str, path: str | None, *, check_mode: bool) -> Change:
    """See to it that the image called IMAGE_NAME is mounted in each of CONTAINERS at PATH (None: its prefix)."""
    image = store.get_image(image_name)
    store.check_manifest(image.manifest)
    path = os.path.normpath(path or image.prefix)
    if path != image.prefix:
        raise ContainerError(f"the programs of image {image.name!r} work at {image.prefix} only, not at {path}")
    for container in containers:
        check_running(container)
    with open_targets(containers) as targets:
        missing = list_missing(targets, image, path)
        before = _find_all(targets, path=path)
        if not missing:
            return Change(before, before)
        if check_mode:
            foresee(missing, path)
        else:
            with hold_locks([target.container for target in missing]):
                still_missing = list_missing(missing, image, path)
                if still_missing:
                    attach(still_missing, image, path)
        attached = [Attachment(t.container, path, image.name, image.digest, "", image.format) for t in missing]
        return Change(before, _in_order(containers, before + attached))


def _in_order(containers: Sequence[Container], found: Sequence[Attachment]) -> list[Attachment]:
    by_id = {attachment.container.id: attachment for attachment in found}
    return [by_id[container.id] for container in containers]


def ensure_detached(
    containers: Sequence[Container], image_name: str | None, path: str | None, *, lazy: bool, check_mode: bool
) -> Change:
    """See to it that no image (of that name, at PATH) is mounted in CONTAINERS."""
    alive = [container for container in containers if container.pid > 1]
    with open_targets(alive, ended_ok=True) as targets:  # nothing is left to detach from those
        before = _find_all(targets, path=path, image=image_name)
        if check_mode or not before:
            return Change(before, [])
        with hold_locks([attachment.container for attachment in before]):
            present = _find_all(targets, path=path, image=image_name)
            for place in sorted({attachment.path for attachment in present}):
                here = [attachment for attachment in present if attachment.path == place]
                ids = {attachment.container.id for attachment in here}
                detach([target for target in targets if target.container.id in ids], here, lazy=lazy)
        return Change(before, _find_all(targets, path=path, image=image_name))


def _find_all(targets: Sequence[Target], *, path: str | None = None, image: str | None = None) -> list[Attachment]:
    loop_devices = find_loop_devices()
    return [
        attachment
        for target in targets
        for attachment in find_attachments(target, loop_devices)
        if path in (None, attachment.path) and image in (None, attachment.image)
    ]


def describe(found: Sequence[Attachment]) -> dict[str, str]:
    """Attachments for a diff: container and path → image and the beginning of its digest."""
    return {f"{one.container.name}:{one.path}": f"{one.image} {one.digest[:12]}" for one in found}


def shell_line(attachment: Attachment, host: Host) -> str:
    """The line for the host's terminal that gives an interactive shell."""
    settings = f"{attachment.path}/etc/crashcart.bashrc"
    # The container's own settings of its loader would hit the shell before it reads ours.
    variables = ["LD_LIBRARY_PATH=", "LD_PRELOAD="]
    shell = [f"{attachment.path}/bin/bash", "--rcfile", settings, "-i"]
    if "bash" not in _list_tools(attachment):
        variables.append(f"ENV={settings}")
        shell = [f"{attachment.path}/bin/sh", "-i"]
    return shlex.join(host.list_shell_words(attachment.container, variables, shell))


def _list_tools(attachment: Attachment) -> Iterable[str]:
    """Names of the attached image's tools; where the store has another one by now, those that most images have."""
    image = store.find_image(attachment.image)
    if image is None or image.digest != attachment.digest:
        return ("bash",)
    return image.manifest.get("tools") or ("bash",)


def list_attachments(containers: Sequence[Container]) -> list[Attachment]:
    """What is attached in CONTAINERS; those that are gone, or whose mounts the caller may not read, have nothing to show."""
    loop_devices = find_loop_devices()
    found = []
    for container in containers:
        try:
            with open_targets([container]) as (target,):
                found += find_attachments(target, loop_devices)
        except (ContainerError, PermissionError):
            continue
    return found
