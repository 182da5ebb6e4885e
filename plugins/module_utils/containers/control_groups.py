# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prediction of the control group that an engine's container will have when it starts, by the conventions of engines.

Nothing here touches the host.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups

# By engine and manager of control groups: the default parent of containers, and the prefix of a container's own group.
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
    """The place of a container that is yet to start.

    PATH: its control group in each hierarchy. HAS_SHIM: true where every process that is exec'ed into it descends from a shim, as with Docker.
    """

    path: str
    has_shim: bool


def learn(process_cgroup: bytes, other_id: str, container_id: str) -> str | None:
    """Return the path of the control group of CONTAINER_ID, which will be beside the group of the running container OTHER_ID; None if unknown.

    PROCESS_CGROUP is /proc/PID/cgroup of a process of OTHER_ID.
    """
    paths = [membership.path for membership in cgroups.parse_cgroup(process_cgroup) if other_id in membership.path]
    return cgroups.cut_after(paths[0], other_id).replace(other_id, container_id) if paths else None


def predict(engine: str, manager: str, parent: str, container_id: str) -> str | None:
    """Return the path of the control group of CONTAINER_ID in each hierarchy; None where it cannot be predicted.

    ENGINE is docker or podman, MANAGER (cgroupfs or systemd) makes the groups, and PARENT is the user's choice ('' for none).
    """
    kind = (engine, manager)
    if kind not in _PARENTS:
        return None
    parent = parent or _PARENTS[kind]
    name = _PREFIXES[kind] + container_id
    if manager == "systemd":
        # Podman gives the slice of a pod with the whole path.
        parent = posixpath.basename(parent)
        return f"{_expand_slice(parent)}/{name}.scope" if parent.endswith(".slice") else None
    # A relative parent is below the group of a process that is not known here.
    return posixpath.join(parent, name) if parent.startswith("/") else None


def _expand_slice(name: str) -> str:
    """Return the path of the slice NAME, in which a-b.slice is below a.slice (systemd.slice(5))."""
    words = name[: -len(".slice")].split("-")
    return "".join(f"/{'-'.join(words[:count])}.slice" for count in range(1, len(words) + 1)) if any(words) else ""
