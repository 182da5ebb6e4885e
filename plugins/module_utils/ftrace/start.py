# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One trace instance per container: start, stop and remove it. What there is, is read from tracefs."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    ContainerError,
    ContainerGoneError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, Who, undoing
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Patience,
    Target,
    hold_lock,
    open_targets,
    serve_in_turns,
    try_lock,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import history, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import (
    EVENT_PIDS,
    NOBODY,
    Awaited,
    Following,
    add_missing,
    find_following,
    find_missing,
    list_threads,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import (
    client,
    handover,
    recordings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import NO_LIMITS, Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Settings, add_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import (
    check_possible,
    configure,
    parse_buffer_kb,
    read_settings,
    read_triggers,
    with_all_cpus,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    Instance,
    InstanceGone,
    TraceError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

NAME_PREFIX = "crashcart-"
_MAX_EARLIER = 50
_MAX_REWRITES = 5
_AWAITABLE = ("docker", "podman")
_FORGET_S = 5.0  # in which the kernel forgets a process that has ended
_LOOK_S = 0.005


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
    def who(self) -> Who:
        """Its container, as outcomes name it."""
        return Who(self.container_name, self.container_id)

    @property
    def short_id(self) -> str:
        """The container's short id, which the instance's name bears."""
        return self.instance.name[len(NAME_PREFIX) :][:SHORT_ID_LENGTH]

    @property
    def container_name(self) -> str:
        """The container's name, or what is left of its id."""
        return self.container.name if self.container else self.container_id

    def read_container(self) -> dict[str, Any] | None:
        """What is known here of a container that no runtime tells of, as a manifest says it; None for nothing."""
        exists = self.instance.exists()
        record = metadata.read_record(self.instance) if exists else metadata.read_removed(self.instance) or {}
        about: dict[str, Any] | None = record.get("container")
        found = recordings.list_recordings(self.instance.name)
        if about is None and found:
            about = found[-1].about["container"]
        return about or outbox.read_kept_container(self.instance.name)

    def find_state(self) -> str:
        """Its state in the words of ftrace_instance."""
        try:
            return "started" if self.instance.is_tracing() else "stopped"
        except InstanceGone:
            return "stopped"

    def as_result(self) -> dict[str, Any]:
        """What modules return of an instance, or of what is left of one in recordings."""
        instance = self.instance
        names = {"name": instance.name, "container": self.container_name, "id": self.container_id}
        try:
            return {**names, **self._describe()}
        except InstanceGone:
            nothing: dict[str, Any] = {
                "clock": None,
                "buffer_kb": 0,
                "events": {},
                "triggers": {},
                "tracer": None,
                "pids": 0,
                "cpus": [],
            }
            return {**names, "state": "stopped", **nothing, **handover.describe_state(instance, is_gone=True)}

    def _describe(self) -> dict[str, Any]:
        instance = self.instance
        statistics = {cpu: vars(instance.read_statistics(cpu)) for cpu in instance.list_cpus()}
        return {
            "state": "started" if instance.is_tracing() else "stopped",
            "clock": instance.read_clock(),
            "buffer_kb": parse_buffer_kb(instance.read("buffer_size_kb")),
            "events": instance.read_events(),
            "triggers": read_triggers(instance),
            "tracer": instance.read("current_tracer"),
            "probes": {one.name: one.line for one in installed_probes.list_own(instance, self.short_id)},
            "pids": len(instance.read_pids(EVENT_PIDS)),
            "cpus": [{"cpu": cpu, **counters} for cpu, counters in statistics.items()],
            **handover.describe_state(instance),
        }


def find_instance(root: str, container: Container) -> TraceInstance:
    """The instance of CONTAINER, whether it exists or not."""
    return TraceInstance(Instance(root, NAME_PREFIX + container.short_id), container)


def list_instances(root: str, containers: Sequence[Container]) -> list[TraceInstance]:
    """All instances of ours below the tracefs at ROOT, and those of which something is kept, with those of CONTAINERS that they are of."""
    # Root's go before those of users, who may take any id.
    by_id = {one.short_id: one for one in sorted(containers, key=lambda one: one.owner_uid is None)}
    try:
        present = os.listdir(os.path.join(root, "instances"))
    except FileNotFoundError:
        present = []
    names = sorted({*present, *recordings.list_names(), *outbox.list_kept_names(), *metadata.list_removed(root)})
    found = [
        TraceInstance(Instance(root, name), by_id.get(name[len(NAME_PREFIX) :][:SHORT_ID_LENGTH]))
        for name in names
        if name.startswith(NAME_PREFIX)
    ]
    return [one if _is_theirs(one) else replace(one, container=None) for one in found]


def _is_theirs(one: TraceInstance) -> bool:
    """Whether the trace may be its container's: a user may have taken the id of one that is gone."""
    if one.container is None or one.container.owner_uid is None:
        return True
    about = one.read_container()
    return about is not None and about.get("owner_uid") == one.container.owner_uid


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


@dataclass(frozen=True)
class _Followed:
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


class _Nobody(_Followed):
    """A container that does not run has nobody to be recorded yet."""

    def begin(self) -> None:
        self._clear()
        for file in self.lists:
            _pass_through(self.instance, file)

    def cover(self) -> bool:
        return False


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


def _find_followed(instance: Instance, target: Target | Awaited, settings: Settings, following: Following) -> _Followed:
    if isinstance(target, Awaited):
        return _Nobody(instance, {EVENT_PIDS: set})
    lists: dict[str, Callable[[], set[int]]] = {EVENT_PIDS: partial(list_threads, target, following)}
    if settings.files.get("current_tracer") in tracers.FUNCTION_TRACERS:
        # No filter could keep the runtime's functions out, as those of events do.
        lists[tracers.PIDS] = partial(list_threads, target, replace(following, shim=None))
    return _Followed(instance, lists)


def _find_group(target: Target | Awaited) -> str:
    """The folder of the control group of TARGET; '' where that is not known."""
    if isinstance(target, Awaited):
        return target.group
    return cgroups.find_container_directory(target.process.read("cgroup"), target.container.id) or ""


def _bears_id(group: str, container: Container) -> bool:
    """Whether control GROUP is called after CONTAINER's id, so that it is nobody else's and comes again with it."""
    return bool(cgroups.ENGINE_ID.match(container.id)) and container.id in group


@dataclass(frozen=True)
class Wish:
    """What to trace by SETTINGS and PROBES, of whom, within which LIMITS; DESCRIBED is what was asked for, for the manifest.

    FOLLOWING is how that is done for one container.
    """

    settings: Settings
    follow_exec: bool
    follow_tools: bool = False
    following: Following = NOBODY
    probes: Sequence[ProbeRequest] = ()
    limits: Limits = NO_LIMITS
    described: dict[str, Any] | None = None


@dataclass(frozen=True)
class Exposing:
    """How files of a trace come to be seen in its container, and go again; ENSURE tells whether there was anything to do."""

    ensure: Callable[[TraceInstance], bool]
    remove: Callable[[TraceInstance], Any]


NO_EXPOSING = Exposing(lambda _trace: False, lambda _trace: None)


@dataclass
class Started:
    """What was done for some containers: whether anything was, what was and is, by their names, for a diff, and which traces were MADE."""

    changed: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    made: list[TraceInstance] = field(default_factory=list)


def ensure_started(
    containers: Sequence[Container],
    outcome: Outcome,
    begun: ExitStack,
    root: str,
    wish: Wish,
    *,
    check_mode: bool,
    predict_place: Callable[[Container], Place | None] = lambda _container: None,
    exposing: Exposing = NO_EXPOSING,
) -> Started:
    """See to it that each of CONTAINERS is traced as WISH says, and shown by EXPOSING; OUTCOME gets those that are not.

    One that does not run is awaited, where WISH is for its starts: in the place that PREDICT_PLACE tells. BEGUN gets what undoes all
    that was made, for a caller that cannot tell of it.
    """
    restarts = wish.limits.restarts
    for container in containers:
        with outcome.serve(container):
            if not (restarts and container.may_start):
                _check_running(container)
    left = outcome.list_left(containers)
    started = Started()
    if not left:
        return started
    settings = wish.settings
    check_possible(root, settings, [find_instance(root, container).instance.name for container in left])
    handover.check_possible(wish.limits, root, int(settings.files["buffer_size_kb"]))
    installed_probes.check_possible(root, wish.probes)
    running = [container for container in left if not (restarts and container.may_start)]
    with open_targets(running, ended_ok=restarts, refuse=outcome.fail) as held, ExitStack() as binaries:
        by_id = {target.container.id: target for target in held}
        targets: list[Target | Awaited] = []
        for container in outcome.list_left(left):
            with outcome.serve(container):
                targets.append(by_id.get(container.id) or _await(container, wish, predict_place))

        def start(bound: tuple[Target | Awaited, installed_probes.ProbeSet | FleetError]) -> None:
            target, own_probes = bound
            with outcome.serve(target.container):
                if isinstance(own_probes, FleetError):
                    raise own_probes
                try:
                    _ensure_one(target, own_probes, root, wish, started, begun, exposing, check_mode=check_mode)
                except (ContainerGoneError, processes.ProcessGone):
                    if not restarts or isinstance(target, Awaited):
                        raise
                    awaited = _await(target.container, wish, predict_place)
                    _ensure_one(awaited, own_probes, root, wish, started, begun, exposing, check_mode=check_mode)

        found = list(zip(targets, installed_probes.bind_all(targets, wish.probes, binaries)))
        serve_in_turns(found, start, lambda bound, error: outcome.fail(bound[0].container, error), Patience())
    return started


def _check_running(container: Container) -> None:
    try:
        check_running(container)
    except ContainerError as error:
        may_await = container.may_start and container.runtime in _AWAITABLE
        hint = ", or trace its next start with follow_restarts=true" if may_await else ""
        raise ContainerError(f"{error}{hint}") from error


def _await(container: Container, wish: Wish, predict_place: Callable[[Container], Place | None]) -> Awaited:
    """CONTAINER, which does not run, as one whose start is awaited; raises ContainerError where that is not possible."""
    container = replace(container, pid=0, start_ticks=None)
    name = f"container {container.name} ({container.short_id})"
    if wish.settings.files.get("current_tracer") in tracers.FUNCTION_TRACERS:
        raise ContainerError(f"{name} does not run, and tracers of functions do not follow a start: start it first")
    place = predict_place(container)
    group = place and cgroups.find_common_directory(place.path)
    if not place or not group:
        raise ContainerError(
            f"{name} does not run, and its runtime does not say where its control group will be: start it first"
        )
    if not os.path.isdir(os.path.dirname(group)):
        raise ContainerError(
            f"{name} does not run, and {os.path.dirname(group)}, where its control group should be, is not there: start it, or any"
            " other container of its engine, first"
        )
    return Awaited(container, group, place.has_shim)


def _ensure_one(
    target: Target | Awaited,
    own_probes: installed_probes.ProbeSet,
    root: str,
    wish: Wish,
    started: Started,
    begun: ExitStack,
    exposing: Exposing,
    *,
    check_mode: bool,
) -> None:
    """See to it that TARGET is traced as WISH says, with OWN_PROBES, and note that in STARTED. Where that fails nothing of it is left."""
    container = target.container
    one = find_instance(root, container)
    group = _find_group(target)
    following = find_following(target, follow_exec=wish.follow_exec, tools=wish.follow_tools)
    following = replace(following, restarts=wish.limits.restarts and _bears_id(group, container))
    limits = replace(
        wish.limits,
        watch=following.is_watched,
        tools=following.tools,
        restarts=following.restarts,
        descends=following.restarts and following.descends,
    )
    own = replace(wish, following=following, limits=limits)
    wanted = with_all_cpus(add_probes(wish.settings, own_probes.list_events(), follow_exec=wish.follow_exec))
    with ExitStack() as stack:
        if not check_mode:
            stack.enter_context(try_lock("trace-" + container.short_id))
        undo = stack.enter_context(undoing())
        present = read_settings(one.instance, wanted) if one.instance.exists() else None
        is_on = present is not None and one.instance.is_tracing()
        kept = handover.describe_order(one.instance.name)
        end = handover.find_end(one.instance.name)
        before = {"state": "started" if is_on else "stopped", **vars(present), "limits": kept} if present else None
        after = {"state": "started", **vars(wanted), "limits": handover.describe_limits(limits, group)}
        followed = _find_followed(one.instance, target, wish.settings, following)
        if check_mode:
            is_same = before == after and bool(metadata.read_record(one.instance))
            is_changed = not is_same or (not limits.restarts and followed.is_missing())
        else:
            if present is None:
                undo.callback(_take_back, one, recordings.list_folders(one.instance.name))
                undo.callback(exposing.remove, one)
            with client.change(one.instance.name) as change:
                is_changed = _start(
                    change,
                    one.instance,
                    container,
                    group,
                    own,
                    wanted,
                    own_probes,
                    followed,
                    present,
                    is_other=before != after,
                )
        started.changed |= exposing.ensure(one) or is_changed
        if present is None and not check_mode:
            begun.callback(_undo, one, undo.pop_all())
            started.made.append(one)
        started.before[container.name] = before and _tell_end(before, end)
        planned = None if limits.ttl_s is None else time.time() + limits.ttl_s
        end = planned if check_mode else handover.find_end(one.instance.name)
        started.after[container.name] = _tell_end(after, end)


def _tell_end(described: dict[str, Any], expires: float | None) -> dict[str, Any]:
    """What is DESCRIBED for a diff, with when it EXPIRES, which is no difference by itself."""
    return {**described, "expires_at": None if expires is None else format_time(expires)}


def _undo(one: TraceInstance, undo: ExitStack) -> None:
    """Have UNDO take back what was made for ONE."""
    with hold_lock("trace-" + one.short_id):
        undo.close()


def _start(
    change: client.Change,
    instance: Instance,
    container: Container,
    group: str,
    wish: Wish,
    wanted: Settings,
    probes: installed_probes.ProbeSet,
    followed: _Followed,
    present: Settings | None,
    *,
    is_other: bool,
) -> bool:
    """Trace CONTAINER, whose control group is GROUP, in INSTANCE, whose PRESENT settings are other than WANTED or not.

    Whether anything had to be done.
    """

    def look_after() -> None:
        # Before anything is traced: what is killed from now on is known.
        record = _describe_start(instance, container, wish, wanted)
        metadata.write_record(instance, record)
        handover.begin(change, instance, container, group, wish.limits, record)

    known = metadata.read_record(instance)
    if is_other:
        earlier = installed_probes.list_defined(instance.root, container.short_id)
        order = handover.find_order(instance.name)
        try:
            if handover.end_recording(instance) and present is not None:
                present = read_settings(instance, wanted)
            define = partial(installed_probes.define, instance.root, probes)
            configure(instance, present, wanted, followed, define, look_after)
        except BaseException:
            with suppress(TraceError):
                installed_probes.remove_unused(instance, container.short_id, kept=earlier, busy_ok=True)
            if present is not None:
                with suppress(FleetError, OSError):  # what was refused comes first
                    metadata.restore(instance, known)
                    if order is not None:
                        handover.resume(change, order)
            raise
    elif wish.limits.ttl_s is not None:
        handover.renew(instance.name, wish.limits)
    added = False
    try:
        added = followed.cover()
    except (ContainerGoneError, processes.ProcessGone):
        if not is_other:
            raise
        # It has ended since it was set up: its trace is what it is.
    is_unknown = not is_other and not known
    if added or is_unknown:
        metadata.write_record(instance, _describe_start(instance, container, wish, wanted))
    # Of a container that starts the recorder adds threads at the same time: that is no change of ours.
    return is_other or is_unknown or (added and not wish.limits.restarts)


def _describe_start(instance: Instance, container: Container, wish: Wish, settings: Settings) -> dict[str, Any]:
    """What the manifest needs of now, beside what is known of an earlier start: that is still in the buffer."""
    before = metadata.read_record(instance)
    start = changed = clocks.measure_offset(settings.files["trace_clock"])
    if before.get("clock") == settings.files["trace_clock"]:
        start = before.get("start") or start
    # As JSON gives it back.
    specification = json.loads(json.dumps(wish.described)) or before.get("specification")
    earlier = before.get("earlier_syscalls", [])
    chosen = (before.get("specification") or {}).get("syscalls")
    if chosen is not None and chosen != (specification or {}).get("syscalls") and chosen not in earlier:
        earlier = [*earlier, chosen][-_MAX_EARLIER:]
    tasks = {task["tid"]: task for task in (*before.get("tasks", []), *list_tasks(container))}
    return {
        "begun": (before.get("begun") if "end" not in before else None) or history.describe_caller(),
        "clock": settings.files["trace_clock"],
        "container": describe_container(container),
        "start": start,
        "changed": changed,
        "specification": specification,
        "earlier_syscalls": earlier,
        "tasks": list(tasks.values()),
        "events": {**before.get("events", {}), **settings.switched, **settings.events},
        "limits": wish.limits.describe(),
        "followed": wish.following.describe(),
        "discarded": before.get("discarded"),
    }


def stop(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Stop recording in all of FOUND; they keep what they have. OUTCOME gets those that go on."""
    _change_each(found, outcome, _stop)


def _stop(one: TraceInstance) -> None:
    with client.change(one.instance.name) as change:
        was_on = one.find_state() == "started"
        # First: to its recorder it would be a trigger that stops the trace.
        handover.end_recording(one.instance)
        if was_on:
            one.instance.trace_off()
            record = metadata.read_record(one.instance)
            if record:
                end = clocks.measure_offset(one.instance.read_clock())
                metadata.write_record(one.instance, {**record, "end": end, "ended": history.describe_caller()})
        handover.end_limits(change, one.instance)


def remove(found: Sequence[TraceInstance], outcome: Outcome) -> None:
    """Remove all of FOUND with what they have recorded, in files, too. OUTCOME gets those that stay."""
    _change_each(found, outcome, _remove)


def _remove(one: TraceInstance) -> None:
    _take_back(one, [])
    outbox.remove_kept(one.instance.name)


def _change_each(found: Sequence[TraceInstance], outcome: Outcome, change: Callable[[TraceInstance], None]) -> None:
    """Call CHANGE with each of FOUND, while nobody else changes it; OUTCOME gets where that fails."""

    def serve(one: TraceInstance) -> None:
        with outcome.serve(one.who), try_lock("trace-" + one.short_id):
            change(one)

    serve_in_turns(found, serve, lambda one, error: outcome.fail(one.who, error), Patience())


def _take_back(one: TraceInstance, earlier: Sequence[str]) -> None:
    """Remove ONE with what it has recorded, but for the recordings in the folders EARLIER."""
    handover.forget(one.instance)
    one.instance.remove()
    metadata.remove_record(one.instance)
    # What others have switched on is a leftover from now on.
    installed_probes.remove_unused(one.instance, one.short_id, busy_ok=True)
    for folder in recordings.list_folders(one.instance.name):
        if folder not in earlier:
            recordings.remove(folder)


def remove_leftovers(root: str, *, busy_ok: bool, check_mode: bool) -> bool:
    """Remove the probes of instances that are gone, as after a killed task; whether there were any.

    Raises TraceError for those that others have switched on, unless BUSY_OK; all others are removed then.
    """
    if check_mode:
        return bool(installed_probes.list_orphans(root, NAME_PREFIX))
    return installed_probes.remove_orphans(root, NAME_PREFIX, busy_ok=busy_ok)
