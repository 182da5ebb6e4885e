# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount tables, detached mounts and loop devices.

A loop device that is made here has AUTOCLEAR: the kernel frees the device with its last user. Only descriptors and mounts use it,
so a killed process leaves no device behind. Sources: mount_namespaces(7), proc(5), loop(4), fsopen(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
from dataclasses import dataclass
from typing import Iterable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mount_tables import read_table
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_all

_LOOP_SET_FD = 0x4C00
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt_type, key_size, flags; names, key, init
_LOOP_INFO64 = struct.Struct("QQQQQIIII64s64s32s2Q")
# struct loop_config: fd, block_size; loop_info64; reserved
_LOOP_CONFIG_SIZE = 8 + _LOOP_INFO64.size + 64

_MAX_ATTEMPTS = 100
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One mount: a line of /proc/PID/mountinfo (proc(5), mount_namespaces(7))."""

    mount_id: int
    parent_id: int
    device: str  # major:minor
    root: str  # path, within the file system, of the folder that is mounted
    mount_point: str
    options: str  # of this mount, such as ro,nosuid
    peer_group: int  # the group whose members pass mounts and unmounts to each other; 0 for none
    master: int  # the group that this mount receives mounts and unmounts from; 0 for none
    filesystem: str
    source: str


def parse_device(text: str) -> int:
    """Return the number of a device, as stat(2) gives it, for TEXT in the form major:minor."""
    return os.makedev(*map(int, text.split(":")))


@dataclass(frozen=True)
class LoopDevice:
    """A loop device that is bound to a file."""

    number: int
    device: str  # major:minor, as in mountinfo
    backing_file: str  # the file's path; the kernel adds ' (deleted)' to the path of an unlinked file

    @property
    def path(self) -> str:
        """The path of the device's node in the host's /dev."""
        return f"/dev/loop{self.number}"


def _unescape(field: str) -> str:
    return _OCTAL_ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), field)


def parse_mountinfo(lines: Iterable[str]) -> Iterator[Mount]:
    """Yield a Mount for each of LINES, which come from /proc/PID/mountinfo (proc(5)). Malformed lines are skipped."""
    for line in lines:
        fields = line.rstrip("\n").split(" ")
        try:
            separator = fields.index("-", 6)
            filesystem, source = fields[separator + 1 : separator + 3]
            mount_id, parent_id = int(fields[0]), int(fields[1])
            groups = [_find_group(fields[6:separator], kind) for kind in ("shared:", "master:")]
        except ValueError:
            continue
        yield Mount(
            mount_id=mount_id,
            parent_id=parent_id,
            device=fields[2],
            root=_unescape(fields[3]),
            mount_point=_unescape(fields[4]),
            options=fields[5],
            peer_group=groups[0],
            master=groups[1],
            filesystem=filesystem,
            source=_unescape(source),
        )


def _find_group(fields: list[str], kind: str) -> int:
    return next((int(field[len(kind) :]) for field in fields if field.startswith(kind)), 0)


def read_mounts(pid: int | str = "self", *needles: str) -> list[Mount]:
    """Return the mounts that process PID sees; with NEEDLES, only those whose line holds one of NEEDLES.

    A process of another mount namespace may have made its table too long: then TableTooLong is raised. The table of the caller's
    own namespace (the host's) is read whole, whatever its length. Raises OSError when the process has ended.
    """
    is_own = os.path.samefile(f"/proc/{pid}/ns/mnt", "/proc/self/ns/mnt")
    fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        table = read_all(fd) if is_own else read_table(fd)
        return list(parse_mountinfo(select_lines(table, needles)))
    finally:
        os.close(fd)


def read_open_mounts(fd: int, *needles: str) -> list[Mount]:
    """Return the mounts in another process's mountinfo, open as FD; with NEEDLES, only those whose line holds one of NEEDLES.

    Raises TableTooLong when reading the table takes too long.
    """
    return list(parse_mountinfo(select_lines(read_table(fd), needles)))


def select_lines(table: bytes, needles: Sequence[str]) -> list[str]:
    """Return the lines of TABLE, the text of a mountinfo; with NEEDLES, only those that hold one of NEEDLES.

    A host with hundreds of containers has a thousand mounts: searching a line for a word takes a fraction of parsing it.
    """
    lines = table.decode("utf-8", "surrogateescape").split("\n")
    return [line for line in lines if not needles or any(needle in line for needle in needles)]


def list_devices(*, but: str) -> set[int]:
    """Return the device numbers, as in stat(2), of this process's mounts, except those of file system BUT."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = select_lines(file.read(), ())
    devices = {line.split(" ", 3)[2] for line in lines if line and f" - {but} " not in line}
    return {parse_device(device) for device in devices}


def gen_loop_devices() -> Iterator[LoopDevice]:
    """Yield all bound loop devices of the host, as sysfs lists them."""
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop"):
            continue
        try:
            with open(f"/sys/block/{name}/loop/backing_file", encoding="utf-8", errors="surrogateescape") as file:
                backing_file = file.read()[:-1]
            yield LoopDevice(int(name[4:]), _read_device(name), backing_file)
        except OSError:
            continue  # not bound, or just freed


def _read_device(name: str) -> str:
    """Return major:minor of block device NAME: where loop devices have partitions, a device's minor is not its number."""
    with open(f"/sys/block/{name}/dev", encoding="ascii") as file:
        return file.read().strip()


def loop_open(image_fd: int) -> tuple[int, LoopDevice]:
    """Return the read-only loop device of the file open as IMAGE_FD, with a descriptor of the device; make it when there is none.

    The device stays while the descriptor is open, and afterwards while it is mounted.
    The caller must hold a lock on the image: without one, two callers could make a device each.
    """
    wanted = os.fstat(image_fd)
    for device in gen_loop_devices():
        try:
            fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        if _loop_is_for(fd, wanted):
            return fd, device
        os.close(fd)
    return _loop_create(image_fd)


def _loop_is_for(fd: int, wanted: os.stat_result) -> bool:
    status = bytearray(_LOOP_INFO64.size)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError:
        return False  # the device was freed between the read of sysfs and our open
    device, inode, _rdevice, offset, size_limit, _number, _type, _key_size, flags = _LOOP_INFO64.unpack(status)[:9]
    return (
        (device, inode) == (wanted.st_dev, wanted.st_ino)
        and offset == size_limit == 0
        and flags & (_LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR) == _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    )


def _loop_create(image_fd: int) -> tuple[int, LoopDevice]:
    backing_file = os.readlink(f"/proc/self/fd/{image_fd}")
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = LoopDevice(number, _read_device(f"loop{number}"), backing_file)
            fd = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _loop_configure(fd, image_fd, backing_file)
                return fd, device
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # EBUSY: another process took it first
                    raise
    finally:
        os.close(control)


def _loop_configure(loop_fd: int, image_fd: int, backing_file: str) -> None:
    """Bind the free loop device LOOP_FD to IMAGE_FD, read-only and with AUTOCLEAR; fail with EBUSY if another process took it."""
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, os.fsencode(backing_file)[:63], b"", b"", 0, 0)
    config = (struct.pack("II", image_fd, 0) + info).ljust(_LOOP_CONFIG_SIZE, b"\0")
    try:
        fcntl.ioctl(loop_fd, _LOOP_CONFIGURE, config)
        return
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTTY):
            raise
    # Before Linux 5.8 this takes two steps, and a kill between them leaves a device that the kernel does not free by itself.
    fcntl.ioctl(loop_fd, _LOOP_SET_FD, image_fd)
    try:
        fcntl.ioctl(loop_fd, _LOOP_SET_STATUS64, info)
    except OSError:
        fcntl.ioctl(loop_fd, _LOOP_CLR_FD)
        raise


