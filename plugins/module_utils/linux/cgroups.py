# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Control groups of version 1, hybrid and version 2: find the group of a process, and the processes of a group.

Source: cgroups(7).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount, read_mounts

ENGINE_ID = re.compile(r"[0-9a-f]{64}\Z")  # the id that an engine gives to a container; no other group has such a name
# One hierarchy of version 1 is enough to list processes; every runtime uses these.
_V1_PREFERRED = ("pids", "devices", "freezer", "memory", "cpu", "name=systemd")

MAX_DEPTH = 64  # of groups below a group that are looked at
NO_LIMIT = 1 << 60  # version 1 has no word for it, and prints a number of about 2 ** 63


@dataclass(frozen=True)
class Membership:
    """The membership of a process in one hierarchy: a line of /proc/PID/cgroup."""

    controllers: tuple[str, ...]  # of the hierarchy; empty for version 2
    path: str  # of the group, in the hierarchy


def parse_cgroup(text: bytes) -> list[Membership]:
    """Return the memberships in TEXT, the text of /proc/PID/cgroup."""
    memberships = []
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            memberships.append(Membership(tuple(parts[1].split(",")) if parts[1] else (), parts[2]))
    return memberships


def find_version(mounts: Iterable[Mount]) -> str:
    """Return the layout of the control groups among MOUNTS: v1, hybrid, v2, or none."""
    kinds = {mount.filesystem for mount in mounts if mount.filesystem in ("cgroup", "cgroup2")}
    return {frozenset(["cgroup"]): "v1", frozenset(["cgroup2"]): "v2", frozenset(): "none"}.get(
        frozenset(kinds), "hybrid"
    )


def find_directory(memberships: list[Membership], mounts: list[Mount]) -> str | None:
    """Return the folder, below one of MOUNTS, of the group that a process with MEMBERSHIPS is in.

    Returns None when no usable hierarchy is mounted, or when the process is in the root group.
    """
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
                if _is_v2_top(mount):
                    return mount.mount_point + membership.path
    return None


def find_controller_directory(
    memberships: list[Membership], mounts: list[Mount], controller: str, container_id: str
) -> tuple[str, bool] | None:
    """Return the folder, below one of MOUNTS, of the group that CONTROLLER limits for a process with MEMBERSHIPS, and True for version 1.

    The group with CONTAINER_ID in its name counts. Returns None when no such hierarchy is mounted, or for its root group.
    """
    mount_point = _find_v1_mount_point(controller, mounts)
    if mount_point is None:
        mount_point = next((mount.mount_point for mount in mounts if _is_v2_top(mount)), None)
        is_v1, paths = False, [membership.path for membership in memberships if not membership.controllers]
    else:
        is_v1, paths = True, [membership.path for membership in memberships if controller in membership.controllers]
    path = cut_after_id(paths[0], container_id) if paths else "/"
    return None if mount_point is None or path == "/" else (mount_point + path, is_v1)


def _is_v2_top(mount: Mount) -> bool:
    return mount.filesystem == "cgroup2" and mount.root == "/"


def find_top() -> str | None:
    """Return the folder of the root group, in the hierarchy that find_directory chooses; None when no usable hierarchy is mounted."""
    mounts = read_mounts("self", " - cgroup")
    found = (_find_v1_mount_point(controller, mounts) for controller in _V1_PREFERRED)
    return next(filter(None, found), None) or next((mount.mount_point for mount in mounts if _is_v2_top(mount)), None)


def find_common_directory(path: str) -> str | None:
    """Return the folder of the group that has PATH in all hierarchies; None when no usable hierarchy is mounted.

    The folder is in the hierarchy that find_container_directory would choose for a process of that group.
    """
    memberships = [*(Membership((controller,), path) for controller in _V1_PREFERRED), Membership((), path)]
    return find_directory(memberships, read_mounts("self", " - cgroup"))


