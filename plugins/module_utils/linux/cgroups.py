# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups, version 1, hybrid and version 2: where a process belongs, and who else is there.

Source: cgroups(7).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_mounts

ENGINE_ID = re.compile(r"[0-9a-f]{64}\Z")  # a container's, by its engine: nothing else is called so
# One hierarchy of version 1 is enough to list processes; these are the ones every runtime uses.
_V1_PREFERRED = ("pids", "devices", "freezer", "memory", "cpu", "name=systemd")


@dataclass(frozen=True)
class Membership:
    """One line of /proc/PID/cgroup: controllers of a hierarchy (none for version 2) and the path in it."""

    controllers: tuple[str, ...]
    path: str


def parse_cgroup(text: bytes) -> list[Membership]:
    """Memberships from the text of /proc/PID/cgroup."""
    memberships = []
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            memberships.append(Membership(tuple(parts[1].split(",")) if parts[1] else (), parts[2]))
    return memberships


def find_version(mounts: Iterable[Mount]) -> str:
    """Which layout the host has: v1, hybrid, v2, or none."""
    kinds = {mount.filesystem for mount in mounts if mount.filesystem in ("cgroup", "cgroup2")}
    return {frozenset(["cgroup"]): "v1", frozenset(["cgroup2"]): "v2", frozenset(): "none"}.get(
        frozenset(kinds), "hybrid"
    )


def find_directory(memberships: list[Membership], mounts: list[Mount]) -> str | None:
    """The folder in the host's cgroup filesystem that holds the processes of MEMBERSHIPS; None when not mounted."""
    for controller in _V1_PREFERRED:
        for membership in memberships:
            if controller not in membership.controllers:
                continue
            mount_point = _find_v1_mount_point(controller, mounts)
            if mount_point and membership.path != "/":
                return mount_point + membership.path
    for membership in memberships:
        if not membership.controllers and membership.path != "/":
            for mount in mounts:
                if mount.filesystem == "cgroup2" and mount.root == "/":
                    return mount.mount_point + membership.path
    return None


def find_common_directory(path: str) -> str | None:
    """The folder of the group that has PATH in all hierarchies, in the one by which find_container_directory would find it."""
    memberships = [*(Membership((controller,), path) for controller in _V1_PREFERRED), Membership((), path)]
    return find_directory(memberships, read_mounts("self", " - cgroup"))


def gen_joins(
    wanted: Iterable[Membership], own: Iterable[Membership], mounts: list[Mount]
) -> Iterator[tuple[Membership, str]]:
    """For each hierarchy in which WANTED is another group than OWN: the membership, and the file of that group to write 0 to.

    The file is empty where the hierarchy is not mounted. Those without controllers are left out then: they limit nothing, and a
    container has brought it into being for itself (name=systemd). A single-threaded process may use `tasks` of version 1, which
    needs no lock that the whole host shares.
    """
    present = set(own)
    for membership in wanted:
        if membership in present:
            continue
        if membership.controllers:
            mount_point = _find_v1_mount_point(membership.controllers[0], mounts)
            name = "tasks"
            if not mount_point and membership.controllers[0].startswith("name="):
                continue
        else:
            mount_point = next(
                (one.mount_point for one in mounts if one.filesystem == "cgroup2" and one.root == "/"), None
            )
            name = "cgroup.procs"
        yield membership, f"{mount_point}{membership.path}/{name}" if mount_point else ""


def _find_v1_mount_point(controller: str, mounts: list[Mount]) -> str | None:
    name = controller[5:] if controller.startswith("name=") else controller
    for mount in mounts:
        # The folder bears the controllers' names, by every distribution's custom.
        folder_names = os.path.basename(mount.mount_point).split(",")
        if mount.filesystem == "cgroup" and mount.root == "/" and name in folder_names:
            return mount.mount_point
    return None


def gen_pids(directory: str) -> Iterator[int]:
    """Pids of all processes in the group at DIRECTORY and in the groups below it."""
    for folder, _children, _files in os.walk(directory):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                for line in file:
                    yield int(line)
        except OSError:
            continue  # the group went away, or is threaded: its members show in its parent


def find_container_directory(process_cgroup: bytes, container_id: str = "") -> str | None:
    """The cgroup folder on the host for a process, from its /proc/PID/cgroup; of its groups that which bears CONTAINER_ID, if one does.

    A runtime (crun), or an init in the container, may have put the process into a group of its own below that.
    """
    memberships = [replace(one, path=cut_after_id(one.path, container_id)) for one in parse_cgroup(process_cgroup)]
    return find_directory(memberships, read_mounts("self", " - cgroup"))


def cut_after_id(path: str, container_id: str) -> str:
    """Return PATH up to the group that bears CONTAINER_ID; all of it where none does, or where the id is not an engine's."""
    return cut_after(path, container_id) if ENGINE_ID.match(container_id) else path


def cut_after(path: str, container_id: str) -> str:
    """PATH up to the group whose name bears CONTAINER_ID; all of it where none does."""
    place = path.find(container_id)
    end = path.find("/", place) if place >= 0 else -1
    return path[:end] if end >= 0 else path
