# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an engine's container will have its control group when it starts, by the customs of engines. Pure."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups

# By what manages control groups: the group of all containers for which nobody has named another, and what begins a container's own name.
_PARENTS = {
    ("docker", "cgroupfs"): "/docker",
    ("docker", "systemd"): "system.slice",
    ("podman", "cgroupfs"): "/libpod_parent",
    ("podman", "systemd"): "machine.slice",
}
_PREFIXES = {
    ("docker", "cgroupfs"): "",
    ("docker", "systemd"): "docker-",
    ("podman", "cgroupfs"): "libpod-",
    ("podman", "systemd"): "libpod-",
}


@dataclass(frozen=True)
class Place:
    """Where a container will be: the PATH of its control group in each hierarchy, and whether all that is exec'ed in it descends from
    a shim, as it does of Docker's."""

    path: str
    has_shim: bool


def learn(process_cgroup: bytes, other_id: str, container_id: str) -> str | None:
    """The path of the group of CONTAINER_ID, beside that of the running container OTHER_ID with a process of PROCESS_CGROUP."""
    paths = [one.path for one in cgroups.parse_cgroup(process_cgroup) if other_id in one.path]
    return cgroups.cut_after(paths[0], other_id).replace(other_id, container_id) if paths else None


def predict(engine: str, manager: str, parent: str, container_id: str) -> str | None:
    """The path of the group of CONTAINER_ID in each hierarchy; None where that cannot be said.

    ENGINE is docker or podman, MANAGER (cgroupfs or systemd) what makes its groups, PARENT what its user has chosen, '' for nothing.
    """
    kind = (engine, manager)
    if kind not in _PARENTS:
        return None
    parent = parent or _PARENTS[kind]
    name = _PREFIXES[kind] + container_id
    if manager == "systemd":
        # Podman gives a pod's with the path to it.
        parent = posixpath.basename(parent)
        return f"{_expand_slice(parent)}/{name}.scope" if parent.endswith(".slice") else None
    # Another one is below the group of a process that we do not know.
    return posixpath.join(parent, name) if parent.startswith("/") else None


def _expand_slice(name: str) -> str:
    """The path of the slice NAME: a-b.slice is in a.slice (systemd.slice(5))."""
    words = name[: -len(".slice")].split("-")
    return "".join(f"/{'-'.join(words[:count])}.slice" for count in range(1, len(words) + 1)) if any(words) else ""