def mount_create(filesystem: str, source: str | None = None, attributes: int = 0, **options: str) -> int:
    """Make a detached mount of FILESYSTEM, read-only where SOURCE is given, and return its descriptor.

    Mounts of one device share a superblock and its page cache. Closing the descriptor drops the mount unless it was attached.
    """
    context = syscalls.fsopen(filesystem)
    try:
        if source is not None:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", source)
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "ro")
        for name, value in options.items():
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, name, value)
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def open_beneath(root_fd: int, path: str, flags: int) -> int:
    """Open PATH below ROOT_FD and return the descriptor; no symlink and no '..' can lead out of ROOT_FD.

    Raises OSError: ELOOP for a symlink in PATH, EXDEV for a '..' that leads out (for any '..' before Linux 5.6).
    """
    path = path.strip("/") or "."
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return syscalls.openat2(root_fd, path, flags, syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                break
            # EAGAIN: a mount or rename on the host happened while the kernel resolved a '..' (openat2(2)).
            if error.errno != errno.EAGAIN or attempt == _MAX_ATTEMPTS - 1:
                raise
    return _walk_beneath(root_fd, path.split("/"), flags)


def _walk_beneath(root_fd: int, names: list[str], flags: int) -> int:
    """Open the path of NAMES below ROOT_FD folder by folder, for kernels without openat2 (before Linux 5.6)."""
    if ".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    fd = os.dup(root_fd)
    try:
        for name in names[:-1]:
            if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            # O_NOFOLLOW: the folder may have been replaced by a link since the check.
            child_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = child_fd
        return os.open(names[-1], flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)
