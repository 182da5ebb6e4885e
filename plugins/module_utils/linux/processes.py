# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold a process so that its pid cannot come to mean another process, and read /proc about many processes.

A descriptor of the directory /proc/PID belongs to the process, not to the number. Once the process has ended, every read through
the descriptor fails with ESRCH, even if a new process has the number.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Callable, Container, Iterator, TypeVar

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

_NS_GET_USERNS = 0xB701  # ioctl_ns(2)
_NS_GET_OWNER_UID = 0xB704
# What the kernel answers about an ended thread: none, no such file (of its namespaces and its root), and for its mounts an invalid one.
_OF_ENDED_THREADS = (errno.ESRCH, errno.ENOENT, errno.EINVAL)
_ENDED_STATES = (b"Z", b"X", b"x")
_Result = TypeVar("_Result")


class ProcessGone(Exception):
    """Process PID has ended before or while it was inspected."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} has ended")
        self.pid = pid


@dataclass(frozen=True)
class Task:
    """One thread of a process."""

    tid: int  # on the host
    tgid: int  # pid of its process, on the host
    comm: str  # name
    container_tid: int  # in its innermost pid namespace


def parse_status(status: bytes) -> dict[str, str]:
    """Return the fields of STATUS, the text of /proc/PID/status, by name (proc(5))."""
    fields = {}
    for line in status.decode("utf-8", "replace").split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields[name] = value.strip()
    return fields


class Process:
    """A process that is held by a descriptor of its /proc/PID. Use as a context manager.

    The methods that read raise ProcessGone when the process has ended, and so does Process(PID) itself. Where only the first thread
    has ended, which then has neither namespaces nor a root, the first look at one of these makes all later ones read of another thread.
    """

    def __init__(self, pid: int) -> None:
        if pid <= 1:
            raise ProcessGone(pid)  # Docker gives 0 for a stopped container; 1 is the init process of the host
        self.pid = pid
        self.tid = pid  # of the thread that is read of
        try:
            self._fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ProcessGone(pid) from error

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor of the process; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open /proc/PID/NAME and return the descriptor; the kernel's links for namespaces and root are followed."""
        return self._look(name, lambda path: os.open(path, flags | os.O_CLOEXEC, dir_fd=self._fd))

    def read(self, name: str) -> bytes:
        """Return the bytes of /proc/PID/NAME."""
        fd = self.open(name)
        try:
            return read_all(fd)
        except ProcessLookupError as error:
            raise ProcessGone(self.pid) from error
        finally:
            os.close(fd)

    def kill(self, signal_number: int) -> None:
        """Send SIGNAL_NUMBER to this very process; do nothing when it has ended (pidfd_send_signal(2))."""
        try:
            syscalls.pidfd_send_signal(self._fd, signal_number)
        except ProcessLookupError:
            return

    def read_link(self, name: str) -> str:
        """Return the target of the link /proc/PID/NAME."""
        return self._look(name, lambda path: os.readlink(path, dir_fd=self._fd))

    def _look(self, name: str, function: Callable[[str], _Result]) -> _Result:
        """Return what FUNCTION(path) returns for the file NAME of the thread that is read of, and of the next one where that has ended."""
        while True:
            try:
                return function(self._find_path(name))
            except OSError as error:
                if error.errno not in _OF_ENDED_THREADS:
                    raise
                if self._choose_next_thread():
                    continue
                if error.errno == errno.EINVAL and self._lives():
                    raise
                raise ProcessGone(self.pid) from error

    def _find_path(self, name: str) -> str:
        return name if self.tid == self.pid else f"task/{self.tid}/{name}"

    def _lives(self) -> bool:
        """Return True if the thread that is read of has not ended."""
        try:
            return _read_state(self._fd, self._find_path("stat")) not in _ENDED_STATES
        except OSError:
            return False  # it is not even a zombie any more

    def _choose_next_thread(self) -> bool:
        """Read of another thread from now on and return True; return False where this one lives, or no other does."""
        if self._lives():
            return False
        with suppress(OSError):
            fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                names = os.listdir(fd)
            finally:
                os.close(fd)
            for name in names:
                with suppress(OSError):
                    if _read_state(self._fd, f"task/{name}/stat") not in _ENDED_STATES:
                        self.tid = int(name)
                        return True
        return False

    def namespace(self, kind: str) -> str:
        """Return the identity of its namespace of KIND, a name in /proc/PID/ns; the form is mnt:[4026531841]."""
        return self.read_link(f"ns/{kind}")

    def read_start_ticks(self) -> int:
        """Return its start time in clock ticks since boot (proc(5)): with the pid, this identifies the process until the next boot."""
        try:
            return parse_start_ticks(_read_at(self._fd, "stat"))
        except (ProcessLookupError, FileNotFoundError) as error:
            raise ProcessGone(self.pid) from error

    def read_owner(self) -> int:
        """Return the number of the user who made its user namespace; 0 for the host's own namespace."""
        fd = self.open("ns/user")
        try:
            return _read_owner(fd)
        finally:
            os.close(fd)

    def read_mount_owner(self) -> int:
        """Return the number of the user who made the user namespace that owns its mount namespace; 0 for the host's.

        That user namespace need not be the one that the process is in.
        """
        fd = self.open("ns/mnt")
        try:
            user_fd = open_owner(fd)
        finally:
            os.close(fd)
        try:
            return _read_owner(user_fd)
        finally:
            os.close(user_fd)


