# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seccomp filters of containers' first processes, read once for each start of a container and kept in a folder that only root enters.

Reading the filters stops the process for some ten microseconds (linux/seccomp.py), which must not happen to a workload with every command.
A file is named after the process and its number of filters. So a later start of the container, or a further filter, gets another file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, seccomp
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder

_MAX_BYTES = 8 << 20  # the kernel allows a process some 32,000 instructions, and their digits take twice their size


@dataclass(frozen=True)
class FilterSource:
    """A process under seccomp filters.

    START_TICKS: when it started (field 22 of /proc/PID/stat). COUNT: the number of its filters, 0 where it is not known.
    """

    pid: int
    start_ticks: int
    count: int

    @property
    def file_name(self) -> str:
        """Return the name of the file that keeps the process's filters."""
        return f"{self.pid}-{self.start_ticks}-{self.count}"


def open_folder(path: str) -> int:
    """Return a descriptor of the folder PATH, which only root can enter; the folder is made where it is missing."""
    make_folder(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def read(source: FilterSource, folder_fd: int) -> list[bytes]:
    """Return the filters of SOURCE in the order of their installation, from the folder FOLDER_FD or from the process itself.

    Raises OSError, with advice for users, where the process has to be read and cannot be.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(source.file_name, flags, 0o600, dir_fd=folder_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two readers at once would stop the process twice, or disturb each other
        kept = _load(fd)
        # Before Linux 5.9 the kernel does not tell the number of filters, and the process may have installed another one.
        if kept is not None and source.count == len(kept):
            return kept
        found = _read_process(source.pid)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps([program.hex() for program in found]).encode("ascii"), 0)
        _remove_ended(folder_fd)
        return found
    except OSError:
        _remove(source.file_name, folder_fd)
        raise
    finally:
        os.close(fd)


def _load(fd: int) -> list[bytes] | None:
    """Return the filters that are kept in FD; None where FD is empty or was not written completely."""
    try:
        return [bytes.fromhex(digits) for digits in json.loads(os.pread(fd, _MAX_BYTES, 0))]
    except ValueError:
        return None


def _read_process(pid: int) -> list[bytes]:
    try:
        return seccomp.read_filters(pid)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the seccomp filter of its first process ({pid}) cannot be read ({_explain(pid, error)}): use rights=host, or attach the tools"
            " with crashcart_attach and use the runtime's own exec",
        ) from error


def _explain(pid: int, error: OSError) -> str:
    """Return why ERROR has come of reading the filters of thread PID."""
    if error.errno == errno.EINVAL:
        return "the kernel has no CONFIG_CHECKPOINT_RESTORE"
    with suppress(OSError), open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
        if file.read().strip() == "3":
            return "kernel.yama.ptrace_scope is 3, so nobody may trace a process until the next boot"
    with suppress(processes.ProcessGone), processes.Process(pid) as process:
        tracer = int(processes.parse_status(process.read("status")).get("TracerPid", 0))
        if tracer:
            return f"process {tracer} of the host, {processes.read_comm(tracer)}, traces it"
    return str(error.strerror)


def _remove_ended(folder_fd: int) -> None:
    """Remove the files of processes that have ended."""
    for name in os.listdir(folder_fd):
        pid, _dash, rest = name.partition("-")
        if not pid.isdigit() or str(processes.read_start_ticks(int(pid))) != rest.partition("-")[0]:
            _remove(name, folder_fd)


def _remove(name: str, folder_fd: int) -> None:
    with suppress(OSError):  # another process has removed it
        os.unlink(name, dir_fd=folder_fd)
