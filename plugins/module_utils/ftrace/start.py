# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""See to it that containers are traced: a plan for each, and what is there changed to it. What is there is read from tracefs."""

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


@dataclass(frozen=True)
class Exposing:
    """How files of a trace come to be seen in its container, and go again; ENSURE tells whether there was anything to do."""

    ensure: Callable[[TraceInstance], bool]
    remove: Callable[[TraceInstance], Any]


NO_EXPOSING = Exposing(lambda _trace: False, lambda _trace: None)


@dataclass(frozen=True)
class TraceRequest:
    """What is asked for, alike for all containers of a call.

    SETTINGS and PROBES say what is traced, LIMITS how far, EXPOSING what its container sees of it. DESCRIBED is the request for the manifest.
    """

    settings: Settings
    follow_exec: bool
    follow_tools: bool = False
    probes: Sequence[ProbeRequest] = ()
    limits: Limits = NO_LIMITS
    exposing: Exposing = NO_EXPOSING
    described: dict[str, Any] | None = None


@dataclass
class Started:
    """What was done for some containers: whether anything was, what was and is, by their names, for a diff, and which traces were MADE."""

    changed: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    made: list[TraceInstance] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """All that is decided for one container before anything is changed.

    SUBJECT is the container, held, or one whose start is awaited, and GROUP its control group's folder, '' where that is not known.
    SETTINGS have the events of its PROBES, LIMITS what of them this container allows.
    """

    trace: TraceInstance
    subject: Target | Awaited
    group: str
    settings: Settings
    probes: installed_probes.ProbeSet
    following: Following
    limits: Limits
    pid_lists: PidLists
    described: dict[str, Any] | None

    @property
    def instance(self) -> Instance:
        """The instance that is to record."""
        return self.trace.instance

    def as_diff(self) -> dict[str, Any]:
        """Return what there will be, for a diff."""
        return {"state": "started", **vars(self.settings), "limits": handover.describe_limits(self.limits, self.group)}


@dataclass(frozen=True)
class Present:
    """What kernel and recorder say of an instance now: its SETTINGS (None: there is no instance), its LIMITS, and when it EXPIRES."""

    settings: Settings | None
    is_tracing: bool
    limits: dict[str, Any]
    expires: float | None

    def as_diff(self) -> dict[str, Any] | None:
        """Return what there is, for a diff; None where there is no instance."""
        if self.settings is None:
            return None
        return {"state": "started" if self.is_tracing else "stopped", **vars(self.settings), "limits": self.limits}


@dataclass(frozen=True)
class _Call:
    """What is the same for all containers of a call. BEGUN gets what undoes all that was made."""

    root: str
    request: TraceRequest
    predict_place: Callable[[Container], Place | None]
    begun: ExitStack
    started: Started
    check_mode: bool


def ensure_started(
    containers: Sequence[Container],
    outcome: Outcome,
    begun: ExitStack,
    root: str,
    request: TraceRequest,
    *,
    check_mode: bool,
    predict_place: Callable[[Container], Place | None] = lambda _container: None,
) -> Started:
    """See to it that each of CONTAINERS is traced as REQUEST says; OUTCOME gets those that are not.

    One that does not run is awaited, where REQUEST is for its starts: in the place that PREDICT_PLACE tells. BEGUN gets what undoes all
    that was made, for a caller that cannot tell of it.
    """
    call = _Call(root, request, predict_place, begun, Started(), check_mode)
    restarts = request.limits.restarts
    for container in containers:
        with outcome.serve(container):
            if not (restarts and container.may_start):
                _check_running(container)
    left = outcome.list_left(containers)
    if not left:
        return call.started
    check_possible(root, request.settings, [find_instance(root, container).instance.name for container in left])
    handover.check_possible(request.limits, root, int(request.settings.files["buffer_size_kb"]))
    installed_probes.check_possible(root, request.probes)
    running = [container for container in left if not (restarts and container.may_start)]
    with open_targets(running, ended_ok=restarts, refuse=outcome.fail) as held, ExitStack() as binaries:
        by_id = {target.container.id: target for target in held}
        subjects: list[Target | Awaited] = []
        for container in outcome.list_left(left):
            with outcome.serve(container):
                subjects.append(by_id.get(container.id) or _await(call, container))

        def serve(bound: tuple[Target | Awaited, installed_probes.ProbeSet | FleetError]) -> None:
            subject, probes = bound
            with outcome.serve(subject.container):
                if isinstance(probes, FleetError):
                    raise probes
                _serve(call, subject, probes)

        found = list(zip(subjects, installed_probes.bind_all(subjects, request.probes, binaries)))
        serve_in_turns(found, serve, lambda bound, error: outcome.fail(bound[0].container, error), Patience())
    return call.started


