# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Single files of a container's trace instance, shown inside the container in a read-only tmpfs at a chosen folder.

The files are detached mounts of single files of tracefs (open_tree), read-only but for the marker, so they give no access to the
instance's settings. They belong to the user of the container's first process. The container's mount table tells which files are shown: the
tmpfs has the name of the instance. Source: ftrace.rst, open_tree(2), mount_setattr(2).
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Iterable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import mounting
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, undoing
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    MountsTooMany,
    Patience,
    Target,
    hold_container,
    open_targets,
    serve_in_turns,
    try_lock,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX

# File to mode. trace_pipe gives each event to one reader only: a fetch does not bring the events that the container has read.
FILES = {"trace": 0o400, "trace_pipe": 0o400, "trace_marker": 0o200}
_LABEL = re.compile(INSTANCE_PREFIX + r"[0-9a-f]{12}\S*\Z")
NEEDLES = (" tracefs ", " tmpfs crashcart-")  # lines of mountinfo for exposures hold one of these
_SAFE = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
_DENIED = frozenset({"/", "/dev", "/proc", "/sys"})


@dataclass(frozen=True)
class Exposure:
    """FILES of a trace instance, shown in the folder PATH of a container.

    INSTANCE: the instance's name. DEVICE: that of the tmpfs on the folder.
    """

    instance: str
    path: str
    files: tuple[str, ...]
    device: str = ""

    def is_as(self, other: Exposure) -> bool:
        """Return True if OTHER shows the same files of the same instance in the same folder."""
        return (self.instance, self.path, sorted(self.files)) == (other.instance, other.path, sorted(other.files))


