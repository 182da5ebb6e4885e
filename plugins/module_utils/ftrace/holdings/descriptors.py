# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the open descriptors of a container's processes, with what they refer to. Source: proc_pid_fd(5)."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import (
    MAX_DESCRIPTORS,
    MAX_DESCRIPTORS_EACH,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import Members, Until, decode
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.sockets import describe_sockets
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

MAX_COUNT = 65536  # to count more of one process would take too long
_SOCKET = re.compile(r"socket:\[(\d{1,19})\]\Z")


def list_descriptors(members: Members, until: Until) -> tuple[list[dict[str, Any]], int]:
    """Return entries with pid, fd and target for the open descriptors of MEMBERS, and the number of those that are left out.

    Where there are too many, each process keeps its lowest and its highest ones: those it opened first, and those that a leak has left last.
    """
    numbers: list[tuple[Process, list[int]]] = []
    total = 0
    for process in members.held:
        try:
            numbers.append((process, _list_numbers(process)))
            total += count_open(process)
        except (ProcessGone, OSError):
            continue
        if until.is_over():
            break
    share = find_share([len(found) for _process, found in numbers], MAX_DESCRIPTORS)
    entries: list[dict[str, Any]] = []
    sockets = _Sockets()
    for process, found in numbers:
        for fd in choose(found, min(share, MAX_DESCRIPTORS - len(entries))):
            if until.is_over():
                break
            try:
                target = decode(os.fsencode(process.read_link(f"fd/{fd}")))
            except (ProcessGone, OSError):
                total -= 1  # it was closed meanwhile
                continue
            entries.append({"pid": process.pid, "fd": fd, "target": target})
            sockets.note(process, entries[-1])
    sockets.describe(until)
    return entries, max(0, total - len(entries))


def find_share(counts: Sequence[int], most: int) -> int:
    """Return how many descriptors each process may have, so that all together have MOST; COUNTS has the processes' numbers of them."""
    share = max(counts, default=0)
    while share > 1 and sum(min(count, share) for count in counts) > most:
        share -= max(1, share // 16)
    return max(1, share)


def choose(numbers: Sequence[int], most: int) -> list[int]:
    """Return at most MOST of NUMBERS, which are sorted: half of them the lowest, and half the highest."""
    if len(numbers) <= most:
        return list(numbers)
    high = most // 2
    return [*numbers[: most - high], *numbers[len(numbers) - high :]]


def count_open(process: Process) -> int:
    """Return how many descriptors PROCESS has open; MAX_COUNT if there are as many or more. Raises ProcessGone and OSError."""
    fd = process.open("fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        size = os.fstat(fd).st_size  # the number of descriptors since Linux 6.2, 0 before
        if not size:
            with os.scandir(fd) as names:
                size = sum(1 for _name in islice(names, MAX_COUNT))
        return min(size, MAX_COUNT)
    finally:
        os.close(fd)


def _list_numbers(process: Process) -> list[int]:
    """Return the lowest and the highest descriptors of PROCESS, which the kernel lists in order; of MAX_COUNT and more, not the highest."""
    fd = process.open("fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as names:
            return choose([int(name.name) for name in islice(names, MAX_COUNT)], MAX_DESCRIPTORS_EACH)
    finally:
        os.close(fd)


class _Sockets:
    """The entries that are sockets, by network namespace; each namespace is read once."""

    def __init__(self) -> None:
        self._processes: dict[str, list[Process]] = {}
        self._entries: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self._names: dict[int, str] = {}

    def note(self, process: Process, entry: dict[str, Any]) -> None:
        """Note ENTRY of PROCESS if it is a socket."""
        match = _SOCKET.match(entry["target"])
        if match is None:
            return
        try:
            name = self._names.get(process.pid) or process.namespace("net")
        except (ProcessGone, OSError):
            return
        if process.pid not in self._names:
            self._names[process.pid] = name
            self._processes.setdefault(name, []).append(process)
        self._entries.setdefault(name, []).append((int(match.group(1)), entry))

    def describe(self, until: Until) -> None:
        """Replace the targets of the noted entries by descriptions of the sockets, as far as UNTIL permits."""
        for name, entries in self._entries.items():
            wanted = {inode for inode, _entry in entries}
            found: dict[int, str] = {}
            for process in self._processes[name]:
                try:
                    found = describe_sockets(process, wanted, until)
                    break
                except (ProcessGone, OSError):
                    continue  # another process of the namespace may still be there
            for inode, entry in entries:
                entry["target"] = found.get(inode, entry["target"])
