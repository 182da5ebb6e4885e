# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn the options of ftrace_instance into a specification that this host's kernel can trace."""

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

_SYSTEMS_OF_USERS = ("synthetic:", "user_events:")  # events that users have defined, beside probes


def find_specification(parameters: Mapping[str, Any], root: str) -> Specification:
    """Return the specification that PARAMETERS of ftrace_instance ask for.

    ROOT is the kernel's tracefs. Raises FleetError for a value that is not valid and for what the kernel does not have.
    """
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
    """Return SPECIFICATION in the form of the manifest, with the profile that PARAMETERS name."""
    return {
        **vars(specification),
        "profile": parameters["profile"],
        "events": sorted(specification.events),
        "io_uring": any(event in specification.events for event in IO_URING_REQUESTS),
        "tracer": vars(specification.tracer),
        "syscalls": vars(specification.syscalls) if specification.syscalls is not None else None,
        "probes": [vars(probe) for probe in specification.probes],
        "paths": specification.paths.as_result() if specification.paths else None,
    }


def _find_events(requests: list[EventRequest], root: str) -> dict[str, EventRequest]:
    if not requests:
        return {}
    available = Instance(root, "..").read("available_events").split()
    # available_events does not list the system ftrace. They pass here, and check_possible refuses them with the right reason.
    own = [request.pattern for request in requests if request.pattern.startswith("ftrace:")]
    dynamic = {
        *(probe.event for probe in list_probes(root, "")),
        *(event for event in available if event.startswith(_SYSTEMS_OF_USERS)),
    }
    found = resolve(requests, [*available, *own], dynamic=dynamic, unfiltered=PROCESS_EVENTS)
    return {
        event: request
        for event, request in found.items()
        if not request.needed_field or has_field(root, event, request.needed_field)
    }


def _find_syscalls(parameters: Mapping[str, Any], profile: Profile) -> SyscallNumbers | None:
    """Return the numbers of the system calls to record; None to record no calls."""
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
