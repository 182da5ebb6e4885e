# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""System calls that Python's library lacks, as functions that raise OSError when the kernel refuses.

Numbers above 423 are the same on every architecture of Linux, so they need no table per architecture.
Sources: the man pages that the docstrings name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from typing import Iterator

_INOTIFY_EVENT = struct.Struct("iIII")
_INOTIFY_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.ptrace.restype = ctypes.c_long

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REC = 0x4000
MS_REMOUNT = 32
MS_BIND = 4096
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
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

IN_ACCESS = 0x1
IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_OPEN = 0x20
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_PIDFD_OPEN = 434
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

# These calls are older than the common numbers. Call → the kernel's name of the machine → number.
_OLD_NUMBERS = {
    "keyctl": {
        "x86_64": 250,
        "aarch64": 219,
        "riscv64": 219,
        "loongarch64": 219,
        "ppc64le": 271,
        "s390x": 280,
        "armv7l": 311,
    },
    "perf_event_open": {
        "x86_64": 298,
        "aarch64": 241,
        "riscv64": 241,
        "loongarch64": 241,
        "ppc64le": 319,
        "s390x": 331,
        "armv7l": 364,
    },
}
_KEYCTL_JOIN_SESSION_KEYRING = 1

_CAPABILITY_VERSION_3 = 0x20080522
_PERF_FLAG_FD_CLOEXEC = 8


def _check(result: int, *what: object) -> int:
    """Return RESULT of a C function; raise OSError from errno when it is negative. WHAT names the call and its object in the text."""
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
    """Move the calling thread into the namespace that FD refers to; KIND (CLONE_NEW…) demands its kind, 0 allows any: setns(2)."""
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    """Move the calling process into new namespaces of the kinds in FLAGS (CLONE_NEW…): unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def mount_make_private(path: str) -> None:
    """Stop all propagation to and from the mount at PATH and the mounts below it: mount_namespaces(7)."""
    flags = ctypes.c_ulong(MS_REC | MS_PRIVATE)
    _check(_libc.mount(b"none", os.fsencode(path), None, flags, None), "mount --make-rprivate", path)


def mount_make_slave(path: str) -> None:
    """Make the mount at PATH and the mounts below it slaves: they receive mounts and unmounts, and send none: mount_namespaces(7)."""
    flags = ctypes.c_ulong(MS_REC | MS_SLAVE)
    _check(_libc.mount(b"none", os.fsencode(path), None, flags, None), "mount --make-rslave", path)


def mount(source: str, target: str, filesystem: str, flags: int) -> None:
    """Mount SOURCE, of type FILESYSTEM, at the path TARGET with FLAGS (MS_…): mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(filesystem), ctypes.c_ulong(flags), None)
    _check(_libc.mount(*arguments), "mount", source)


def umount2(path: str, flags: int) -> None:
    """Unmount the topmost mount at PATH, with FLAGS (MNT_DETACH, UMOUNT_NOFOLLOW): umount2(2)."""
    _check(_libc.umount2(os.fsencode(path), flags), "umount", path)


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Call prctl(2) for the operation OPTION with two numeric arguments, and return its result."""
    return _check(_libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), 0, 0), "prctl", option)


def set_parent_death_signal(signal_number: int) -> None:
    """Ask the kernel to send SIGNAL_NUMBER to this process when its parent dies: prctl(2)."""
    prctl(_PR_SET_PDEATHSIG, signal_number)


def set_child_subreaper() -> None:
    """Make this process the parent of its orphaned descendants in the same pid namespace: prctl(2)."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privileges() -> None:
    """Keep this process and its future children from gaining privileges by setuid bits or file capabilities: prctl(2)."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def set_undumpable() -> None:
    """Protect this process from being traced or read until its next execve: prctl(2).

    Only processes with CAP_SYS_PTRACE in the user namespace of its last execve may still do so.
    """
    prctl(_PR_SET_DUMPABLE, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's effective, permitted and inheritable capabilities, each a set of bits: capset(2)."""
    low = 0xFFFFFFFF
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    data = struct.pack("6I", *(bits & low for bits in sets), *(bits >> 32 for bits in sets))
    _check(_libc.capset(header, data), "capset")


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """Send REQUEST (PTRACE_…) about thread PID, and return the result: ptrace(2)."""
    return _check(
        _libc.ptrace(_long(request), _long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)), "ptrace", pid
    )


