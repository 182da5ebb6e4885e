# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The seccomp filters of containers' first processes, read once for each start of a container and kept in a folder that only root enters.

To read them stops that process for some ten microseconds (linux/seccomp.py), which a workload should not meet with every command.
A file is named after the process and how many filters it had, so a later start, or a process that has installed one more, has another.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, seccomp
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder

_MAX_BYTES = 8 << 20  # the kernel's bound is some 32,000 instructions for all of a process, twice that in digits


@dataclass(frozen=True)
class FilterSource:
    """A process under seccomp filters: its PID, when it started (field 22 of /proc/PID/stat), and how many it has; 0 is not known."""

    pid: int
    start_ticks: int
    count: int

    @property
    def file_name(self) -> str:
        """The name of the file that keeps its filters."""
        return f"{self.pid}-{self.start_ticks}-{self.count}"


def open_folder(path: str) -> int:
    """Return a descriptor of the folder PATH, which only root can enter; it is made where it is missing."""
    make_folder(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def read(source: FilterSource, folder_fd: int) -> list[bytes]:
    """Return the filters of SOURCE in the order of their installation, from the folder FOLDER_FD or from the process itself.

    Raises OSError with the way out where the process has to be read and cannot be.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(source.file_name, flags, 0o600, dir_fd=folder_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two that read at once would stop the process twice, or disturb each other
        kept = _load(fd)
        # Before Linux 5.9 nobody tells how many there are, and the process may have installed another one.
        if kept is not None and source.count == len(kept):
            return kept
        found = _read_process(source.pid)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps([one.hex() for one in found]).encode("ascii"), 0)
        _remove_ended(folder_fd)
        return found
    except OSError:
        _remove(source.file_name, folder_fd)
        raise
    finally:
        os.close(fd)


def _load(fd: int) -> list[bytes] | None:
    """Return what is kept in FD; None where it is empty or was not written to its end."""
    try:
        return [bytes.fromhex(one) for one in json.loads(os.pread(fd, _MAX_BYTES, 0))]
    except ValueError:
        return None


def _read_process(pid: int) -> list[bytes]:
    try:
        return seccomp.read_filters(pid)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the seccomp filter of its first process ({pid}) cannot be read ({error.strerror}): that takes a kernel with"
            " CONFIG_CHECKPOINT_RESTORE, and nobody else who traces that process; without it attach the tools with"
            " crashcart_attach and use the runtime's own exec",
        ) from error


def _remove_ended(folder_fd: int) -> None:
    """Remove the files of processes that are gone."""
    for name in os.listdir(folder_fd):
        pid, _dash, rest = name.partition("-")
        if not pid.isdigit() or str(processes.read_start_ticks(int(pid))) != rest.partition("-")[0]:
            _remove(name, folder_fd)


def _remove(name: str, folder_fd: int) -> None:
    with suppress(OSError):  # somebody else has
        os.unlink(name, dir_fd=folder_fd)
