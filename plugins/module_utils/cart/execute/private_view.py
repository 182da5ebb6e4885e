# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A private view of a container's files that includes a tool image; the container's own processes never see the image.

The view is a private copy of the container's mount namespace. In it a small tmpfs covers the folder that the image goes into (/dev).
Everything in that folder is bound into the tmpfs, and the image is mounted in the tmpfs, too. The view ends with the last process in it.

A mount protects the name of its mount point in its own mount namespace only. A process that reaches the parent folder by another mount, in
another namespace or in a container that shares a volume, may rename or remove the mount point. So where a command may do more than the
container, the tmpfs becomes the root instead, and everything in the container's root is bound into it. That is not needed where the name is
safe without it, as in most containers that engines make. Sources: EBUSY in rename(2) and rmdir(2), mount_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from typing import Container, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import MountNamespace
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_all

SCRATCH_SUFFIX = "-scratch"  # after an image's prefix: the place of a command's folder for temporary files
_MAX_ENTRIES = 20_000  # that are bound for one folder: a container may serve a folder without an end
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_PARENT = {
    errno.ENOENT: "that is not there",
    errno.ENOTDIR: "that is no folder",
    errno.ELOOP: "that is a symbolic link, and none is followed",
}
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def enter_private_copy(
    namespace: MountNamespace | None,
    mount_fd: int,
    prefix: str,
    scratch_fd: int | None = None,
    *,
    names_must_hold: bool = False,
    may_unmount: bool = True,
) -> None:
    """Move this process into a private copy of NAMESPACE (None: the caller's) with the image of MOUNT_FD at PREFIX.

    The mount SCRATCH_FD appears beside the image. With NAMES_MUST_HOLD no process outside the copy can change what is at PREFIX, and
    /proc is the kernel's or empty. MAY_UNMOUNT says if the container's processes may unmount.
    Raises OSError; where the container has no folder for the image, its text advises users.
    """
    parent, name = os.path.split(prefix)
    folders = parent.strip("/").split("/")
    tools = {name: mount_fd}
    if scratch_fd is not None:
        tools[name + SCRATCH_SUFFIX] = scratch_fd
    # All descriptors are closed afterwards, as a process that may trace this one reaches what it has open.
    with ExitStack() as stack:
        own_fd = _hold(stack, os.open("/proc/self", _PLACE))
        _copy(namespace)
        top_fd = _hold(stack, os.open("/", _PLACE))
        root_fd = _hold(stack, os.open(".", _FOLDER))
        parent_fd = _hold(stack, _open_parent(root_fd, parent))
        is_rebuilt = has_proc = False
        if namespace is not None and names_must_hold:
            has_proc = _has_proc(own_fd, root_fd)
            holds = _do_names_hold(own_fd, namespace, top_fd, root_fd, folders)
            is_rebuilt = may_unmount or not has_proc or not holds
        if is_rebuilt:
            _check_root(own_fd, root_fd)
        os.chroot(".")
        cover_fd = _hold(stack, mounts.mount_create("tmpfs", None, syscalls.MOUNT_ATTR_NOSUID, mode="0755", size="16m"))
        if is_rebuilt:
            syscalls.move_mount(cover_fd, top_fd)
            folder_fd = _rebuild(stack, root_fd, folders, cover_fd, () if has_proc else ("proc",))
        else:
            syscalls.move_mount(cover_fd, parent_fd)
            folder_fd = cover_fd
        _bind_all(parent_fd, folder_fd, tools)
        for entry, fd in tools.items():
            _mount_in(folder_fd, entry, fd)
        if scratch_fd is not None:
            # The mount is a clone of one in the host's /run, and mount events propagate between them until it is made private.
            os.fchdir(_hold(stack, os.open(name + SCRATCH_SUFFIX, _FOLDER, dir_fd=folder_fd)))
            syscalls.mount_make_private(".")
        if is_rebuilt:
            os.fchdir(cover_fd)
            os.chroot(".")
            flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOSUID
            syscalls.mount("none", "/", "none", flags)
        os.chdir("/")


def _copy(namespace: MountNamespace | None) -> None:
    """Enter a private copy of NAMESPACE, or of the caller's, in which no other process can change a mount."""
    if namespace is None:
        os.chdir("/")
    else:
        syscalls.setns(namespace.namespace_fd, syscalls.CLONE_NEWNS)
        os.fchdir(namespace.root_fd)  # the container's root, not always the namespace's
    # With unshare the root and the current folder of the process become those of the copy.
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount_make_private("/")


def _open_parent(root_fd: int, parent: str) -> int:
    try:
        return mounts.open_beneath(root_fd, parent, _FOLDER)
    except OSError as error:
        reason = _NO_PARENT.get(error.errno or 0)
        if reason is None:
            raise
        raise OSError(
            error.errno,
            f"the tools go into {parent}, and in the container {reason}: give it a folder {parent}, which may be empty, or use an image"
            " that is built for another prefix",
        ) from error