def pidfd_open(pid: int) -> int:
    """Return a descriptor of process PID that becomes readable when the process has ended: pidfd_open(2), Linux 5.3."""
    return _check(_libc.syscall(_long(_SYS_PIDFD_OPEN), _long(pid), _long(0)), "pidfd_open", pid)


def _find_old_number(name: str) -> int:
    """Return the number of the system call NAME; raises OSError ENOSYS where this module does not know it."""
    machine = os.uname().machine
    number = _OLD_NUMBERS[name].get(machine)
    # A 32-bit Python on a 64-bit kernel has other numbers than the kernel's own.
    if number is None or (struct.calcsize("P") == 4) != (machine == "armv7l"):
        raise OSError(errno.ENOSYS, f"the number of {name} is not known on {machine}")
    return number


def join_new_session_keyring() -> None:
    """Replace the caller's session keyring by a new, empty one: keyctl(2).

    Raises OSError ENOSYS on an architecture for which this module does not know the number of keyctl.
    """
    number = _find_old_number("keyctl")
    _check(_libc.syscall(_long(number), _long(_KEYCTL_JOIN_SESSION_KEYRING), None), "keyctl")


def perf_event_open(attributes: bytes, cpu: int) -> int:
    """Return a descriptor of the event that ATTRIBUTES (struct perf_event_attr) describe, in all processes on CPU: perf_event_open(2)."""
    number = _find_old_number("perf_event_open")
    arguments = (attributes, _long(-1), _long(cpu), _long(-1), _long(_PERF_FLAG_FD_CLOEXEC))
    return _check(_libc.syscall(_long(number), *arguments), "perf_event_open")


def find_write_request(kind: str, number: int, form: str) -> int:
    """Return the request of ioctl(2) that KIND and NUMBER name, and which passes a value of FORM (as in struct) to the kernel."""
    is_powerpc = os.uname().machine.startswith("ppc")
    return (0x80000000 if is_powerpc else 0x40000000) | struct.calcsize(form) << 16 | ord(kind) << 8 | number


def set_process_name(name: str) -> None:
    """Give the calling thread NAME, of which the kernel keeps 15 bytes: prctl(2)."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode("utf-8"), 0, 0, 0), "prctl")


def setfsuid(uid: int) -> None:
    """Access files as user UID: setfsuid(2), which reports no errors."""
    _libc.setfsuid(ctypes.c_uint32(uid))


def setfsgid(gid: int) -> None:
    """Access files as group GID: setfsgid(2), which reports no errors."""
    _libc.setfsgid(ctypes.c_uint32(gid))


def inotify_init() -> int:
    """Return a non-blocking descriptor of a new inotify queue: inotify_init1(2)."""
    return _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")


def inotify_add_watch(fd: int, path: str, events: int) -> int:
    """Watch PATH for EVENTS (IN_…) in queue FD, and return the number of the watch: inotify_add_watch(2)."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(events)), "inotify_add_watch", path)


def inotify_rm_watch(fd: int, number: int) -> None:
    """Remove the watch NUMBER from queue FD: inotify_rm_watch(2)."""
    _check(_libc.inotify_rm_watch(fd, number), "inotify_rm_watch")


def inotify_read(fd: int) -> Iterator[tuple[int, int, str]]:
    """Yield the notices in inotify queue FD without waiting, each as (number of the watch, events (IN_…), name).

    NAME is the file in the watched folder that the events concern; it is '' when they concern the watched path itself.
    """
    while True:
        try:
            data = os.read(fd, _INOTIFY_BYTES)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            number, events, _cookie, size = _INOTIFY_EVENT.unpack_from(data, place)
            place += _INOTIFY_EVENT.size + size
            yield number, events, os.fsdecode(data[place - size : place].rstrip(b"\0"))


