# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that use attached tools: finding them, waiting for them and killing them."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import parse_device
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone, read_pids

_PAUSE_S = 0.05
_LOOK_S = 5.0  # for the look at one process


@dataclass(frozen=True)
class ToolUser:
    """A process that uses tools; PID is its number on the host."""

    pid: int
    comm: str

    def __str__(self) -> str:
        return f"{self.comm!r} (pid {self.pid})"


def find_users(target: Target, path: str) -> list[ToolUser]:
    """Return the processes in TARGET's mount namespace that run from PATH, have their root or current folder in it, or hold it open."""
    return [user for user, process in _gen_users(target, path)]


def end_users(target: Target, path: str, timeout_s: float, *, kill: bool) -> None:
    """Wait until no process uses the tools at PATH in TARGET, for TIMEOUT_S at most; with KILL these processes are killed meanwhile."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        is_used = False
        for _user, process in _gen_users(target, path):
            is_used = True
            if kill:
                process.kill(signal.SIGKILL)
        if not is_used:
            return
        time.sleep(_PAUSE_S)


def _gen_users(target: Target, path: str) -> Iterator[tuple[ToolUser, Process]]:
    """Yield each user of the tools with its process held open, so that a signal cannot reach another process."""
    namespace = target.process.namespace("mnt")
    devices = {mount.device for mount in target.read_mounts() if mount.mount_point == path}
    for pid in read_pids():
        with suppress(ProcessGone, OSError), Process(pid) as process:
            if process.namespace("mnt") == namespace and _uses(process, path, devices):
                comm = process.read("comm").decode("utf-8", "replace").rstrip("\n")
                yield ToolUser(pid, comm), process


def find_device_users(device: str) -> list[str]:
    """Return the processes on the host that run from the file system on DEVICE (major:minor), stand in it or hold it open, in words."""
    number = parse_device(device)
    pids = sorted(read_pids())

    def look(index: int) -> str | None:
        with suppress(ProcessGone, OSError), Process(pids[index]) as process:
            is_user = _maps(process, {device})
            for link in [] if is_user else _list_links(process):
                with suppress(OSError):  # closed meanwhile
                    is_user = is_user or os.stat(f"/proc/{process.pid}/{link}").st_dev == number
            if is_user:
                return str(ToolUser(process.pid, process.read("comm").decode("utf-8", "replace").rstrip("\n")))
        return None

    # Each look is bounded: a process may hold a file open on a file system that never answers. Such a process is left out.
    found = bounded.run(len(pids), look, (), _LOOK_S)
    return [text for text in found if isinstance(text, str)]


def _list_links(process: Process) -> list[str]:
    fds_fd = process.open("fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return ["cwd", "root", *(f"fd/{fd}" for fd in os.listdir(fds_fd))]
    finally:
        os.close(fds_fd)


def _uses(process: Process, path: str, devices: set[str]) -> bool:
    for link in _list_links(process):
        with suppress(OSError, ProcessGone):  # closed meanwhile
            if (process.read_link(link) + "/").startswith(path + "/"):
                return True
    return _maps(process, devices)


def _maps(process: Process, devices: set[str]) -> bool:
    for line in process.read("maps").decode("utf-8", "replace").split("\n"):
        fields = line.split(None, 5)
        if len(fields) > 3:
            major, _colon, minor = fields[3].partition(":")
            if f"{int(major, 16)}:{int(minor, 16)}" in devices:
                return True
    return False
