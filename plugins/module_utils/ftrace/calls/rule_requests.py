# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make of options a rule and what its trace is to record: the values that a rule has by default, and the request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import pair_labels
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.plan import TraceRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import (
    limits,
    options,
    profiles,
    specification,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds

_DEFAULTS: dict[str, Any] = {
    "mode": "record",
    "ttl": "1h",
    "max_size": "256MiB",
    "when_full": "rotate",
    "paths": "auto",
    "max_containers": 100,
}
_ASK_FOR_EVENTS = ("profile", "syscalls", "events", "probes")
_CLOCKS = ("mono", "mono_raw", "boot")
# What belongs to one container's files or mounts, or to a start of one that is known.
_OF_ONE_CONTAINER = {
    "expose": "the files of a rule's trace are of several containers",
    "probes": "a probe belongs to a file of one container",
    "query": "an engine answers a query only when the start is over",
    "docker_host": "a rule is for all engines of the host",
    "follow_restarts": "a rule follows every start",
    "follow_tools": "our tools run in containers that are there already",
}


def complete(parameters: Mapping[str, Any], root: str, ttl: str | None = _DEFAULTS["ttl"]) -> dict[str, Any]:
    """Return PARAMETERS with the values that a rule has by default; raises FleetError for options that it cannot have.

    TTL is that of a rule for which PARAMETERS have none.
    """
    found = dict(parameters)
    for name, why in _OF_ONE_CONTAINER.items():
        if found[name]:
            raise FleetError(f"{name} cannot be used with state=awaiting: {why}")
    if found["mode"] == "ring":
        raise FleetError(
            "mode=ring cannot be used with state=awaiting: a ring is not sorted by container; leave mode out"
        )
    if found["tracer"] != "nop":
        raise FleetError(f"tracer={found['tracer']} cannot be used with state=awaiting: tracers do not follow a start")
    if found["clock"] not in _CLOCKS:
        raise FleetError(f"clock={found['clock']} cannot be used with state=awaiting: take one of {', '.join(_CLOCKS)}")
    if not found["follow_exec"]:
        raise FleetError(
            "follow_exec=false cannot be used with state=awaiting: a start is followed through the runtime"
        )
    if not any(found[name] for name in _ASK_FOR_EVENTS) and not found["errors_only"]:
        found["profile"] = "startup"
    found.update({name: value for name, value in {**_DEFAULTS, "ttl": ttl}.items() if found[name] is None})
    if found["max_containers"] < 1:
        raise FleetError(f"max_containers: {found['max_containers']} is too small")
    return profiles.complete(found, len(Instance(root, "..").list_cpus()))


def make_rule(parameters: Mapping[str, Any]) -> Rule:
    """Return the rule that PARAMETERS of ftrace_instance describe; raises FleetError for one that selects nothing, or has a wrong time."""
    patterns, labels = parameters["containers"], parameters["labels"]
    if not patterns and not labels:
        raise FleetError(
            "say which containers to await: give containers or labels (containers='*' means all that start)"
        )
    rule = Rule(
        name=parameters["rule"] or "",
        patterns=None if patterns is None else tuple(pattern.strip() for pattern in patterns),
        labels=pair_labels(labels),
        max_containers=parameters["max_containers"],
        max_time_s=parse_seconds(parameters["max_time"], "max_time"),
    )
    return rule if rule.name else replace(rule, name=rules.name_selection(rule))


def make_request(parameters: Mapping[str, Any], root: str) -> TraceRequest:
    """Return the request for the trace of a rule with complete PARAMETERS of ftrace_instance; raises FleetError for what cannot be recorded.

    ROOT is the tracefs.
    """
    wanted = options.find_specification(parameters, root)
    return TraceRequest(
        settings=specification.find_settings(replace(wanted, is_shared=True)),
        follow_exec=True,
        limits=limits.parse_limits(parameters),
        described=options.describe(parameters, wanted),
    )
