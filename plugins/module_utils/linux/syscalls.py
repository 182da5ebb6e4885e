# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls that Python's library lacks, each a function that returns or raises OSError.

Numbers above 423 are the same on every architecture of Linux, so no table per architecture
is needed. Sources: the man pages named in each docstring.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

AT_RECURSIVE = 0x8000
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

IN_MOVED_TO = 0x80
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442


def _check(result: int, *what: object) -> int:
    """The one place where a C return value becomes OSError, with WHAT to name the object."""
    if result < 0:
        error = ctypes.get_errno()
        names = " ".join(str(part) for part in what)
        raise OSError(error, f"{os.strerror(error)}: {names}")
    return result


def _string(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread into the namespace that FD refers to: setns(2)."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Give the calling process copies of the namespaces in FLAGS: unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def mount_make_private(path: str) -> None:
    """Stop all propagation below PATH, recursively: mount_namespaces(7)."""
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check(_libc.mount(b"none", os.fsencode(path), None, flags, None), "mount --make-rprivate", path)


def mount(source: str, target: str, filesystem: str, flags: int) -> None:
    """Mount the FILESYSTEM on SOURCE at TARGET: mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(filesystem), ctypes.c_ulong(flags), None)
    _check(_libc.mount(*arguments), "mount", source)


def umount2(path: str, flags: int) -> None:
    """Unmount what is mounted at PATH: umount2(2)."""
    _check(_libc.umount2(os.fsencode(path), flags), "umount", path)


def set_parent_death_signal(signal_number: int) -> None:
    """Have SIGNAL_NUMBER sent to this process when its parent dies: prctl(2)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl")


def set_child_subreaper() -> None:
    """Have orphaned descendants (of the same pid namespace) become children of this process: prctl(2)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def set_no_new_privileges() -> None:
    """Have no program that this process or its children run gain privileges, by setuid bits or file capabilities: prctl(2)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def set_process_name(name: str) -> None:
    """Name the calling thread; the kernel keeps 15 bytes: prctl(2)."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode("utf-8"), 0, 0, 0), "prctl")


def setfsuid(uid: int) -> None:
    """Be user UID to file systems: setfsuid(2), which tells no errors."""
    _libc.setfsuid(ctypes.c_uint32(uid))


def setfsgid(gid: int) -> None:
    """Be group GID to file systems: setfsgid(2)."""
    _libc.setfsgid(ctypes.c_uint32(gid))


def inotify_watch(path: str, events: int) -> int:
    """A descriptor, not blocking, that is readable when one of EVENTS (IN_…) has happened to PATH: inotify(7)."""
    fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
    try:
        _check(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(events)), "inotify_add_watch", path)
    except OSError:
        os.close(fd)
        raise
    return fd


def pidfd_send_signal(fd: int, signal_number: int) -> None:
    """Send a signal to the process of FD, a pidfd or a descriptor of its /proc/PID: pidfd_send_signal(2), Linux 5.1."""
    _check(_libc.syscall(_long(_SYS_PIDFD_SEND_SIGNAL), _long(fd), _long(signal_number), None, _long(0)), "kill")


def openat2(directory_fd: int, path: str, flags: int, resolve: int) -> int:
    """A descriptor for PATH below DIRECTORY_FD, resolved as RESOLVE demands: openat2(2), Linux 5.6."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _check(
        _libc.syscall(_long(_SYS_OPENAT2), _long(directory_fd), os.fsencode(path), how, ctypes.c_size_t(len(how))),
        "open",
        path,
    )


def open_tree(directory_fd: int, path: str, flags: int) -> int:
    """A descriptor for the mount or, with OPEN_TREE_CLONE, a detached copy of it: open_tree(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_OPEN_TREE), _long(directory_fd), os.fsencode(path), _long(flags | OPEN_TREE_CLOEXEC)),
        "open_tree",
        path,
    )


def move_mount(mount_fd: int, to_fd: int) -> None:
    """Put the mount behind MOUNT_FD onto the directory or file behind TO_FD: move_mount(2), Linux 5.2."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(
        _libc.syscall(_long(_SYS_MOVE_MOUNT), _long(mount_fd), b"", _long(to_fd), b"", _long(flags)),
        "move_mount",
    )


def fsopen(filesystem: str) -> int:
    """A descriptor to configure a new superblock of type FILESYSTEM with: fsopen(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_FSOPEN), os.fsencode(filesystem), _long(FSOPEN_CLOEXEC)), "fsopen", filesystem
    )


def fsconfig(context_fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set an option of, or create, the superblock behind CONTEXT_FD: fsconfig(2), Linux 5.2."""
    _check(
        _libc.syscall(_long(_SYS_FSCONFIG), _long(context_fd), _long(command), _string(key), _string(value), _long(0)),
        "fsconfig",
        key or "create",
    )


def fsmount(context_fd: int, attributes: int) -> int:
    """A descriptor for a detached mount of the superblock behind CONTEXT_FD: fsmount(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_FSMOUNT), _long(context_fd), _long(FSMOUNT_CLOEXEC), _long(attributes)), "fsmount"
    )


def mount_clear_attributes(mount_fd: int, attributes: int) -> None:
    """Take ATTRIBUTES (MOUNT_ATTR_…) away from the mount behind MOUNT_FD: mount_setattr(2), Linux 5.12."""
    change = struct.pack("QQQQ", 0, attributes, 0, 0)
    _check(
        _libc.syscall(
            _long(_SYS_MOUNT_SETATTR), _long(mount_fd), b"", _long(AT_EMPTY_PATH), change, ctypes.c_size_t(len(change))
        ),
        "mount_setattr",
    )
