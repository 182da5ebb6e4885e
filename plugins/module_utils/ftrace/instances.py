# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One trace instance per container: start, stop and remove it. What there is, is read from tracefs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, hold_lock, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.specification import Settings
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance, TraceError

NAME_PREFIX = "crashcart-"
_SHIM_NAME = "containerd-shim"
_MAX_ROUNDS = 100
_MAX_REWRITES = 5
_PAGE_KB = 4


@dataclass(frozen=True)
class TraceInstance:
    """An instance of ours and its container; CONTAINER is None when its engine knows it no more."""

    instance: Instance
    container: Container | None

    @property
    def container_id(self) -> str:
        """The container's id, or what the instance's name says of it."""
        return self.container.id if self.container else self.instance.name[len(NAME_PREFIX) :]

    @property
    def short_id(self) -> str:
        """The container's short id, which the instance's name bears."""
        return self.instance.name[len(NAME_PREFIX) :][:SHORT_ID_LENGTH]

    @property
    def container_name(self) -> str:
        """The container's name, or what is left of its id."""
        return self.container.name if self.container else self.container_id

    def find_state(self) -> str:
        """Its state in the words of ftrace_instance."""
        return "started" if self.instance.is_tracing() else "stopped"

    def as_result(self) -> dict[str, Any]:
        """What modules return of an instance."""
        instance = self.instance
        statistics = {cpu: vars(instance.read_statistics(cpu)) for cpu in instance.list_cpus()}
        return {
            "name": instance.name,
            "container": self.container_name,
            "id": self.container_id,
            "state": self.find_state(),
            "clock": instance.read_clock(),
            "buffer_kb": parse_buffer_kb(instance.read("buffer_size_kb")),
            "events": instance.read_events(),
            "pids": len(instance.read_event_pids()),
            "cpus": [{"cpu": cpu, **counters} for cpu, counters in statistics.items()],
        }


def parse_buffer_kb(text: str) -> int:
    """Kibibytes per CPU from the text of buffer_size_kb, which before the first use reads '7 (expanded: 1408)'."""
    words = text.split()
    return int(words[0]) if words and words[0].isdigit() else 0


def find_instance(root: str, container: Container) -> TraceInstance:
    """The instance of CONTAINER, whether it exists or not."""
    return TraceInstance(Instance(root, NAME_PREFIX + container.short_id), container)


def list_instances(root: str, containers: Sequence[Container]) -> list[TraceInstance]:
    """All instances of ours below the tracefs at ROOT, with those of CONTAINERS that they belong to."""
    by_id = {container.short_id: container for container in containers}
    try:
        names = sorted(os.listdir(os.path.join(root, "instances")))
    except FileNotFoundError:
        return []
    return [
        TraceInstance(Instance(root, name), by_id.get(name[len(NAME_PREFIX) :][:SHORT_ID_LENGTH]))
        for name in names
        if name.startswith(NAME_PREFIX)
    ]


def read_settings(instance: Instance, wanted: Settings) -> Settings:
    """The present values of the files that WANTED names, and all enabled events."""
    files = {name: instance.read(name) for name in wanted.files}
    files["trace_clock"] = instance.read_clock()
    # The kernel rounds a buffer up to whole pages, and newer ones say so.
    wanted_kb = int(wanted.files["buffer_size_kb"])
    if 0 <= parse_buffer_kb(files["buffer_size_kb"]) - wanted_kb <= _PAGE_KB:
        files["buffer_size_kb"] = str(wanted_kb)
    return Settings(files, instance.read_events())


def list_threads(target: Target, *, follow_exec: bool) -> set[int]:
    """Threads whose events belong to the container, as the host numbers them: with FOLLOW_EXEC its shim's, too,
    of which everything that `docker exec` starts descends."""
    directory = cgroups.find_container_directory(target.process.read("cgroup"))
    pids = {target.process.pid, *(cgroups.gen_pids(directory) if directory else ())}
    if follow_exec:
        pids.add(find_shim(target))
    return {tid for pid in pids for tid in processes.read_threads(pid)}


def find_shim(target: Target) -> int:
    """The pid of the container's shim; raises TraceError when its parent is none."""
    parent = processes.read_parent(target.process.pid)
    task = processes.read_task(parent) if parent > 1 else None
    if task is None or not task.comm.startswith(_SHIM_NAME):
        name = repr(task.comm) if task else "the host's first process"
        raise TraceError(
            f"container {target.container.name} is no child of {_SHIM_NAME} but of {name}, so what is exec'ed in it cannot"
            " be followed: use follow_exec=false"
        )
    return parent


def find_missing(instance: Instance, list_tids: Callable[[], set[int]]) -> set[int]:
    """Threads that LIST_TIDS names, that live, and that INSTANCE does not record."""
    # In this order: who is born after the first look is in the second already (event-fork), and who died is not missed.
    wanted = list_tids()
    missing = wanted - instance.read_event_pids()
    return {tid for tid in missing if processes.is_alive(tid)}


