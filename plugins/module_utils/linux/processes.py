# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One process, held so that a dead or recycled pid can only fail, and /proc read for many.

A descriptor of the directory /proc/PID belongs to the process, not to the number: once the
process is gone every look through it fails with ESRCH, whoever has the number by then.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Container, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
_NS_GET_OWNER_UID = 0xB704


class ProcessGone(Exception):
    """Process PID ended before or while it was looked at."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has ended")
        self.pid = pid


@dataclass(frozen=True)
class Task:
    """One thread: its ids on the host, its process, its name, its id in its innermost pid namespace."""

    tid: int
    tgid: int
    comm: str
    container_tid: int


def parse_status(status: bytes) -> dict[str, str]:
    """Field name → value from the text of /proc/PID/status (proc(5))."""
    fields = {}
    for line in status.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields[name] = value.strip()
    return fields


class Process:
    """A process that is held. Use as a context manager; every method raises ProcessGone when it died."""

    def __init__(self, pid: int) -> None:
        if pid <= 1:
            raise ProcessGone(pid)  # Docker says 0 for a stopped container; 1 is the host's own first process
        self.pid = pid
        try:
            self._fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ProcessGone(pid) from error

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the process. Calling it again does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of /proc/PID/NAME; for namespaces and root this follows the kernel's own link."""
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self._fd)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise ProcessGone(self.pid) from error

    def read(self, name: str) -> bytes:
        """The bytes of /proc/PID/NAME."""
        fd = self.open(name)
        try:
            return read_all(fd)
        except ProcessLookupError as error:
            raise ProcessGone(self.pid) from error
        finally:
            os.close(fd)

    def kill(self, signal_number: int) -> None:
        """Send SIGNAL_NUMBER to this very process; nothing happens when it has ended (pidfd_send_signal(2))."""
        try:
            syscalls.pidfd_send_signal(self._fd, signal_number)
        except ProcessLookupError:
            return

    def read_link(self, name: str) -> str:
        """What the link /proc/PID/NAME says."""
        try:
            return os.readlink(name, dir_fd=self._fd)
        except (ProcessLookupError, FileNotFoundError) as error:
            raise ProcessGone(self.pid) from error

    def namespace(self, kind: str) -> str:
        """The identity of one of its namespaces, such as mnt:[4026531841]; KIND is a name in /proc/PID/ns."""
        return self.read_link(f"ns/{kind}")

    def read_start_ticks(self) -> int:
        """When it started, in clock ticks since boot: with its pid this names it for as long as the host is up (proc(5))."""
        return parse_start_ticks(self.read("stat"))

    def read_owner(self) -> int:
        """The user who made its user namespace; 0 for the host's own."""
        fd = self.open("ns/user")
        try:
            return _read_owner(fd)
        finally:
            os.close(fd)

    def read_mount_owner(self) -> int:
        """The user who made the user namespace that its mount namespace belongs to, which need not be its own; 0 for the host's."""
        fd = self.open("ns/mnt")
        try:
            user_fd = open_owner(fd)
        finally:
            os.close(fd)
        try:
            return _read_owner(user_fd)
        finally:
            os.close(user_fd)


def open_owner(namespace_fd: int) -> int:
    """A descriptor of the user namespace that the namespace NAMESPACE_FD belongs to (ioctl_ns(2))."""
    return fcntl.ioctl(namespace_fd, _NS_GET_USERNS)


def _read_owner(user_namespace_fd: int) -> int:
    (uid,) = struct.unpack("I", fcntl.ioctl(user_namespace_fd, _NS_GET_OWNER_UID, bytes(4)))
    return int(uid)


def parse_start_ticks(stat: bytes) -> int:
    """Field 22 of the text of /proc/PID/stat; the name of the process, field 2, may hold anything."""
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def read_start_ticks(pid: int) -> int | None:
    """When process PID started, as Process.read_start_ticks tells it; None when there is none."""
    try:
        with Process(pid) as process:
            return process.read_start_ticks()
    except ProcessGone:
        return None


def read_all(fd: int) -> bytes:
    """All bytes from FD up to its end."""
    parts: list[bytes] = []
    while True:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def read_pids() -> list[int]:
    """The pids of all processes that the caller can see now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def set_title(title: str) -> None:
    """Have TITLE shown as the calling process's name and command line (as setproctitle does), and no environment: others may see it."""
    syscalls.set_process_name(title)
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end, environment, environment_end = map(int, fields[45:49])  # arg_start to env_end, proc(5)
    if 0 < environment < environment_end:
        ctypes.memset(environment, 0, environment_end - environment)
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        text = title.encode("utf-8")
        ctypes.memmove(start, text, min(len(text), end - start - 1))


def gen_holders(inodes: Container[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield the processes that have one of INODES (device and number) open, each with the inode; those that can be seen in /proc."""
    for pid in read_pids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # it has ended
        for name in names:
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if (status.st_dev, status.st_ino) in inodes:
                yield pid, (status.st_dev, status.st_ino)


def is_alive(tid: int) -> bool:
    """Whether there is a thread TID."""
    return os.path.exists(f"/proc/{tid}")


def read_threads(pid: int) -> list[int]:
    """The thread ids of process PID; empty when it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def read_task(tid: int) -> Task | None:
    """Who thread TID is; None when it has ended."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            status = parse_status(file.read())
        with open(f"/proc/{tid}/comm", "rb") as file:
            # The name as the process set it: status would escape it.
            comm = file.read()[:-1].decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Task(
        tid=tid,
        tgid=int(status["Tgid"]),
        comm=comm,
        container_tid=int(status.get("NSpid", str(tid)).split()[-1]),
    )


def read_parent(pid: int) -> int:
    """The parent's pid, 0 when PID has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def read_comm(pid: int) -> str:
    """The name of process PID; '' when it has ended."""
    task = read_task(pid)
    return task.comm if task else ""