def _read_at(folder_fd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        return read_all(fd)
    finally:
        os.close(fd)


def _read_state(folder_fd: int, name: str) -> bytes:
    """Return the state, such as b"S", in the file NAME, the `stat` of a thread in proc(5)."""
    return _read_at(folder_fd, name).rpartition(b") ")[2][:1]


def open_owner(namespace_fd: int) -> int:
    """Return a descriptor of the user namespace that owns the namespace NAMESPACE_FD (ioctl_ns(2))."""
    return fcntl.ioctl(namespace_fd, _NS_GET_USERNS)


def _read_owner(user_namespace_fd: int) -> int:
    (uid,) = struct.unpack("I", fcntl.ioctl(user_namespace_fd, _NS_GET_OWNER_UID, bytes(4)))
    return int(uid)


def parse_start_ticks(stat: bytes) -> int:
    """Return field 22, the start time in clock ticks since boot, of STAT, the text of /proc/PID/stat."""
    # The name of the process, field 2, may hold blanks and parentheses: the fields are counted from its end.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def read_start_ticks(pid: int) -> int | None:
    """Return the start time of process PID in clock ticks since boot; None when it has ended."""
    try:
        with Process(pid) as process:
            return process.read_start_ticks()
    except ProcessGone:
        return None


def read_all(fd: int) -> bytes:
    """Return all bytes from FD up to its end."""
    parts: list[bytes] = []
    while True:
        part = os.read(fd, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)


def read_pids() -> list[int]:
    """Return the pids of all processes that the caller can see now."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def set_title(title: str) -> None:
    """Show TITLE as the calling process's name and command line, as setproctitle does.

    This also clears the environment in /proc/PID/environ, which others may be able to read.
    """
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
    """Yield (pid, inode) for each open descriptor of one of INODES, each inode given as (device, number).

    Processes that the caller may not inspect in /proc are left out.
    """
    for pid in read_pids():
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # the process has ended, or the caller may not inspect it
        for name in names:
            try:
                status = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if (status.st_dev, status.st_ino) in inodes:
                yield pid, (status.st_dev, status.st_ino)


def is_alive(tid: int) -> bool:
    """Return True if a thread TID exists."""
    return os.path.exists(f"/proc/{tid}")


def read_threads(pid: int) -> list[int]:
    """Return the thread ids of process PID; [] when it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def read_task(tid: int) -> Task | None:
    """Return the Task that describes thread TID; None when it has ended."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            status = parse_status(file.read())
        with open(f"/proc/{tid}/comm", "rb") as file:
            # `comm` has the name as the process set it, while `status` escapes the name.
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
    """Return the pid of the parent of process PID; 0 when PID has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(stat[stat.rindex(b")") + 2 :].split()[1])


def read_comm(pid: int) -> str:
    """Return the name of process PID; '' when it has ended."""
    task = read_task(pid)
    return task.comm if task else ""


def end_children(limit_s: float) -> None:
    """Kill the children of this process, and their children, which become its own by that, until none is left, for LIMIT_S seconds at most.

    This process is a subreaper: see syscalls.set_child_subreaper.
    """
    end = time.monotonic() + limit_s
    own = str(os.getpid()).encode("ascii")
    while time.monotonic() < end:
        for pid in read_pids():
            with suppress(ProcessGone, OSError, IndexError), Process(pid) as process:
                if process.read("stat").rpartition(b")")[2].split()[1] == own:
                    process.kill(signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)