def _check_running(container: Container) -> None:
    try:
        check_running(container)
    except ContainerError as error:
        may_await = container.may_start and container.runtime in _AWAITABLE
        hint = ", or trace its next start with follow_restarts=true" if may_await else ""
        raise ContainerError(f"{error}{hint}") from error


def _await(call: _Call, container: Container) -> Awaited:
    """Return CONTAINER, which does not run, as one whose start is awaited; raises ContainerError where that is not possible."""
    container = replace(container, pid=0, start_ticks=None)
    name = f"container {container.name} ({container.short_id})"
    if call.request.settings.files.get("current_tracer") in tracers.FUNCTION_TRACERS:
        raise ContainerError(f"{name} does not run, and tracers of functions do not follow a start: start it first")
    place = call.predict_place(container)
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


def _serve(call: _Call, subject: Target | Awaited, probes: installed_probes.ProbeSet) -> None:
    """See to it that SUBJECT is traced, or its next start where it ends meanwhile and that was asked for."""
    try:
        _ensure(call, make_plan(call.root, subject, probes, call.request))
    except (ContainerGoneError, processes.ProcessGone):
        if not call.request.limits.restarts or isinstance(subject, Awaited):
            raise
        _ensure(call, make_plan(call.root, _await(call, subject.container), probes, call.request))


def make_plan(root: str, subject: Target | Awaited, probes: installed_probes.ProbeSet, request: TraceRequest) -> Plan:
    """Return how SUBJECT is to be traced, with its own PROBES, as REQUEST says."""
    trace = find_instance(root, subject.container)
    group = _find_group(subject)
    following = find_following(subject, follow_exec=request.follow_exec, tools=request.follow_tools)
    following = replace(following, restarts=request.limits.restarts and _bears_id(group, subject.container))
    limits = replace(
        request.limits,
        watch=following.is_watched,
        tools=following.tools,
        restarts=following.restarts,
        descends=following.restarts and following.descends,
    )
    settings = add_probes(request.settings, probes.list_events(), follow_exec=request.follow_exec)
    pid_lists = make_pid_lists(trace.instance, subject, request.settings, following)
    return Plan(trace, subject, group, with_all_cpus(settings), probes, following, limits, pid_lists, request.described)


def _find_group(subject: Target | Awaited) -> str:
    """Return the folder of the control group of SUBJECT; '' where that is not known."""
    if isinstance(subject, Awaited):
        return subject.group
    return cgroups.find_container_directory(subject.process.read("cgroup"), subject.container.id) or ""


def _bears_id(group: str, container: Container) -> bool:
    """Return True if control GROUP is called after CONTAINER's id, so that it is nobody else's and comes again with it."""
    return bool(cgroups.ENGINE_ID.match(container.id)) and container.id in group


def read_present(plan: Plan) -> Present:
    """Return what there is of the instance that PLAN is for."""
    name, exists = plan.instance.name, plan.instance.exists()
    return Present(
        read_settings(plan.instance, plan.settings) if exists else None,
        exists and plan.instance.is_tracing(),
        handover.describe_order(name),
        handover.find_end(name),
    )


def _ensure(call: _Call, plan: Plan) -> None:
    """See to it that there is what PLAN says, and note that. Where that fails nothing of it is left."""
    trace, exposing = plan.trace, call.request.exposing
    with ExitStack() as stack:
        if not call.check_mode:
            stack.enter_context(try_lock("trace-" + trace.short_id))
        undo = stack.enter_context(undoing())
        present = read_present(plan)
        is_new = present.settings is None
        if call.check_mode:
            is_changed = _foresee(plan, present)
        else:
            if is_new:
                undo.callback(take_back, trace, recordings.list_folders(trace.instance.name))
                undo.callback(exposing.remove, trace)
            with client.change(trace.instance.name) as change:
                is_changed = _bring_about(change, plan, present)
        call.started.changed |= exposing.ensure(trace) or is_changed
        if is_new and not call.check_mode:
            call.begun.callback(_undo, trace, undo.pop_all())
            call.started.made.append(trace)
        _note(call, plan, present)


def _foresee(plan: Plan, present: Present) -> bool:
    """Return whether PLAN would change anything of what is PRESENT."""
    if present.as_diff() != plan.as_diff() or not metadata.read_record(plan.instance):
        return True
    return not plan.limits.restarts and plan.pid_lists.is_missing()


