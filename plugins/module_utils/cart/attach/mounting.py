# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work inside a container's mount namespace: find or make the folder to mount on, mount, unmount, remove the folder.

All of it runs in a child that executes nothing of the container and follows no symbolic link (linux/namespaces.py).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import AbstractSet, Any, Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.tool_users import find_users
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import ImageFinder
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S, Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    open_mount_namespace,
    run_in_mount_namespaces,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone, read_pids

_FOLDER_MODE = 0o111  # marks a folder that an attach has made; the mount on it hides the mode
_FOLDER_TIMEOUT_S = 5.0
_HINTS = {
    errno.EROFS: "start it with a tmpfs or an empty directory there, or use crashcart_exec, which needs neither",
    errno.ELOOP: "a symbolic link stands in the way, and none is followed",
    errno.ENOENT: "there is no folder to mount in: start it with one, or use crashcart_exec",
}


def enter(
    targets: Sequence[Target],
    path: str,
    function: Callable[[int, int, str], Any],
    *,
    keep: Sequence[int] = (),
    prepare: Callable[[], None] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> list[Any]:
    """Return the results of FUNCTION(index, descriptor of PATH's parent, PATH's name), called inside each of TARGETS.

    An OSError takes the place of a result where FUNCTION raised one or the target could not be entered.
    PREPARE is called first, in the process that enters the targets one after the other; KEEP are descriptors that this process needs.
    """
    parent, name = os.path.split(path)
    outcomes: dict[int, Any] = {}
    with ExitStack() as stack:
        namespaces: dict[int, MountNamespace] = {}
        for index, target in enumerate(targets):
            try:
                namespaces[index] = open_mount_namespace(target.process)
            except ProcessGone:
                outcomes[index] = ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
                continue
            stack.callback(namespaces[index].close)
        entered = list(namespaces)

        def call(number: int) -> Any:
            index = entered[number]
            parent_fd = mounts.open_beneath(namespaces[index].root_fd, parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return function(index, parent_fd, name)
            finally:
                os.close(parent_fd)

        found = run_in_mount_namespaces(list(namespaces.values()), call, keep, timeout_s, prepare)
        outcomes.update(zip(entered, found))
    return [outcomes[index] for index in range(len(targets))]


def try_in_targets(
    targets: Sequence[Target], path: str, function: Callable[[int, int, str], Any], verb: str, **more: Any
) -> list[ContainerError | None]:
    """Call FUNCTION inside each of TARGETS, as `enter` does, and return for each the error, or None.

    VERB says in the error's text what could not be done.
    """
    return [
        _judge(outcome, target, path, verb) if isinstance(outcome, OSError) else None
        for target, outcome in zip(targets, enter(targets, path, function, **more))
    ]


def run_in_target(target: Target, path: str, function: Callable[[int, int, str], Any], verb: str, **more: Any) -> None:
    """Call FUNCTION inside TARGET, as `enter` does; raises ContainerError, with VERB for what could not be done."""
    (error,) = try_in_targets([target], path, function, verb, **more)
    if error is not None:
        raise error


def _judge(error: OSError, target: Target, path: str, verb: str) -> ContainerError:
    if isinstance(error, ProcessLookupError):
        return ContainerGoneError(f"container {target.name} has just ended")
    return ContainerError(f"cannot {verb} container {target.name} at {path}: {_explain(error, target, path)}")


def _explain(error: OSError, target: Target, path: str) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.EBUSY:
        users = ""
        with suppress(ContainerError, ProcessGone):
            users = ", ".join(str(user) for user in find_users(target, path))
        return (
            f"the tools are in use by {users or 'no process that can be seen (a mount inside it?)'}; end them, wait for them"
            " (busy=wait), kill them (busy=kill), or take the tools out of their sight (busy=lazy)"
        )
    hint = _HINTS.get(error.errno or 0)
    return f"{text}: {hint}" if hint else text


def list_host_devices() -> frozenset[int]:
    """Return the devices of the host's mounts, without overlays: the containers' own roots are among the host's mounts."""
    return frozenset(mounts.list_devices(but="overlay"))


def foresee(parent_fd: int, name: str, host_devices: AbstractSet[int]) -> None:
    """Raise the OSError that attach would raise, and change nothing."""
    if find_folder(parent_fd, name):
        return
    with _writable(parent_fd, host_devices) as fd:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def attach(mount_on: Callable[[int], None], parent_fd: int, name: str, host_devices: AbstractSet[int]) -> None:
    """Call MOUNT_ON(descriptor) with the folder NAME, which is made where it is missing.

    Raises OSError, also where the folder would have to be made in a folder of the host (on one of HOST_DEVICES) that the container has
    read-only.
    """
    found = find_folder(parent_fd, name)
    if not found:
        _make_folder(parent_fd, name, host_devices)
    try:
        target_fd = mounts.open_beneath(parent_fd, name, os.O_PATH | os.O_DIRECTORY)
        try:
            mount_on(target_fd)
        finally:
            os.close(target_fd)
    except OSError:
        if not found:
            remove_folder(parent_fd, name)
        raise


def find_folder(parent_fd: int, name: str) -> bool:
    """Return True if a folder to mount on is there; raises OSError where something else is, or the folder is not empty."""
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


def detach(count: int, devices: set[int], *, lazy: bool, parent_fd: int, name: str) -> None:
    """Unmount COUNT mounts of DEVICES from NAME; raises OSError, also where another mount covers them."""
    os.fchdir(parent_fd)
    for _mount in range(count):
        if os.stat(name, follow_symlinks=False).st_dev not in devices:
            raise OSError(errno.EPERM, "something that is not ours is mounted over the tools; unmount that first")
        syscalls.umount2(name, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))


def find_removable(targets: Sequence[Target], path: str) -> list[bool]:
    """Return, for each of TARGETS, True if the folder PATH may be removed there once nothing is mounted on it.

    Removing a folder also removes what others have mounted on it in their namespaces. So where the parent folder is the host's,
    as in a volume, nobody else may have an image mounted there, and the last of the TARGETS that share it removes it.
    """
    if not targets:  # the usual case, in which the host's table of mounts, which may be long, need not be read
        return []
    places: list[tuple[str, str] | None] = []
    namespaces = set()
    for target in targets:
        try:
            places.append(_find_place(target.read_mounts(), path))
            namespaces.add(target.process.namespace("mnt"))
        except (ContainerError, ProcessGone):
            places.append(None)
    devices = list_host_devices()
    taken = set()
    if any(place and mounts.parse_device(place[0]) in devices for place in places):
        taken = _find_taken_places(namespaces)
    return [
        place is not None and place not in taken and place not in places[index + 1 :]
        for index, place in enumerate(places)
    ]


def _find_place(found: Sequence[mounts.Mount], path: str) -> tuple[str, str]:
    """Return the place of the folder PATH by the mounts FOUND: a device and a path in its file system."""
    above = [mount for mount in found if path.startswith(mount.mount_point.rstrip("/") + "/")]
    mount = sorted(above, key=lambda mount: len(mount.mount_point))[-1]
    return mount.device, os.path.normpath(os.path.join(mount.root, os.path.relpath(path, mount.mount_point)))


def _find_taken_places(known: set[str]) -> set[tuple[str, str]]:
    """Return the places on which images are mounted in mount namespaces other than the KNOWN ones."""
    finder = ImageFinder()
    seen = set(known)
    taken = set()
    for pid in read_pids():
        with suppress(OSError):  # it has ended
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            if not finder.find(mounts.read_mounts(pid, *finder.needles)):
                continue  # do not read the whole table, as a user may have made any number of mounts
            found = mounts.read_mounts(pid)
            for attached in finder.find(found):
                above = [mount for mount in found if mount.mount_id == attached.mount.parent_id]
                taken |= {_find_place(above, attached.mount.mount_point)} if above else set()
    return taken


def remove_our_folder(parent_fd: int, name: str) -> None:
    """Remove the folder NAME if an attach has made it."""
    if is_our_folder(parent_fd, name):
        remove_folder(parent_fd, name)


def is_our_folder(parent_fd: int, name: str) -> bool:
    """Return True if NAME is a folder that an attach has made: it has the mode that marks it, and the owner of its parent folder."""
    try:
        found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except OSError:
        return False
    return found.st_mode == stat.S_IFDIR | _FOLDER_MODE and found.st_uid == os.fstat(parent_fd).st_uid


def find_folders(targets: Sequence[Target], path: str) -> list[Target]:
    """Return those of TARGETS with an empty folder PATH that an attach has made, which a killed attach has left."""

    def is_left(_index: int, parent_fd: int, name: str) -> bool:
        return is_our_folder(parent_fd, name) and find_folder(parent_fd, name)

    found = enter(targets, path, is_left, timeout_s=_FOLDER_TIMEOUT_S)
    # An error counts as no folder: where PATH cannot be seen, as in a /dev that the container serves itself, no attach has made it.
    return [target for target, is_there in zip(targets, found) if is_there is True]


def remove_folders(targets: Sequence[Target], path: str) -> list[ContainerError | None]:
    """Remove the empty folder PATH that a killed attach has left in each of TARGETS, and return for each the error, or None."""

    def remove(_index: int, parent_fd: int, name: str) -> None:
        remove_our_folder(parent_fd, name)

    return try_in_targets(targets, path, remove, "clean up in")


def remove_folder(parent_fd: int, name: str) -> None:
    """Remove the folder NAME, unless it is not empty or cannot be removed."""
    try:
        with _writable(parent_fd) as fd:
            os.rmdir(name, dir_fd=fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EROFS, errno.ENOTDIR):
            raise


def _make_folder(parent_fd: int, name: str, host_devices: AbstractSet[int]) -> None:
    owner = os.fstat(parent_fd)
    os.umask(0)
    # The file system may belong to another user namespace, in which the host's root has no number.
    syscalls.setfsgid(owner.st_gid)
    syscalls.setfsuid(owner.st_uid)
    try:
        with _writable(parent_fd, host_devices) as fd:
            os.mkdir(name, _FOLDER_MODE, dir_fd=fd)
    finally:
        syscalls.setfsuid(0)
        syscalls.setfsgid(0)


@contextmanager
def _writable(parent_fd: int, refused: AbstractSet[int] = frozenset()) -> Iterator[int]:
    """Yield the folder PARENT_FD for writing: where its mount is read-only, by a detached mount that is not, though the file system may be.

    A container's /dev, or its whole root, is mounted read-only to keep the container's own processes from writing; our mount point
    is made nevertheless, but for folders on the devices REFUSED.
    """
    if not os.fstatvfs(parent_fd).f_flag & os.ST_RDONLY:
        yield parent_fd
        return
    if os.fstat(parent_fd).st_dev in refused:
        raise OSError(errno.EROFS, "its folder there is the host's, mounted read-only")
    tree_fd = fd = -1
    try:
        try:
            tree_fd = syscalls.open_tree(parent_fd, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)
            syscalls.mount_setattr(tree_fd, take=syscalls.MOUNT_ATTR_RDONLY)
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree_fd)
        except OSError as error:
            # An older kernel, or a mount that another user namespace has locked.
            raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from error
        yield fd
    finally:
        for opened in (fd, tree_fd):
            if opened >= 0:
                os.close(opened)
