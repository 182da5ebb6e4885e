# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define a container's probes in the kernel, list and remove them; probe_places.py finds where they go.

The probes are in groups of the container's own, and a group's name has a digest of its definitions. So the kernel tells which probes are
defined. A change defines new probes beside the old ones and switches the old ones off. The old ones stay as long as the instance: its
buffer may hold their events, which cannot be read without their formats.
"""

from __future__ import annotations

import re
from typing import Collection

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import GROUP_PREFIX, ProbeSet
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_GROUP = re.compile(rf"{GROUP_PREFIX}([0-9a-f]{{{SHORT_ID_LENGTH}}})_")
_REMOVE_TIMEOUT_S = 3.0


def define(root: str, probes: ProbeSet) -> None:
    """Define those of PROBES that the kernel of the tracefs at ROOT does not have yet.

    A probe of the same name in the same group is the same probe, because the group's name has a digest of its definitions.
    """
    for definition in probes.definitions:
        if not dynamic_events.exists(root, f"{probes.group}:{definition.name}"):
            dynamic_events.define(root, definition.file, definition.format(probes.group))


def list_defined(root: str, short_id: str) -> list[dynamic_events.Probe]:
    """Return the probes of the container with SHORT_ID, on or off, that the kernel of the tracefs at ROOT has."""
    return dynamic_events.list_probes(root, f"{GROUP_PREFIX}{short_id}_")


def list_own(instance: Instance, short_id: str) -> list[dynamic_events.Probe]:
    """Return the probes of the container with SHORT_ID that are on in INSTANCE."""
    return [probe for probe in list_defined(instance.root, short_id) if dynamic_events.is_on(instance, probe.event)]


def remove_unused(
    instance: Instance, short_id: str, *, kept: Collection[dynamic_events.Probe] = (), busy_ok: bool = False
) -> bool:
    """Remove the probes of the container with SHORT_ID that are neither on in INSTANCE nor among those KEPT.

    Returns True if any was removed. Raises TraceError for probes that other people have switched on, unless BUSY_OK; the rest is removed.
    """
    found = [probe for probe in list_defined(instance.root, short_id) if probe not in kept]
    has_instance = instance.exists()
    removed = False
    failures: list[str] = []
    for probe in found:
        if has_instance and dynamic_events.is_on(instance, probe.event):
            continue
        try:
            dynamic_events.remove(instance.root, probe, _REMOVE_TIMEOUT_S if not failures else 0.0)
            removed = True
        except TraceError as error:
            failures.append(str(error))
    if failures and not busy_ok:
        raise TraceError("; ".join(failures))
    return removed


def list_orphans(root: str, prefix: str) -> set[str]:
    """Return the short ids of containers that have probes but no instance, as a killed task leaves them.

    ROOT is the tracefs; an instance's name is PREFIX and the short id.
    """
    matches = (_GROUP.match(probe.group) for probe in dynamic_events.list_probes(root, GROUP_PREFIX))
    short_ids = {match[1] for match in matches if match}
    return {short_id for short_id in short_ids if not Instance(root, prefix + short_id).exists()}


def remove_orphans(root: str, prefix: str, *, busy_ok: bool) -> bool:
    """Remove the probes of containers that have no instance; return True if any was removed.

    ROOT is the tracefs; an instance's name is PREFIX and the container's short id.
    Raises TraceError, when all were tried, for probes that other people have switched on, unless BUSY_OK.
    """
    removed = False
    failures = []
    for short_id in sorted(list_orphans(root, prefix)):
        with hold_lock("trace-" + short_id):
            # Another task may have made the instance before the lock was held.
            if not Instance(root, prefix + short_id).exists():
                try:
                    removed |= remove_unused(Instance(root, prefix + short_id), short_id, busy_ok=busy_ok)
                except TraceError as error:
                    failures.append(str(error))
    if failures:
        raise TraceError("; ".join(failures))
    return removed
