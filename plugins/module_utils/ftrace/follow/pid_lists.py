# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lists of threads that an instance records: the control files set_event_pid and set_ftrace_pid, and who has to stand there."""

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
_FORGET_S = 5.0  # in which the kernel forgets a process that has ended
_LOOK_S = 0.005


def make_pid_lists(instance: Instance, target: Target | Awaited, settings: Settings, following: Following) -> PidLists:
    if isinstance(target, Awaited):
        return NobodyYet(instance, {EVENT_PIDS: set})
    lists: dict[str, Callable[[], set[int]]] = {EVENT_PIDS: partial(list_threads, target, following)}
    if settings.files.get("current_tracer") in tracers.FUNCTION_TRACERS:
        # No filter could keep the runtime's functions out, as those of events do.
        lists[tracers.PIDS] = partial(list_threads, target, replace(following, shim=None))
    return PidLists(instance, lists)


@dataclass(frozen=True)
class PidLists:
    """Who is to be recorded in INSTANCE: control files, and for each who lists the threads in it; EARLIER is who was in them before."""

    instance: Instance
    lists: dict[str, Callable[[], set[int]]]
    earlier: dict[str, set[int]] = field(default_factory=dict)

    def begin(self) -> None:
        """Record them, and nobody else any more; where that fails, a list may be empty."""
        self._clear()
        self.cover()

    def _clear(self) -> None:
        for file in self.lists:
            self.earlier[file] = self.instance.read_pids(file)
            self.instance.write(file, "")

    def restore(self) -> None:
        """Record who was recorded before; nobody where nobody of these is left."""
        for file, tids in self.earlier.items():
            self.instance.write(file, "")
            self.instance.add_pids(file, set(filter(processes.is_alive, tids)))
            if not self.instance.read_pids(file):
                _pass_through(self.instance, file)

    def cover(self) -> bool:
        """Record them, too; whether any had to be added."""
        changed = [cover_threads(self.instance, list_tids, file) for file, list_tids in self.lists.items()]
        return any(changed)

    def is_missing(self) -> bool:
        """Whether any has to be added."""
        return any(find_missing(self.instance, list_tids, file) for file, list_tids in self.lists.items())


class NobodyYet(PidLists):
    """A container that does not run has nobody to be recorded yet."""

    def begin(self) -> None:
        self._clear()
        for file in self.lists:
            _pass_through(self.instance, file)

    def cover(self) -> bool:
        return False


def cover_threads(instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS) -> bool:
    """Record the threads that LIST_TIDS names, by control file FILE; whether any had to be added.

    The kernel adds new threads of recorded ones (event-fork) and drops dead ones. A thread that starts between our look and
    our write is found by looking again. One that dies there stays in the list, and its number may go to a stranger one
    day: while nothing is recorded yet, such a list is written anew, a few times if need be.
    """
    changed = add_missing(instance, list_tids, file)
    for _round in range(_MAX_REWRITES):
        if instance.is_tracing() or all(processes.is_alive(tid) for tid in instance.read_pids(file)):
            break
        instance.write(file, "")
        add_missing(instance, list_tids, file)
    if not instance.read_pids(file):
        # The kernel would take an empty list for all processes of the host.
        raise ContainerGoneError(f"no thread for trace instance {instance.name} is left: its container has just ended")
    return changed


def find_missing(instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS) -> set[int]:
    """Threads that LIST_TIDS names, that live, and that are not in control file FILE of INSTANCE."""
    # In this order: who is born after the first look is in the second already (event-fork), and who died is not missed.
    wanted = list_tids()
    missing = wanted - instance.read_pids(file)
    return {tid for tid in missing if processes.is_alive(tid)}


def add_missing(
    instance: Instance, list_tids: Callable[[], set[int]], file: str = EVENT_PIDS, rounds: int = _MAX_ROUNDS
) -> bool:
    """Put threads that LIST_TIDS names into control file FILE of INSTANCE until none is missing, or for so many ROUNDS; whether any was.

    All of a round at once: the kernel takes some 20 ms for a write, whose effect comes at its beginning. A thread that comes between our
    look and our write may be nobody's child that is followed, so it is looked for again.
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
    """Have a process of ours been in the list of INSTANCE in control FILE: one that nobody has been in yet is the whole host to the kernel."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writer)
            os.read(reader, 1)  # until we let it go, or are gone
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
                f"the kernel does not take a process that has ended off {file} of trace instance {instance.name}"
            )
        time.sleep(_LOOK_S)
