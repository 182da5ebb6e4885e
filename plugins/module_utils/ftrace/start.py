# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start traces of containers: make a plan for each container, read its present instance from tracefs, and change that to the plan."""

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
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import describe_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.plan import (
    Plan,
    Present,
    TraceRequest,
    make_plan,
    read_present,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, handover, recordings, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeSet
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes, probe_places
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import (
    check_possible,
    configure,
    read_settings,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

_MAX_EARLIER = 50
_AWAITABLE = ("docker", "podman")


@dataclass
class Started:
    """The result of a call.

    CHANGED: True if anything was changed.
    BEFORE, AFTER: container name → description of its trace, for a diff.
    MADE: the traces that were made.
    """

    changed: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    made: list[TraceInstance] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """The arguments that all containers of a call share, and the result of the call."""

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
    """Have each of CONTAINERS traced as REQUEST says, and return what was done; OUTCOME gets the failures.

    ROOT is the tracefs. If REQUEST follows restarts, a container that does not run is awaited; PREDICT_PLACE returns where its control
    group will be. BEGUN gets callbacks that remove all traces that were made; the caller closes it if it fails later.
    In CHECK_MODE nothing is changed. Raises TraceError, before any change, if the kernel cannot do what REQUEST asks for.
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
    probe_places.check_possible(root, request.probes)
    running = [container for container in left if not (restarts and container.may_start)]
    with open_targets(running, ended_ok=restarts, refuse=outcome.fail) as held, ExitStack() as binaries:
        by_id = {target.container.id: target for target in held}
        subjects: list[Target | Awaited] = []
        for container in outcome.list_left(left):
            with outcome.serve(container):
                subjects.append(by_id.get(container.id) or _await(call, container))

        def serve(bound: tuple[Target | Awaited, ProbeSet | FleetError]) -> None:
            subject, probes = bound
            with outcome.serve(subject.container):
                if isinstance(probes, FleetError):
                    raise probes
                _serve(call, subject, probes)

        found = list(zip(subjects, probe_places.bind_all(subjects, request.probes, binaries)))
        serve_in_turns(found, serve, lambda bound, error: outcome.fail(bound[0].container, error), Patience())
    return call.started


def ensure_awaiting(
    rule: Rule, outcome: Outcome, begun: ExitStack, root: str, request: TraceRequest, *, check_mode: bool
) -> Started:
    """Have the containers that RULE means traced from their starts on as REQUEST says, and return what was done.

    What runs already is not traced. ROOT is the tracefs. OUTCOME gets the failure. BEGUN gets what takes back what was begun. In CHECK_MODE
    nothing is changed. Raises FleetError if this kernel or host cannot do what REQUEST asks for.
    """
    container = rule.as_container()
    call = _Call(root, request, lambda _container: None, begun, Started(), check_mode)
    check_possible(root, request.settings, [find_instance(root, container).instance.name])
    handover.check_possible(request.limits, root, int(request.settings.files["buffer_size_kb"]))
    probe_places.check_possible(root, request.probes)
    awaited = Awaited(container, "", has_shim=True, rule=rule)
    with ExitStack() as binaries:
        (probes,) = probe_places.bind_all([awaited], request.probes, binaries)

        def serve(awaited: Awaited) -> None:
            with outcome.serve(container):
                if isinstance(probes, FleetError):
                    raise probes
                plan = make_plan(root, awaited, probes, request)
                _ensure(call, plan)
                if not check_mode:
                    # What killed recorders, and earlier boots, have left would else grow for ever.
                    recordings.remove_oldest(plan.instance.name, request.limits.max_bytes, kept=1)

        serve_in_turns([awaited], serve, lambda _awaited, error: outcome.fail(container, error), Patience())
    return call.started


def begin_rule(rule: Rule, root: str, request: TraceRequest, *, check_mode: bool = False) -> bool:
    """Begin RULE, or change it to what REQUEST says, with a recorder; return True if something had to be changed.

    ROOT is the tracefs. Raises FleetError if the rule cannot be begun or changed. In CHECK_MODE nothing is changed.
    """
    outcome = Outcome()
    with ExitStack() as begun:
        started = ensure_awaiting(rule, outcome, begun, root, request, check_mode=check_mode)
        outcome.raise_first()
        begun.pop_all()
    if not check_mode:
        client.ensure_recorder()  # somebody may have killed it
    return started.changed


def _check_running(container: Container) -> None:
    try:
        check_running(container)
    except ContainerError as error:
        may_await = container.may_start and container.runtime in _AWAITABLE
        hint = ", or trace its next start with follow_restarts=true" if may_await else ""
        raise ContainerError(f"{error}{hint}") from error


def _await(call: _Call, container: Container) -> Awaited:
    """Return CONTAINER, which does not run, as an awaited one; raises ContainerError if its start cannot be awaited."""
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


def _serve(call: _Call, subject: Target | Awaited, probes: ProbeSet) -> None:
    """Have SUBJECT traced; if it ends meanwhile and restarts are followed, await its next start."""
    try:
        _ensure(call, make_plan(call.root, subject, probes, call.request))
    except (ContainerGoneError, processes.ProcessGone):
        if not call.request.limits.restarts or isinstance(subject, Awaited):
            raise
        _ensure(call, make_plan(call.root, _await(call, subject.container), probes, call.request))


def _ensure(call: _Call, plan: Plan) -> None:
    """Carry out PLAN and note the result; after a failure a new instance is removed again."""
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
    """Return True if PLAN would change the PRESENT state."""
    if present.as_diff() != plan.as_diff() or not metadata.read_record(plan.instance):
        return True
    return not plan.limits.restarts and plan.pid_lists.is_missing()


def _note(call: _Call, plan: Plan, present: Present) -> None:
    """Note the PRESENT and the planned state for the diff, each with its time of expiry, which alone is no change."""
    before, name = present.as_diff(), plan.subject.container.name
    ttl_s = plan.limits.ttl_s
    planned = None if ttl_s is None else time.time() + ttl_s
    end = planned if call.check_mode else state.find_end(plan.instance.name)
    call.started.before[name] = before and _tell_end(before, present.expires)
    call.started.after[name] = _tell_end(plan.as_diff(), end)


def _tell_end(described: dict[str, Any], expires: float | None) -> dict[str, Any]:
    return {**described, "expires_at": None if expires is None else format_time(expires)}


def _undo(trace: TraceInstance, undo: ExitStack) -> None:
    """Close UNDO, which removes TRACE, while holding the trace's lock."""
    with hold_lock("trace-" + trace.short_id):
        undo.close()


def _bring_about(change: client.Change, plan: Plan, present: Present) -> bool:
    """Bring the trace from its PRESENT state to PLAN; return True if anything had to be changed."""
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
        # The container has ended since its trace was set up, and the trace has what was recorded until then.
    is_unknown = not is_other and not known
    if added or is_unknown:
        metadata.write_record(plan.instance, _describe_start(plan))
    # The recorder adds the threads of a container that starts just now, so a missing thread is no change by this call.
    return is_other or is_unknown or (added and not plan.limits.restarts)


def _set_up(change: client.Change, plan: Plan, present: Present, known: dict[str, Any]) -> None:
    """Make the instance, or change the PRESENT one with the record KNOWN, hand it over to the recorder, and switch it on."""
    instance, short_id = plan.instance, plan.subject.container.short_id

    def look_after() -> None:
        # The record is written before anything is traced, so that it tells the threads that are killed from now on.
        record = _describe_start(plan)
        metadata.write_record(instance, record)
        handover.begin(change, instance, plan.subject.container, plan.group, plan.limits, record, plan.rule)

    def restore() -> None:
        with suppress(FleetError, OSError):  # the reason of the refusal must not be hidden by a second error
            metadata.restore(instance, known)
            if order is not None:
                handover.resume(change, order)

    def remove_probes() -> None:
        with suppress(TraceError):
            installed_probes.remove_unused(instance, short_id, kept=earlier, busy_ok=True)

    earlier = installed_probes.list_defined(instance.root, short_id)
    order = state.find_order(instance.name)
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
    """Return the record of the trace's start for the manifest; it keeps an earlier start, whose events may still be in the buffer."""
    settings = plan.settings
    before = metadata.read_record(plan.instance)
    start = changed = clocks.measure_offset(settings.files["trace_clock"])
    if before.get("clock") == settings.files["trace_clock"]:
        start = before.get("start") or start
    # The record is read back from JSON, so the specification is compared in that form.
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
        metadata.HOLDINGS: metadata.find_holdings(before, is_recorded=plan.limits.is_recorded)
        or collect(plan.subject.container),
        "events": {**before.get("events", {}), **settings.switched, **settings.events},
        "limits": plan.limits.describe(),
        **({} if plan.rule is None else {"rule": plan.rule.describe()}),
        "followed": plan.following.describe(),
        "discarded": before.get("discarded"),
    }
