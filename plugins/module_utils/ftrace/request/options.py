# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the options of ftrace_instance to a specification, by what this host's kernel has."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import paths, probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import (
    EventRequest,
    parse_request,
    resolve,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.profiles import (
    IO_URING_REQUESTS,
    PROFILES,
    Profile,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    PROCESS_EVENTS,
    Specification,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.tracers import TracerRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.dynamic_events import list_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import (
    SyscallNumbers,
    find_numbers,
    join_numbers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, has_field
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes

_SYSTEMS_OF_USERS = ("synthetic:", "user_events:")  # what somebody has defined, beside probes


def find_specification(parameters: Mapping[str, Any], root: str) -> Specification:
    """What PARAMETERS ask of the kernel of the tracefs at ROOT. Raises FleetError for what it does not have."""
    profile = PROFILES[parameters["profile"]] if parameters["profile"] else Profile()
    own = [parse_request(entry) for entry in parameters["events"]]
    syscalls = _find_syscalls(parameters, profile)
    return Specification(
        events=_find_events([*profile.events, *own], root),
        syscalls=syscalls,
        errors_only=parameters["errors_only"] or profile.errors_only,
        buffer_kb=parse_bytes(parameters["buffer_size"], "buffer_size") // 1024,
        clock=parameters["clock"],
        follow_exec=parameters["follow_exec"],
        is_recorded=parameters["mode"] == "record",
        tracer=TracerRequest(
            tracer=parameters["tracer"],
            functions=tuple(parameters["functions"]),
            notrace=tuple(parameters["notrace"]),
        ),
        probes=tuple(map(probes.parse_request, parameters["probes"])),
        paths=paths.choose_plan(root, syscalls, parameters["paths"], parameters["paths_by"]),
    )


def describe(parameters: Mapping[str, Any], specification: Specification) -> dict[str, Any]:
    """SPECIFICATION for the manifest, with the profile that it comes from."""
    return {
        **vars(specification),
        "profile": parameters["profile"],
        "events": sorted(specification.events),
        "io_uring": any(event in specification.events for event in IO_URING_REQUESTS),
        "tracer": vars(specification.tracer),
        "syscalls": vars(specification.syscalls) if specification.syscalls is not None else None,
        "probes": [vars(one) for one in specification.probes],
        "paths": specification.paths.as_result() if specification.paths else None,
    }


def _find_events(requests: list[EventRequest], root: str) -> dict[str, EventRequest]:
    if not requests:
        return {}
    available = Instance(root, "..").read("available_events").split()
    # The kernel's own events stand in no list; that they cannot be had is said later.
    own = [one.pattern for one in requests if one.pattern.startswith("ftrace:")]
    dynamic = {
        *(one.event for one in list_probes(root, "")),
        *(event for event in available if event.startswith(_SYSTEMS_OF_USERS)),
    }
    found = resolve(requests, [*available, *own], dynamic=dynamic, unfiltered=PROCESS_EVENTS)
    return {
        event: one for event, one in found.items() if not one.needed_field or has_field(root, event, one.needed_field)
    }


def _find_syscalls(parameters: Mapping[str, Any], profile: Profile) -> SyscallNumbers | None:
    """The calls to record; None for none of them."""
    compat = parameters["compat"]
    parts = []
    if profile.syscalls:
        parts.append(find_numbers(profile.syscalls, compat=compat, missing_ok=True))
    if parameters["syscalls"]:
        parts.append(find_numbers(parameters["syscalls"], compat=compat))
    if parts:
        return join_numbers(parts)
    is_nothing_named = (
        not any(parameters[name] for name in ("events", "profile", "probes")) and parameters["tracer"] == "nop"
    )
    return SyscallNumbers() if is_nothing_named or parameters["errors_only"] else None
