# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the lists of threads that an instance records: its control files set_event_pid and set_ftrace_pid."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import (
    Awaited,
    Following,
    list_threads,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Settings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

EVENT_PIDS = "set_event_pid"
_MAX_ROUNDS = 100
_MAX_REWRITES = 5
_FORGET_S = 5.0  # the kernel takes a process that has ended off a list in this time
_LOOK_S = 0.005


def make_pid_lists(instance: Instance, target: Target | Awaited, settings: Settings, following: Following) -> PidLists:
    """Return the lists of threads that INSTANCE, with SETTINGS, has to record of TARGET, which is followed as FOLLOWING says."""
    if isinstance(target, Awaited):
        return NobodyYet(instance, {EVENT_PIDS: set})
    lists: dict[str, Callable[[], set[int]]] = {EVENT_PIDS: partial(list_threads, target, following)}
    if settings.files.get("current_tracer") in tracers.FUNCTION_TRACERS:
        # The shim is not in the list of a tracer of functions: the filters that leave the runtime out apply to events only.
        lists[tracers.PIDS] = partial(list_threads, target, replace(following, shim=None))
    return PidLists(instance, lists)


@dataclass(frozen=True)
class PidLists:
    """The lists of the threads that INSTANCE records.

    LISTS: control file → function that returns the threads to record.
    EARLIER: control file → threads that stood there before.
    """

    instance: Instance
    lists: dict[str, Callable[[], set[int]]]
    earlier: dict[str, set[int]] = field(default_factory=dict)

    def begin(self) -> None:
        """Record the listed threads and no others; after a failure a control file may be empty."""
        self._clear()
        self.cover()

    def _clear(self) -> None:
        for file in self.lists:
            self.earlier[file] = self.instance.read_pids(file)
            self.instance.write(file, "")

    def restore(self) -> None:
        """Record the threads that were recorded before begin, or no thread if none of them is left."""
        for file, tids in self.earlier.items():
            self.instance.write(file, "")
            self.instance.add_pids(file, set(filter(processes.is_alive, tids)))
            if not self.instance.read_pids(file):
                _pass_through(self.instance, file)

    def cover(self) -> bool:
        """Record the listed threads, too; return True if any had to be added."""
        changed = [cover_threads(self.instance, list_tids, file) for file, list_tids in self.lists.items()]
        return any(changed)

    def is_missing(self) -> bool:
        """Return True if a listed thread is not recorded."""
        return any(find_missing(self.instance, list_tids, file) for file, list_tids in self.lists.items())


class NobodyYet(PidLists):
    """The lists for a container that does not run: no thread is recorded yet."""

    def begin(self) -> None:
        """Record no thread."""
        self._clear()
        for file in self.lists:
            _pass_through(self.instance, file)

    def cover(self) -> bool:
        """Add no thread, and return False."""
        return False


def cover_threads(instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS) -> bool:
    """Record the threads that LIST_TIDS returns, by control file FILE; return True if any had to be added.

    The kernel adds new threads of recorded ones (event-fork) and drops dead threads. A thread that starts between our look and our write
    is found by looking again. A thread that dies in that time stays in the file, and another process may get its number one day. So a file
    with such a thread is written anew, a few times if need be, while nothing is recorded yet.
    Raises ContainerGoneError if no thread is left.
    """
    changed = add_missing(instance, list_tids, file)
    for _round in range(_MAX_REWRITES):
        if instance.is_tracing() or all(processes.is_alive(tid) for tid in instance.read_pids(file)):
            break
        instance.write(file, "")
        add_missing(instance, list_tids, file)
    if not instance.read_pids(file):
        # The kernel records all processes of the host where the list is empty.
        raise ContainerGoneError(f"no thread for trace instance {instance.name} is left: its container has just ended")
    return changed


def find_missing(instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS) -> set[int]:
    """Return the living threads that LIST_TIDS returns and that are not in control file FILE of INSTANCE."""
    # The order matters: the kernel has added a thread born after the first look (event-fork) by the second, and a dead one is not needed.
    wanted = list_tids()
    missing = wanted - instance.read_pids(file)
    return {tid for tid in missing if processes.is_alive(tid)}


def add_missing(
    instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS, rounds: int = _MAX_ROUNDS
) -> bool:
    """Add the threads that LIST_TIDS returns to control file FILE of INSTANCE until none is missing; return True if any was.

    ROUNDS is how many rounds are made at most. A round adds its threads with one write, which takes the kernel some 20 ms and has its
    effect at the beginning. A thread that comes between look and write may have no followed parent, so another round looks for it.
    """
    changed = False
    for _round in range(rounds):
        missing = find_missing(instance, list_tids, file)
        if not missing:
            break
        instance.add_pids(file, missing)
        changed = True
    return changed


def _pass_through(instance: Instance, file: str) -> None:
    """Put a process of ours into control FILE of INSTANCE until it ends: to the kernel a list that was never used means the whole host."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes its end, or ends
        finally:
            os._exit(0)
    try:
        os.close(reader)
        instance.add_pids(file, {child})
    finally:
        os.close(writer)
        os.waitpid(child, 0)
    deadline = time.monotonic() + _FORGET_S
    while child in instance.read_pids(file):
        if time.monotonic() > deadline:
            raise TraceError(
                f"the kernel does not remove a process that has ended from {file} of trace instance {instance.name}"
            )
        time.sleep(_LOOK_S)
