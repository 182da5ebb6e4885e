# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold the processes of a container by descriptors, so that what is read of them in /proc is of no other process."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from itertools import islice

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, open_process
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import MAX_PROCESSES, MAX_TEXT
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_MAX_PIDS = 65536
SPARE_DESCRIPTORS = 64  # for reading, beside those that hold processes


@dataclass(frozen=True)
class Members:
    """The processes of a container.

    HELD: processes that are held, in the order of pids; the container's first process comes first.
    LEFT_OUT: how many more there are.
    CONTAINER_ID, CGROUP: the container's id, and its first process's /proc/PID/cgroup.
    """

    held: list[Process]
    left_out: int
    container_id: str
    cgroup: bytes

    @property
    def first(self) -> Process:
        """Return the container's first process."""
        return self.held[0]


class Until:
    """The time that reading may take: SECONDS from now on."""

    def __init__(self, seconds: float) -> None:
        self._end_s = time.monotonic() + seconds

    def is_over(self) -> bool:
        """Return True if no time is left."""
        return time.monotonic() > self._end_s


def hold_members(container: Container) -> Members:
    """Return the processes of CONTAINER, which the caller has to close or to leave to its own end.

    Raises ContainerError or ProcessGone if the container does not run.
    """
    first = open_process(container)
    cgroup = first.read("cgroup")
    directory = cgroups.find_container_directory(cgroup, container.id)
    if directory is None:
        return Members([first], 0, container.id, cgroup)
    pids = sorted({*islice(cgroups.gen_pids(directory), _MAX_PIDS)} - {first.pid})
    most = min(MAX_PROCESSES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)
    held = []
    for pid in pids[: max(0, most - 1)]:
        try:
            held.append(Process(pid))
        except ProcessGone:
            continue
    # A process that ended before it was held may have left its pid to a process of the host, which the group does not list.
    listed = {*islice(cgroups.gen_pids(directory), _MAX_PIDS)}
    members = [first, *(process for process in held if process.pid in listed)]
    return Members(members, max(0, len(pids) + 1 - most), container.id, cgroup)


def hold_alone(first: Process, container_id: str) -> Members:
    """Return FIRST, the first process of the container with CONTAINER_ID, as its only member. Raises ProcessGone."""
    return Members([first], 0, container_id, first.read("cgroup"))


def decode(data: bytes) -> str:
    r"""Return DATA, a text of the container, cut after MAX_TEXT bytes; bytes that are no UTF-8 are escaped as \xff."""
    return data[:MAX_TEXT].decode("utf-8", "backslashreplace")