def cover_threads(instance: Instance, list_tids: Callable[[], set[int]]) -> bool:
    """Record the threads that LIST_TIDS names; whether any had to be added.

    The kernel adds new threads of recorded ones (event-fork) and drops dead ones. A thread that starts between our look and
    our write is found by looking again. One that dies there stays in the list, and its number may go to a stranger one
    day: while nothing is recorded yet, such a list is written anew, a few times if need be.
    """
    changed = _add_missing(instance, list_tids)
    for _round in range(_MAX_REWRITES):
        if instance.is_tracing() or all(processes.is_alive(tid) for tid in instance.read_event_pids()):
            break
        instance.write("set_event_pid", "")
        _add_missing(instance, list_tids)
    if not instance.read_event_pids():
        # The kernel would take an empty list for all processes of the host.
        raise TraceError(f"no thread for trace instance {instance.name} is left: its container has just ended")
    return changed


def _add_missing(instance: Instance, list_tids: Callable[[], set[int]]) -> bool:
    changed = False
    for _round in range(_MAX_ROUNDS):
        missing = find_missing(instance, list_tids)
        if not missing:
            break
        instance.add_event_pids(missing)
        changed = True
    return changed


def ensure_started(
    containers: Sequence[Container], root: str, settings: Settings, *, follow_exec: bool, check_mode: bool
) -> tuple[bool, dict[str, Any], dict[str, Any]]:
    """See to it that each of CONTAINERS is traced by SETTINGS: changed, and before and after for a diff."""
    changed = False
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    made: list[TraceInstance] = []  # to be taken away again if a later one fails: nobody would know of them
    for container in containers:
        check_running(container)
    _check_possible(root, settings, len(containers))
    with open_targets(containers) as targets:
        for target in targets:
            if follow_exec:
                find_shim(target)
        for target in targets:
            name = target.container.name
            instance = find_instance(root, target.container).instance
            with ExitStack() as stack:
                if not check_mode:
                    stack.enter_context(hold_lock("trace-" + target.container.short_id))
                present = read_settings(instance, settings) if instance.exists() else None
                is_on = present is not None and instance.is_tracing()
                before[name] = {"state": "started" if is_on else "stopped", **vars(present)} if present else None
                after[name] = {"state": "started", **vars(settings)}
                one_changed = before[name] != after[name]
                list_tids = partial(list_threads, target, follow_exec=follow_exec)
                if check_mode:
                    changed |= one_changed or bool(find_missing(instance, list_tids))
                    continue
                if one_changed:
                    try:
                        _configure(instance, present, settings, list_tids)
                    except BaseException:
                        remove(made)
                        raise
                    if present is None:
                        made.append(TraceInstance(instance, target.container))
                changed |= one_changed or cover_threads(instance, list_tids)
    return changed, before, after


def _check_possible(root: str, settings: Settings, count: int) -> None:
    """Raise TraceError for events that the kernel does not have, and for buffers that the host has no memory for."""
    for event in settings.events:
        folder = os.path.join(root, "events", *event.split(":"))
        if not os.path.isdir(folder):
            raise TraceError(f"the kernel has no event {event!r}; ftrace_info lists those it has")
        if not all(os.path.exists(os.path.join(folder, name)) for name in ("enable", "filter")):
            raise TraceError(f"event {event!r} is the kernel's own and cannot be switched on; choose another")
    cpus = len(Instance(root, "..").list_cpus())
    buffer_kb = int(settings.files["buffer_size_kb"])
    with open("/proc/meminfo", encoding="ascii") as file:
        available_kb = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    if buffer_kb * cpus * count > available_kb // 2:
        raise TraceError(
            f"buffer_size: {buffer_kb} KiB on {cpus} CPUs for {count} containers is {buffer_kb * cpus * count} KiB,"
            f" more than half of the {available_kb} KiB that the host has free: ask for less"
        )


def _configure(
    instance: Instance, present: Settings | None, settings: Settings, list_tids: Callable[[], set[int]]
) -> None:
    """Bring INSTANCE to SETTINGS and start it; where that fails it is as it was before, or gone if it was made here."""
    was_on = present is not None and instance.is_tracing()
    if present is None:
        instance.create()
    try:
        instance.trace_off()
        _write_settings(instance, present, settings)
        cover_threads(instance, list_tids)
        instance.trace_on()
    except BaseException:
        if present is None:
            instance.remove()
        else:
            _write_settings(instance, None, present)
            if was_on:
                instance.trace_on()
        raise


def _write_settings(instance: Instance, present: Settings | None, settings: Settings) -> None:
    """Bring INSTANCE to SETTINGS; what is so in PRESENT already is left alone."""
    for name, value in settings.files.items():
        if present is None or present.files[name] != value:
            instance.write(name, value)
    if present is None or present.events != settings.events:
        instance.events_disable()
        for event, event_filter in settings.events.items():
            instance.event_enable(event, event_filter)


def stop(found: Sequence[TraceInstance]) -> None:
    """Stop recording in all of FOUND; they keep what they have."""
    for one in found:
        one.instance.trace_off()


def remove(found: Sequence[TraceInstance]) -> None:
    """Remove all of FOUND with what they have recorded."""
    for one in found:
        with hold_lock("trace-" + one.short_id):
            one.instance.remove()
