# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collect what the processes of a container hold and wait for at one moment: descriptors, system calls, limits, sizes of file systems.

All of it is the container's to choose, and some of it may hang: a process whose execve waits for a file system that never answers, or a
mount put in the way. So a child that can be killed collects it, part by part, each within bounds of number and time.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Dict

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import MAX_PROCESSES
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.descriptors import list_descriptors
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import (
    SPARE_DESCRIPTORS,
    Members,
    Until,
    hold_members,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.resources import list_limits, read_group
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.sizes import list_sizes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.waits import list_waits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, open_files
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

Holdings = Dict[str, Any]
_READ_S = 0.5  # for one part, where nothing hangs; then the rest is left out
_HANG_S = 2.0  # after which a part is given up
_PARTS: tuple[tuple[str, Callable[[Members, Until], Any]], ...] = (
    ("descriptors", list_descriptors),
    ("waits", list_waits),
    ("limits", lambda members, until: [*list_limits(members, until), read_group(members)]),
    ("sizes", lambda members, until: list_sizes(members.first, until)),
)


def collect(container: Container | None) -> Holdings:
    """Return what the processes of CONTAINER hold and wait for now; empty if the container does not run.

    The keys are time_ns (real time), descriptors, waits, resource_limits (None where it could not be read), and left_out (key → number).
    """
    if container is None or container.pid <= 1:
        return {}
    time_ns = time.time_ns()
    held: list[Members] = []  # each child has its own copy

    def read(index: int) -> Any:
        try:
            if not held:
                held.append(hold_members(container))
            return _PARTS[index][1](held[0], Until(_READ_S))
        except (FleetError, ProcessGone):
            return None

    try:
        with open_files.allow(MAX_PROCESSES + SPARE_DESCRIPTORS):
            outcomes = bounded.run(len(_PARTS), read, (), _HANG_S)
    except OSError:
        return {}  # a host that has no room for a child has none for this
    found = {
        name: None if isinstance(outcome, OSError) else outcome for (name, _read), outcome in zip(_PARTS, outcomes)
    }
    return _arrange(found, time_ns) if any(outcome is not None for outcome in found.values()) else {}


def _arrange(found: dict[str, Any], time_ns: int) -> Holdings:
    """Return the holdings that were FOUND, by the names of parts, at TIME_NS."""
    descriptors, waits, limits, sizes = (found[name] for name, _read in _PARTS)
    resources, left_out = None, 0
    if limits is not None:
        processes, left_out, group = limits
        mounts, mounts_left_out = sizes or ([], 0)
        left_out += mounts_left_out
        resources = {"processes": processes, "group": group, "mounts": mounts}
    return {
        "time_ns": time_ns,
        "descriptors": descriptors and descriptors[0],
        "waits": waits and waits[0],
        "resource_limits": resources,
        "left_out": {
            "descriptors": descriptors[1] if descriptors else 0,
            "waits": waits[1] if waits else 0,
            "resource_limits": left_out,
        },
    }