def _note(call: _Call, plan: Plan, present: Present) -> None:
    """Note what was PRESENT and what there is by PLAN, each with its end, which is no difference by itself."""
    before, name = present.as_diff(), plan.subject.container.name
    ttl_s = plan.limits.ttl_s
    planned = None if ttl_s is None else time.time() + ttl_s
    end = planned if call.check_mode else handover.find_end(plan.instance.name)
    call.started.before[name] = before and _tell_end(before, present.expires)
    call.started.after[name] = _tell_end(plan.as_diff(), end)


def _tell_end(described: dict[str, Any], expires: float | None) -> dict[str, Any]:
    return {**described, "expires_at": None if expires is None else format_time(expires)}


def _undo(trace: TraceInstance, undo: ExitStack) -> None:
    """Have UNDO take back what was made for TRACE."""
    with hold_lock("trace-" + trace.short_id):
        undo.close()


def _bring_about(change: client.Change, plan: Plan, present: Present) -> bool:
    """Trace as PLAN says, where that is not so at PRESENT; return whether anything had to be done."""
    known = metadata.read_record(plan.instance)
    is_other = present.as_diff() != plan.as_diff()
    if is_other:
        _set_up(change, plan, present, known)
    elif plan.limits.ttl_s is not None:
        handover.renew(plan.instance.name, plan.limits)
    added = False
    try:
        added = plan.pid_lists.cover()
    except (ContainerGoneError, processes.ProcessGone):
        if not is_other:
            raise
        # It has ended since it was set up: its trace is what it is.
    is_unknown = not is_other and not known
    if added or is_unknown:
        metadata.write_record(plan.instance, _describe_start(plan))
    # Of a container that starts the recorder adds threads at the same time: that is no change of ours.
    return is_other or is_unknown or (added and not plan.limits.restarts)


def _set_up(change: client.Change, plan: Plan, present: Present, known: dict[str, Any]) -> None:
    """Make the instance, or change the one that is PRESENT and of whose start KNOWN tells, and have it looked after and on."""
    instance, short_id = plan.instance, plan.subject.container.short_id

    def look_after() -> None:
        # Before anything is traced: what is killed from now on is known.
        record = _describe_start(plan)
        metadata.write_record(instance, record)
        handover.begin(change, instance, plan.subject.container, plan.group, plan.limits, record)

    def restore() -> None:
        with suppress(FleetError, OSError):  # what was refused comes first
            metadata.restore(instance, known)
            if order is not None:
                handover.resume(change, order)

    def remove_probes() -> None:
        with suppress(TraceError):
            installed_probes.remove_unused(instance, short_id, kept=earlier, busy_ok=True)

    earlier = installed_probes.list_defined(instance.root, short_id)
    order = handover.find_order(instance.name)
    settings = present.settings
    with ExitStack() as undo:
        if settings is not None:
            undo.callback(restore)
        undo.callback(remove_probes)
        if handover.end_recording(instance) and settings is not None:
            settings = read_settings(instance, plan.settings)
        define = partial(installed_probes.define, instance.root, plan.probes)
        configure(instance, settings, plan.settings, plan.pid_lists, define, look_after)
        undo.pop_all()


def _describe_start(plan: Plan) -> dict[str, Any]:
    """Return what the manifest needs of now, beside what is known of an earlier start: that is still in the buffer."""
    settings = plan.settings
    before = metadata.read_record(plan.instance)
    start = changed = clocks.measure_offset(settings.files["trace_clock"])
    if before.get("clock") == settings.files["trace_clock"]:
        start = before.get("start") or start
    # As JSON gives it back.
    specification = json.loads(json.dumps(plan.described)) or before.get("specification")
    earlier = before.get("earlier_syscalls", [])
    chosen = (before.get("specification") or {}).get("syscalls")
    if chosen is not None and chosen != (specification or {}).get("syscalls") and chosen not in earlier:
        earlier = [*earlier, chosen][-_MAX_EARLIER:]
    tasks = {task["tid"]: task for task in (*before.get("tasks", []), *list_tasks(plan.subject.container))}
    return {
        "begun": (before.get("begun") if "end" not in before else None) or history.describe_caller(),
        "clock": settings.files["trace_clock"],
        "container": describe_container(plan.subject.container),
        "start": start,
        "changed": changed,
        "specification": specification,
        "earlier_syscalls": earlier,
        "tasks": list(tasks.values()),
        "events": {**before.get("events", {}), **settings.switched, **settings.events},
        "limits": plan.limits.describe(),
        "followed": plan.following.describe(),
        "discarded": before.get("discarded"),
    }