def gen_joins(
    wanted: Iterable[Membership], own: Iterable[Membership], mounts: list[Mount]
) -> Iterator[tuple[Membership, str]]:
    """Yield, for each hierarchy in which WANTED and OWN differ, the wanted membership and the file that joins its group.

    A process joins the group by writing 0 to the file, and must be single-threaded: `tasks` of version 1 moves one thread only, but
    needs no lock that the whole host shares. The file is '' when the hierarchy is not mounted. An unmounted hierarchy without
    controllers (name=systemd) is left out: it limits nothing, and exists only because a container mounted it for itself.
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
            mount_point = next((mount.mount_point for mount in mounts if _is_v2_top(mount)), None)
            name = "cgroup.procs"
        yield membership, f"{mount_point}{membership.path}/{name}" if mount_point else ""


def _find_v1_mount_point(controller: str, mounts: list[Mount]) -> str | None:
    name = controller[5:] if controller.startswith("name=") else controller
    for mount in mounts:
        # Every distribution names the folder after the controllers.
        folder_names = os.path.basename(mount.mount_point).split(",")
        if mount.filesystem == "cgroup" and mount.root == "/" and name in folder_names:
            return mount.mount_point
    return None


def gen_pids(directory: str) -> Iterator[int]:
    """Yield the pids of all processes in the group at DIRECTORY and in the groups below."""
    for folder in gen_below(directory):
        yield from gen_own_pids(folder)


def gen_below(directory: str) -> Iterator[str]:
    """Yield the folder of the group at DIRECTORY, and those of the groups below, down to MAX_DEPTH.

    Whoever may make groups can make them as deep as a path is long, so this is no recursion, as os.walk is before Python 3.12.
    """
    left = [(directory, 0)]
    while left:
        folder, depth = left.pop()
        yield folder
        if depth < MAX_DEPTH:
            left += [(os.path.join(folder, name), depth + 1) for name in list_children(folder)]


def list_children(directory: str) -> list[str]:
    """Return the names of the groups right below the group at DIRECTORY; empty if that is gone."""
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def gen_own_pids(directory: str) -> Iterator[int]:
    """Yield the pids of all processes in the group at DIRECTORY, without those in the groups below."""
    try:
        with open(os.path.join(directory, "cgroup.procs"), encoding="ascii") as file:
            for line in file:
                yield int(line)
    except OSError:
        return  # the group was removed, or is threaded: the members of a threaded group show in its parent


def find_container_directory(process_cgroup: bytes, container_id: str = "") -> str | None:
    """Return the host's folder of the cgroup of a process, found by PROCESS_CGROUP, the text of its /proc/PID/cgroup.

    If one of its groups has CONTAINER_ID in its name, that group counts: a runtime (crun), or an init in the container, may have put
    the process into a group further down. Returns None when no usable hierarchy is mounted.
    """
    memberships = [
        replace(membership, path=cut_after_id(membership.path, container_id))
        for membership in parse_cgroup(process_cgroup)
    ]
    return find_directory(memberships, read_mounts("self", " - cgroup"))


def cut_after_id(path: str, container_id: str) -> str:
    """Return PATH up to the group with CONTAINER_ID in its name; the whole PATH if no group has it or CONTAINER_ID is no engine's id."""
    return cut_after(path, container_id) if ENGINE_ID.match(container_id) else path


def cut_after(path: str, container_id: str) -> str:
    """Return PATH up to the group with CONTAINER_ID in its name; the whole PATH if no group has it."""
    place = path.find(container_id)
    end = path.find("/", place) if place >= 0 else -1
    return path[:end] if end >= 0 else path


def parse_number(word: bytes) -> int | None:
    """Return the number in WORD, the text of a file with a limit; None for max, unlimited, or another word."""
    try:
        return int(word)
    except ValueError:
        return None


def parse_flat(text: bytes) -> dict[str, int]:
    """Return name → number of TEXT, a file of a control group with a name and a number in each line."""
    pairs = (line.split() for line in text.decode("ascii", "replace").split("\n"))
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}