def check_wish(path: str, files: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return PATH, normalised, and FILES without duplicates; raises ContainerError for a path or files that cannot be exposed anywhere."""
    unknown = sorted(set(files) - set(FILES))
    if unknown or not files:
        raise ContainerError(
            f"expose: files are some of {', '.join(FILES)}, not {', '.join(unknown) or 'none of them'}"
        )
    normal = os.path.normpath("/" + path.strip("/"))  # normpath would keep two leading slashes
    if not path.startswith("/") or normal in _DENIED or "\0" in path:
        raise ContainerError(
            f"expose: {path!r} is no folder to show files in: name one of its own, as /dev/crashcart-trace"
        )
    return normal, tuple(dict.fromkeys(files))


def is_exposure(mount: mounts.Mount) -> bool:
    """Return True if MOUNT is a folder of exposed files."""
    return mount.filesystem == "tmpfs" and mount.root == "/" and _LABEL.match(mount.source) is not None


def find_exposures(found: Sequence[mounts.Mount]) -> list[Exposure]:
    """Return the exposures among the mounts FOUND of one mount namespace."""
    exposures = []
    for folder in filter(is_exposure, found):
        inside = {os.path.basename(mount.mount_point) for mount in found if mount.parent_id == folder.mount_id}
        files = tuple(name for name in FILES if name in inside)
        exposures.append(Exposure(folder.source, folder.mount_point, files, folder.device))
    return exposures


def foresee(containers: Sequence[Container], outcome: Outcome, path: str) -> None:
    """Note in OUTCOME the CONTAINERS in which nothing can be exposed at PATH, and change nothing."""
    with open_targets(containers, refuse=outcome.fail) as targets:
        free = []
        for target in targets:
            with outcome.serve(target):
                if not any(exposure.path == path for exposure in _read_exposures(target)):
                    _check_free(target, path)
                    free.append(target)
        host_devices = mounting.list_host_devices()
        errors = mounting.try_in_targets(
            free,
            path,
            lambda _index, parent_fd, name: mounting.foresee(parent_fd, name, host_devices),
            "expose a trace in",
        )
        outcome.fail_each(free, errors)


def _read_exposures(target: Target) -> list[Exposure]:
    return find_exposures(target.read_mounts(*NEEDLES))


def _check_free(target: Target, path: str) -> None:
    here = [mount for mount in target.read_mounts(f" {path} ") if mount.mount_point == path]
    if here:
        raise ContainerError(
            f"container {target.name}: {path} already holds a mount of {here[-1].source}"
            f" ({here[-1].filesystem}) that is not ours; choose another folder"
        )


def ensure_exposed(
    container: Container, name: str, root: str, path: str | None, files: Sequence[str], *, check_mode: bool
) -> bool:
    """Make the instance NAME show FILES in its CONTAINER at PATH and nowhere else (PATH None: show nothing), and return True on a change.

    ROOT is the mount point of tracefs. In check mode nothing is changed, and a change that would be made counts. A change that fails is undone.
    """
    try:
        with open_targets([container]) as (target,):
            wanted = [Exposure(name, path, tuple(files))] if path else []
            present = _read_exposures(target)
            superfluous = [exposure for exposure in present if not any(exposure.is_as(other) for other in wanted)]
            missing = [exposure for exposure in wanted if not any(exposure.is_as(other) for other in present)]
            if not check_mode and (superfluous or missing):
                _change(target, superfluous, missing, os.path.join(root, "instances", name))
            return bool(superfluous or missing)
    except (ContainerGoneError, MountsTooMany):
        if path:
            raise
        # The end of the container removed all exposures. And no container may block its traces by having too many mounts.
        return False


def _change(target: Target, superfluous: Sequence[Exposure], missing: Sequence[Exposure], folder: str) -> None:
    """Make TARGET show the MISSING exposures of the instance in FOLDER, and no SUPERFLUOUS ones; on failure restore what it showed."""
    with hold_container(target.container), undoing() as undo:
        for exposure in superfluous:
            _remove(target, exposure)
            if exposure.instance == os.path.basename(folder):
                undo.callback(_expose, target, exposure, folder)
        for exposure in missing:
            _check_free(target, exposure.path)
            _expose(target, exposure, folder)
        undo.pop_all()


def remove(containers: Iterable[Container], outcome: Outcome, gone: Iterable[str] | None = None) -> list[str]:
    """Take exposed files of the instances in GONE (None: of all instances) out of CONTAINERS; return the folders they were in, as phrases.

    OUTCOME gets the containers in which that fails.
    """
    names = None if gone is None else set(gone)
    phrases = []
    alive = [container for container in containers if container.pid > 1]

    def conceal(target: Target) -> None:
        with outcome.serve(target, ended_ok=True):
            try:
                shown = _read_exposures(target)
            except MountsTooMany:
                with outcome.complaining():  # its traces are removed nevertheless
                    raise
                return
            found = [exposure for exposure in shown if names is None or exposure.instance in names]
            if found:
                with try_lock(f"container-{target.container.short_id}"):
                    for exposure in found:
                        _remove(target, exposure)
                        phrases.append(f"{exposure.path} in container {target.name}")

    with open_targets(alive, ended_ok=True, refused_ok=True) as targets:
        serve_in_turns(targets, conceal, outcome.fail, Patience())
    return phrases


def list_exposed(containers: Iterable[Container]) -> dict[str, Exposure]:
    """Return the exposures in CONTAINERS, by the name of the instance."""
    alive = [container for container in containers if container.pid > 1]
    with open_targets(alive, ended_ok=True, refused_ok=True) as targets:
        exposures: dict[str, Exposure] = {}
        for target in targets:
            with suppress(ContainerError, ProcessGone):
                exposures.update((exposure.instance, exposure) for exposure in _read_exposures(target))
        return exposures


def _remove(target: Target, exposure: Exposure) -> None:
    removable = mounting.find_removable([target], exposure.path)[0]
    device = mounts.parse_device(exposure.device)

    def detach(_index: int, parent_fd: int, name: str) -> None:
        # Lazily, as a process of the container may have a file open.
        mounting.detach(1, {device}, lazy=True, parent_fd=parent_fd, name=name)
        if removable:
            mounting.remove_our_folder(parent_fd, name)

    mounting.run_in_target(target, exposure.path, detach, "take an exposed trace out of")


def _expose(target: Target, wish: Exposure, folder: str) -> None:
    uid, gid = _find_user(target)
    host_devices = mounting.list_host_devices()
    with ExitStack() as stack:
        cover_fd = _create_cover(wish)
        stack.callback(os.close, cover_fd)
        fds = {}
        for name in wish.files:
            fds[name] = _clone_file(os.path.join(folder, name), FILES[name], uid, gid)
            stack.callback(os.close, fds[name])

        def mount_on(target_fd: int) -> None:
            syscalls.move_mount(cover_fd, target_fd)
            try:
                for name, fd in fds.items():
                    place_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cover_fd)
                    syscalls.move_mount(fd, place_fd)
                    os.close(place_fd)
                syscalls.mount_setattr(cover_fd, give=syscalls.MOUNT_ATTR_RDONLY)
            except OSError:
                os.fchdir(cover_fd)
                with suppress(OSError):
                    syscalls.umount2(".", syscalls.MNT_DETACH)
                raise

        mounting.run_in_target(
            target,
            wish.path,
            lambda _index, parent_fd, name: mounting.attach(mount_on, parent_fd, name, host_devices),
            "expose a trace in",
            keep=[cover_fd, *fds.values()],
        )


def _find_user(target: Target) -> tuple[int, int]:
    """Return user and group of the container's first process, in the host's numbers."""
    status = target.process.read("status").decode("utf-8", "replace")
    numbers = {line.partition(":")[0]: line.split()[1:] for line in status.splitlines()}
    return int(numbers["Uid"][3]), int(numbers["Gid"][3])


def _create_cover(wish: Exposure) -> int:
    """Return a detached tmpfs with the name of WISH's instance, and an empty file for each of its files."""
    context = syscalls.fsopen("tmpfs")
    try:
        for key, value in (("source", wish.instance), ("size", "4k"), ("nr_inodes", "16"), ("mode", "0555")):
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        fd = syscalls.fsmount(context, _SAFE)
    finally:
        os.close(context)
    for name in wish.files:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o000, dir_fd=fd))
    return fd


def _clone_file(path: str, mode: int, uid: int, gid: int) -> int:
    """Return a detached mount of the file PATH alone, which is made UID's and GID's, with MODE."""
    os.chown(path, uid, gid, follow_symlinks=False)
    os.chmod(path, mode)
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.open_tree(root_fd, path, syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW)
    finally:
        os.close(root_fd)
    try:
        syscalls.mount_setattr(fd, give=_SAFE | (0 if mode & 0o200 else syscalls.MOUNT_ATTR_RDONLY))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.ENOSYS:
            raise ContainerError(
                "expose needs Linux 5.12 (mount_setattr): this kernel cannot make a file read-only"
            ) from error
        raise
    return fd
