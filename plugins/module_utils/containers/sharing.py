# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces that a container shares: with the host, or with processes of another container.

A capability acts on all processes in its namespace. The control group tells which processes are the container's own. A process that is
named by its pid may be in the control group of the host's first process; then only namespaces of the host are recognised.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, read_all_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.cgroups import Membership
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_INIT = "/init.scope"
_SETTLE_S = 0.5  # for one call in all; on a busy host a process needs tens of milliseconds to join its control group


def find_shared(targets: Sequence[Target], kinds: Sequence[str]) -> list[dict[str, str]]:
    """Return, for each of TARGETS, those of its namespaces that others are in, too: kind -> the others, in words.

    KINDS limits the namespaces (named as in /proc/PID/ns).
    """
    shared: list[dict[str, str]] = [{} for _target in targets]
    waiting: dict[str, list[int]] = {}  # indexes of targets by identity of a namespace, such as net:[4026531840]
    hosts = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    with open("/proc/1/cgroup", "rb") as file:
        host_groups = set(cgroups.parse_cgroup(file.read()))
    host_procs = {mount.device for mount in read_mounts("self", " - proc ")} if "pid" in kinds else set()
    groups: list[list[Membership]] = [[] for _target in targets]
    for index, target in enumerate(targets):
        with suppress(ProcessGone, ContainerGoneError):  # entering the container will report its end
            groups[index] = _find_groups(target, host_groups)
            for kind in kinds:
                identity = target.process.namespace(kind)
                if identity in hosts:
                    shared[index][kind] = "the host's"
                else:
                    waiting.setdefault(identity, []).append(index)
    for index, reason in enumerate(_find_host_procs(targets, host_procs) if host_procs else ()):
        if reason:
            shared[index].setdefault("pid", reason)
    deadline = time.monotonic() + _SETTLE_S
    for identity, kind, pid in list(_gen_inhabitants(kinds)) if waiting else ():
        for index in waiting.get(identity, ()):
            if kind not in shared[index] and (comm := _find_foreign(pid, kind, identity, groups[index], deadline)):
                shared[index][kind] = f"also that of process {pid} ({comm!r}), which is not of this container"
    return shared


def _gen_inhabitants(kinds: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield the identity, the kind and the pid for each namespace of KINDS of every process on the host."""
    for pid in processes.read_pids():
        with suppress(ProcessGone, OSError), Process(pid) as process:  # it is ending, or is a zombie
            yield from [(process.namespace(kind), kind, pid) for kind in kinds]


def _find_foreign(pid: int, kind: str, identity: str, groups: Sequence[Membership], deadline: float) -> str:
    """Return the name of process PID if it is still foreign in namespace IDENTITY of KIND at DEADLINE, otherwise "".

    A runtime starts further commands in a container, such as health checks. They enter its namespaces first and its control groups afterwards.
    """
    with suppress(ProcessGone, OSError), Process(pid) as process:
        while process.namespace(kind) == identity and _is_foreign(process, kind, groups):
            if time.monotonic() > deadline:
                return process.read("comm").decode("utf-8", "replace").strip() or "?"
            time.sleep(0.01)
    return ""


def _find_host_procs(targets: Sequence[Target], host_procs: set[str]) -> list[str]:
    """Return, for each of TARGETS, in words where the host's processes are seen through a mount of the host's /proc; "" for nowhere.

    HOST_PROCS are the devices of the host's /proc, which containers of agents often have. A process that may trace reaches files of the host's
    processes through such a mount, whatever its options, and whatever root the container's first process has.
    """
    reasons = []
    for found in read_all_mounts(targets, " - proc "):
        if isinstance(found, OSError):
            reasons.append(f"not known for sure: its mounts cannot be read ({found.strerror})")
            continue
        # A mount that is covered by another one is out of reach.
        covered = {(mount.parent_id, mount.mount_point) for mount in found}
        open_ones = [mount for mount in found if (mount.mount_id, mount.mount_point) not in covered]
        place = next((mount.mount_point for mount in open_ones if mount.device in host_procs), "")
        reasons.append(f"not all that it acts on: the host's processes are seen at {place!r}" if place else "")
    return reasons


def _is_foreign(process: Process, kind: str, groups: Sequence[Membership]) -> bool:
    return not _is_own(process, groups) and not _is_helper(process, kind)


def _is_helper(process: Process, kind: str) -> bool:
    """Return True if PROCESS is an ordinary user's on the host, such as a rootless engine's process that forwards a container's ports."""
    if kind != "net" or processes.parse_status(process.read("status"))["Uid"].split()[1] == "0":
        return False
    fd = process.open("root", os.O_PATH)
    try:
        return os.path.samestat(os.fstat(fd), os.stat("/"))
    finally:
        os.close(fd)


def _find_groups(target: Target, host_groups: set[Membership]) -> list[Membership]:
    """Return the control groups that hold TARGET's own processes and no others."""
    found = []
    for membership in cgroups.parse_cgroup(target.process.read("cgroup")):
        path = cgroups.cut_after_id(membership.path, target.container.id)
        # An init (systemd) may have moved itself into a group beside those of its services.
        path = path[: -len(_INIT)] if path.endswith(_INIT) else path
        own = Membership(membership.controllers, path)
        if path not in ("", "/") and own not in host_groups:
            found.append(own)
    return found


def _is_own(process: Process, groups: Sequence[Membership]) -> bool:
    """Return True if PROCESS is in one of GROUPS or below, or if GROUPS is empty, so that nothing can be told."""
    if not groups:
        return True
    paths = {membership.controllers: membership.path for membership in cgroups.parse_cgroup(process.read("cgroup"))}
    return any((paths.get(membership.controllers, "") + "/").startswith(membership.path + "/") for membership in groups)
