# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the limits of a container and of its processes, and how far they are used. Sources: proc_pid_limits(5), cgroups(7), cgroup-v2.rst."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import GROUP, MAX_NUMBER
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.descriptors import count_open
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import Members, Until
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone

_MAX_BYTES = 4096
_LIMITS = {"nofile": b"Max open files", "nproc": b"Max processes"}
_NAME_WIDTH = 26  # of the column of names


def parse_limits(text: bytes) -> dict[str, int | None]:
    """Return the soft limits nofile and nproc in TEXT, a process's /proc/PID/limits; None is for no limit."""
    found: dict[str, int | None] = {}
    for line in text.split(b"\n"):
        for name, title in _LIMITS.items():
            if line[:_NAME_WIDTH].rstrip() == title:
                found[name] = _bound(cgroups.parse_number(line[_NAME_WIDTH:].split()[0]))
    return found


def _bound(number: int | None) -> int | None:
    return None if number is None else min(number, MAX_NUMBER - 1)


def list_limits(members: Members, until: Until) -> tuple[list[dict[str, Any]], int]:
    """Return entries with pid, nofile, nproc and open (the number of open descriptors) for MEMBERS, and the number of those left out."""
    entries: list[dict[str, Any]] = []
    for place, process in enumerate(members.held):
        if until.is_over():
            return entries, members.left_out + len(members.held) - place
        try:
            entries.append({"pid": process.pid, **parse_limits(process.read("limits")), "open": count_open(process)})
        except (ProcessGone, OSError):
            continue
    return entries, members.left_out


def read_group(members: Members) -> dict[str, int | None]:
    """Return the limits of the control group of MEMBERS and how far they are used, by the names of cgroup v2; None is for no limit.

    The result lacks what the kernel does not tell.
    """
    memberships = cgroups.parse_cgroup(members.cgroup)
    mounts = read_mounts("self", " - cgroup")
    found: dict[str, int | None] = {}
    for controller, readers in (("pids", _PIDS), ("memory", _MEMORY)):
        place = cgroups.find_controller_directory(memberships, mounts, controller, members.container_id)
        if place is not None:
            folder, is_v1 = place
            found.update(readers[is_v1](partial(_read, folder)))
    return {name: found[name] for name in GROUP if name in found}


def _read(folder: str, name: str) -> bytes | None:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return None


_Read = Callable[[str], "bytes | None"]


def _pick(read: _Read, names: Mapping[str, str]) -> dict[str, int | None]:
    """Return name → number for NAMES (name → file), as far as READ finds them; None is for no limit."""
    texts = {name: read(file) for name, file in names.items()}
    return {name: _bound(cgroups.parse_number(text)) for name, text in texts.items() if text is not None}


def _pick_flat(read: _Read, file: str, names: Mapping[str, str]) -> dict[str, int | None]:
    """Return name → number for NAMES (name → name in FILE), as far as READ finds them."""
    found = cgroups.parse_flat(read(file) or b"")
    return {name: min(found[word], MAX_NUMBER - 1) for name, word in names.items() if word in found}


def _read_pids(read: _Read) -> dict[str, int | None]:
    return {
        **_pick(read, {"pids.max": "pids.max", "pids.current": "pids.current"}),
        **_pick_flat(read, "pids.events", {"pids.events.max": "max"}),
    }


def _read_memory(read: _Read) -> dict[str, int | None]:
    names = ("memory.max", "memory.current", "memory.swap.max", "memory.swap.current")
    events = {f"memory.events.{word}": word for word in ("max", "oom", "oom_kill")}
    return {**_pick(read, {name: name for name in names}), **_pick_flat(read, "memory.events", events)}


def _read_memory_v1(read: _Read) -> dict[str, int | None]:
    found = _pick(
        read,
        {
            "memory.max": "memory.limit_in_bytes",
            "memory.current": "memory.usage_in_bytes",
            "both.max": "memory.memsw.limit_in_bytes",
            "both.current": "memory.memsw.usage_in_bytes",
            "memory.events.max": "memory.failcnt",
        },
    )
    # Version 1 counts swap together with memory.
    for name in ("max", "current"):
        both, memory = found.pop(f"both.{name}", None), found.get(f"memory.{name}")
        if both is not None and memory is not None:
            found[f"memory.swap.{name}"] = both if both >= cgroups.NO_LIMIT else max(0, both - memory)
    for name in ("memory.max", "memory.swap.max"):
        if (found.get(name) or 0) >= cgroups.NO_LIMIT:
            found[name] = None
    return {**found, **_pick_flat(read, "memory.oom_control", {"memory.events.oom_kill": "oom_kill"})}


# Functions for version 2 and for version 1.
_PIDS = (_read_pids, _read_pids)
_MEMORY = (_read_memory, _read_memory_v1)