def inotify_watch(path: str, events: int) -> int:
    """Return a non-blocking descriptor that becomes readable when one of EVENTS (IN_…) has happened to PATH: inotify(7)."""
    fd = inotify_init()
    try:
        inotify_add_watch(fd, path, events)
    except OSError:
        os.close(fd)
        raise
    return fd


def is_readable(fd: int) -> bool:
    """Return True if FD can be read without waiting: poll(2), which, other than select(2), takes any descriptor."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def pidfd_send_signal(fd: int, signal_number: int) -> None:
    """Send SIGNAL_NUMBER to the process of FD, a pidfd or a descriptor of /proc/PID: pidfd_send_signal(2), Linux 5.1."""
    _check(_libc.syscall(_long(_SYS_PIDFD_SEND_SIGNAL), _long(fd), _long(signal_number), None, _long(0)), "kill")


def openat2(directory_fd: int, path: str, flags: int, resolve: int) -> int:
    """Open PATH below DIRECTORY_FD, resolved as RESOLVE (RESOLVE_…) demands, and return the descriptor: openat2(2), Linux 5.6."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _check(
        _libc.syscall(_long(_SYS_OPENAT2), _long(directory_fd), os.fsencode(path), how, ctypes.c_size_t(len(how))),
        "open",
        path,
    )


def open_tree(directory_fd: int, path: str, flags: int) -> int:
    """Return a descriptor of the mount at PATH or, with OPEN_TREE_CLONE in FLAGS, of a detached copy: open_tree(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_OPEN_TREE), _long(directory_fd), os.fsencode(path), _long(flags | OPEN_TREE_CLOEXEC)),
        "open_tree",
        path,
    )


def move_mount(mount_fd: int, to_fd: int) -> None:
    """Attach the mount MOUNT_FD to the directory or file TO_FD: move_mount(2), Linux 5.2."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(
        _libc.syscall(_long(_SYS_MOVE_MOUNT), _long(mount_fd), b"", _long(to_fd), b"", _long(flags)),
        "move_mount",
    )


def mount_setattr(mount_fd: int, *, give: int = 0, take: int = 0, recursive: bool = False) -> None:
    """Set the attributes GIVE (MOUNT_ATTR_…) of the mount MOUNT_FD, and clear TAKE: mount_setattr(2), Linux 5.12.

    With RECURSIVE, change the mounts below MOUNT_FD, too.
    """
    change = struct.pack("QQQQ", give, take, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _check(
        _libc.syscall(
            _long(_SYS_MOUNT_SETATTR), _long(mount_fd), b"", _long(flags), change, ctypes.c_size_t(len(change))
        ),
        "mount_setattr",
    )


def fsopen(filesystem: str) -> int:
    """Return a descriptor by which a new superblock of type FILESYSTEM is configured: fsopen(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_FSOPEN), os.fsencode(filesystem), _long(FSOPEN_CLOEXEC)), "fsopen", filesystem
    )


def fsconfig(context_fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Set an option of the superblock of CONTEXT_FD, or create the superblock, as COMMAND (FSCONFIG_…) says: fsconfig(2), Linux 5.2."""
    _check(
        _libc.syscall(_long(_SYS_FSCONFIG), _long(context_fd), _long(command), _string(key), _string(value), _long(0)),
        "fsconfig",
        key or "create",
    )


def fsmount(context_fd: int, attributes: int) -> int:
    """Return a descriptor of a new detached mount of the superblock of CONTEXT_FD: fsmount(2), Linux 5.2."""
    return _check(
        _libc.syscall(_long(_SYS_FSMOUNT), _long(context_fd), _long(FSMOUNT_CLOEXEC), _long(attributes)), "fsmount"
    )
