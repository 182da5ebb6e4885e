# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe traces for the results of modules, also those whose container no runtime lists any more."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.pid_lists import EVENT_PIDS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup import installed_probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import (
    parse_buffer_kb,
    read_triggers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, InstanceGone


def read_container(trace: TraceInstance) -> dict[str, Any] | None:
    """Return the description of a container that no runtime lists any more, in the form of a manifest; None if nothing is known.

    It comes from the record of TRACE, from its last recording, or from a capture that is kept on the host.
    """
    exists = trace.instance.exists()
    record = metadata.read_record(trace.instance) if exists else metadata.read_removed(trace.instance) or {}
    about: dict[str, Any] | None = record.get("container")
    found = recordings.list_recordings(trace.instance.name)
    if about is None and found:
        about = found[-1].about["container"]
    return about or outbox.read_kept_container(trace.instance.name)


def describe_trace(trace: TraceInstance) -> dict[str, Any]:
    """Return what the modules return of TRACE; if its instance is gone, what its recordings tell."""
    instance = trace.instance
    names = {"name": instance.name, "container": trace.container_name, "id": trace.container_id}
    try:
        return {**names, **_describe(trace.instance, trace.short_id)}
    except InstanceGone:
        nothing: dict[str, Any] = {
            "clock": None,
            "buffer_kb": 0,
            "events": {},
            "triggers": {},
            "tracer": None,
            "probes": {},
            "pids": 0,
            "cpus": [],
        }
        return {**names, "state": "stopped", **nothing, **state.describe_state(instance, is_gone=True)}


def _describe(instance: Instance, short_id: str) -> dict[str, Any]:
    statistics = {cpu: vars(instance.read_statistics(cpu)) for cpu in instance.list_cpus()}
    return {
        "state": "started" if instance.is_tracing() else "stopped",
        "clock": instance.read_clock(),
        "buffer_kb": parse_buffer_kb(instance.read("buffer_size_kb")),
        "events": instance.read_events(),
        "triggers": read_triggers(instance),
        "tracer": instance.read("current_tracer"),
        "probes": {probe.name: probe.line for probe in installed_probes.list_own(instance, short_id)},
        "pids": len(instance.read_pids(EVENT_PIDS)),
        "cpus": [{"cpu": cpu, **counters} for cpu, counters in statistics.items()],
        **state.describe_state(instance),
    }
