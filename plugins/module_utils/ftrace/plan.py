# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the trace of a container before anything is changed: what it is to be, and what is there at present."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import (
    Awaited,
    Following,
    find_following,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.pid_lists import PidLists, make_pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import NO_LIMITS, Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest, ProbeSet
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Settings, add_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import read_settings, with_all_cpus
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance


@dataclass(frozen=True)
class Exposing:
    """The functions that show files of a trace in its container, and take them away again.

    ENSURE returns True if it had anything to do.
    """

    ensure: Callable[[TraceInstance], bool]
    remove: Callable[[TraceInstance], Any]


NO_EXPOSING = Exposing(lambda _trace: False, lambda _trace: None)


@dataclass(frozen=True)
class TraceRequest:
    """A request for traces, the same for all containers of a call.

    SETTINGS, PROBES: what is traced.
    FOLLOW_EXEC: True if programs that the runtime starts in the container later are followed.
    FOLLOW_TOOLS: True if this collection's tools in the container are followed.
    LIMITS: when a trace ends, and what of a recording is kept.
    EXPOSING: how the container sees files of its trace.
    DESCRIBED: the request in the form of the manifest; None if there is none.
    """

    settings: Settings
    follow_exec: bool
    follow_tools: bool = False
    probes: Sequence[ProbeRequest] = ()
    limits: Limits = NO_LIMITS
    exposing: Exposing = NO_EXPOSING
    described: dict[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """The decisions for one container, made before anything is changed.

    TRACE: the trace to make or change.
    SUBJECT: the running container, or one whose start is awaited.
    GROUP: the folder of its control group; '' if that is not known.
    SETTINGS, PROBES: the settings, with the events of the container's probes; these probes.
    FOLLOWING: how the container's processes are followed.
    LIMITS: the requested limits as they apply to this container.
    PID_LISTS: the threads to record.
    DESCRIBED: the request in the form of the manifest.
    """

    trace: TraceInstance
    subject: Target | Awaited
    group: str
    settings: Settings
    probes: ProbeSet
    following: Following
    limits: Limits
    pid_lists: PidLists
    described: dict[str, Any] | None

    @property
    def rule(self) -> Rule | None:
        """Return the rule that the trace is for; None for one container."""
        return self.subject.rule if isinstance(self.subject, Awaited) else None

    @property
    def instance(self) -> Instance:
        """Return the trace's instance."""
        return self.trace.instance

    def as_diff(self) -> dict[str, Any]:
        """Return the planned state, for a diff."""
        return {
            "state": "started",
            **vars(self.settings),
            "limits": state.describe_limits(self.limits, self.group, self.rule),
        }


@dataclass(frozen=True)
class Present:
    """The present state of an instance.

    SETTINGS: its settings; None if it does not exist.
    IS_TRACING: True if tracing is on.
    LIMITS: the limits that the recorder applies, for a diff.
    EXPIRES: when its ttl ends, in seconds since the epoch; None if it has none.
    """

    settings: Settings | None
    is_tracing: bool
    limits: dict[str, Any]
    expires: float | None

    def as_diff(self) -> dict[str, Any] | None:
        """Return the present state, for a diff; None if the instance does not exist."""
        if self.settings is None:
            return None
        return {"state": "started" if self.is_tracing else "stopped", **vars(self.settings), "limits": self.limits}


def make_plan(root: str, subject: Target | Awaited, probes: ProbeSet, request: TraceRequest) -> Plan:
    """Return the plan that traces SUBJECT, with the container's own PROBES, as REQUEST says. ROOT is the tracefs."""
    trace = find_instance(root, subject.container)
    group = _find_group(subject)
    following = find_following(subject, follow_exec=request.follow_exec, tools=request.follow_tools)
    rule = subject.rule if isinstance(subject, Awaited) else None
    following = replace(following, restarts=request.limits.restarts and _bears_id(group, subject.container))
    limits = replace(
        request.limits,
        watch=following.is_watched and rule is None,
        tools=following.tools,
        restarts=following.restarts,
        descends=following.descends and (following.restarts or rule is not None),
    )
    settings = add_probes(request.settings, probes.list_events(), follow_exec=request.follow_exec)
    pid_lists = make_pid_lists(trace.instance, subject, request.settings, following)
    return Plan(trace, subject, group, with_all_cpus(settings), probes, following, limits, pid_lists, request.described)


def _find_group(subject: Target | Awaited) -> str:
    """Return the folder of the control group of SUBJECT; '' if it is not known."""
    if isinstance(subject, Awaited):
        return subject.group
    return cgroups.find_container_directory(subject.process.read("cgroup"), subject.container.id) or ""


def _bears_id(group: str, container: Container) -> bool:
    """Return True if GROUP has CONTAINER's id in its name: no other container uses it then, and each start of this one does."""
    return bool(cgroups.ENGINE_ID.match(container.id)) and container.id in group


def read_present(plan: Plan) -> Present:
    """Return the present state of the instance that PLAN is for."""
    name, exists = plan.instance.name, plan.instance.exists()
    return Present(
        read_settings(plan.instance, plan.settings) if exists else None,
        exists and plan.instance.is_tracing(),
        state.describe_order(name),
        state.find_end(name),
    )