def _hold(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


# Facts on which the kind of view depends. OWN_FD is the host's /proc/PID of the calling process, whose root is the namespace's.


def _read_mount_id(own_fd: int, fd: int) -> int:
    """Return the id that mountinfo has for the mount that FD is on (proc(5))."""
    info_fd = os.open(f"fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own_fd)
    try:
        lines = read_all(info_fd).decode("ascii").splitlines()
    finally:
        os.close(info_fd)
    return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def _read_mounts(own_fd: int, *needles: str) -> list[mounts.Mount]:
    fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own_fd)
    try:
        return mounts.read_open_mounts(fd, *needles)
    finally:
        os.close(fd)


def _find_mount_ids(own_fd: int, root_fd: int, folders: Sequence[str]) -> list[int]:
    """Return the mount ids of the folder ROOT_FD, of the first of FOLDERS in it, of the second in that, and so on, as far as they exist."""
    found = [_read_mount_id(own_fd, root_fd)]
    for count in range(1, len(folders) + 1):
        try:
            fd = mounts.open_beneath(root_fd, "/".join(folders[:count]), _PLACE)
        except OSError:
            break
        found.append(_read_mount_id(own_fd, fd))
        os.close(fd)
    return found


def _do_names_hold(own_fd: int, namespace: MountNamespace, top_fd: int, root_fd: int, folders: Sequence[str]) -> bool:
    """Return True if the mount on FOLDERS protects their names from all but the host's root, as long as the container does not unmount it.

    That is so for a folder in the root of an overlay, as nothing but the engine's own mount of the overlay leads there on the host. The mount
    namespace has to belong to the host's own user namespace. TOP_FD is the namespace's root.
    """
    ids = _find_mount_ids(own_fd, root_fd, folders)
    known = {mount.mount_id: mount for mount in _read_mounts(own_fd)}
    way = [known[mount_id] for mount_id in ids if mount_id in known]
    return (
        len(folders) == 1
        and len(way) == len(set(ids)) == 2
        and way[0].filesystem == "overlay"
        and way[0].root == "/"
        and _read_mount_id(own_fd, top_fd) == ids[0]
        and os.path.samestat(os.fstat(top_fd), os.fstat(root_fd))
        and os.path.samestat(os.stat("ns/user", dir_fd=own_fd), namespace.stat_owner())
    )


def _has_proc(own_fd: int, root_fd: int) -> bool:
    """Return True if the kernel's /proc is mounted as a whole on the folder proc of ROOT_FD."""
    kernels = {mount.mount_id for mount in _read_mounts(own_fd, " - proc ") if mount.root == "/"}
    root_id, *found = _find_mount_ids(own_fd, root_fd, ["proc"])
    return found != [root_id] and set(found) <= kernels and bool(found)


def _check_root(own_fd: int, root_fd: int) -> None:
    """Raise OSError where ROOT_FD is not below the namespace's root: its mounts have not become private then."""
    if _read_mount_id(own_fd, root_fd) not in {mount.mount_id for mount in _read_mounts(own_fd)}:
        raise OSError(errno.EXDEV, "the root of its first process is covered by a mount: use rights=container")


# Content of the tmpfs


def _rebuild(stack: ExitStack, source_fd: int, folders: Sequence[str], cover_fd: int, left_out: Sequence[str]) -> int:
    """Bind all of SOURCE_FD but LEFT_OUT into COVER_FD, make the nested FOLDERS anew, and return a descriptor of the last one."""
    for name in folders:
        _bind_all(source_fd, cover_fd, (name, *left_out))
        left_out = ()
        os.mkdir(name, 0o755, dir_fd=cover_fd)
        source_fd = _hold(stack, mounts.open_beneath(source_fd, name, _FOLDER))
        cover_fd = _hold(stack, os.open(name, _FOLDER, dir_fd=cover_fd))
    return cover_fd


def _bind_all(source_fd: int, cover_fd: int, left_out: Container[str]) -> None:
    for entry in _gen_entries(source_fd):
        if entry not in left_out:
            _bind_again(source_fd, entry, cover_fd)


def _gen_entries(folder_fd: int) -> Iterator[str]:
    with os.scandir(folder_fd) as entries:
        for count, entry in enumerate(entries):
            if count == _MAX_ENTRIES:
                raise OSError(
                    errno.E2BIG, f"the folder that the tools go into, or one above it, has over {count} entries"
                )
            yield entry.name


def _mount_in(cover_fd: int, name: str, mount_fd: int) -> None:
    os.mkdir(name, 0o755, dir_fd=cover_fd)
    folder_fd = os.open(name, _PLACE, dir_fd=cover_fd)
    syscalls.move_mount(mount_fd, folder_fd)
    os.close(folder_fd)


def _bind_again(parent_fd: int, entry: str, cover_fd: int) -> None:
    """Bind ENTRY of the covered folder into the tmpfs that covers it."""
    try:
        mode = os.stat(entry, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(entry, dir_fd=parent_fd), entry, dir_fd=cover_fd)
            return
        flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE | syscalls.AT_SYMLINK_NOFOLLOW
        tree_fd = syscalls.open_tree(parent_fd, entry, flags)
    except FileNotFoundError:
        return  # the container removed it meanwhile
    if stat.S_ISDIR(mode):
        os.mkdir(entry, 0o755, dir_fd=cover_fd)
    else:
        os.close(os.open(entry, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=cover_fd))
    try:
        place_fd = os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=cover_fd)
        syscalls.move_mount(tree_fd, place_fd)
        os.close(place_fd)
    except OSError as error:
        if error.errno != errno.ENOTDIR:  # a file became a folder meanwhile: leave it out
            raise
    os.close(tree_fd)
