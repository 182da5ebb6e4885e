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
    Container,
    ContainerError,
    ContainerGoneError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome, undoing
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
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import take_back
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import (
    NOBODY,
    Awaited,
    Following,
    find_following,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.pid_lists import PidLists, make_pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, handover, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import NO_LIMITS, Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Settings, add_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import (
    check_possible,
    configure,
    read_settings,
    with_all_cpus,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

_MAX_EARLIER = 50
_AWAITABLE = ("docker", "podman")


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
        followed = make_pid_lists(one.instance, target, wish.settings, following)
        if check_mode:
            is_same = before == after and bool(metadata.read_record(one.instance))
            is_changed = not is_same or (not limits.restarts and followed.is_missing())
        else:
            if present is None:
                undo.callback(take_back, one, recordings.list_folders(one.instance.name))
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
    followed: PidLists,
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
