# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which namespaces of containers are not their own: those of the host, and those that another container is in, too.

A capability acts on all who are in its namespace. What a container's own processes are is told by its control group. Where that is also
the host's first process's, as for a process that is named by its pid, only the host's namespaces are told apart.
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
_SETTLE_S = 0.5  # for all of a call; a busy host takes tens of milliseconds


def find_shared(targets: Sequence[Target], kinds: Sequence[str]) -> list[dict[str, str]]:
    """Return for each of TARGETS which of its namespaces of KINDS (as in /proc/PID/ns) others have, and whose each is, in words."""
    shared: list[dict[str, str]] = [{} for _target in targets]
    waiting: dict[str, list[int]] = {}  # by identity, such as net:[4026531840]
    hosts = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    with open("/proc/1/cgroup", "rb") as file:
        host_groups = set(cgroups.parse_cgroup(file.read()))
    host_procs = {one.device for one in read_mounts("self", " - proc ")} if "pid" in kinds else set()
    groups: list[list[Membership]] = [[] for _target in targets]
    for index, target in enumerate(targets):
        with suppress(ProcessGone, ContainerGoneError):  # whoever enters it will be told
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
    """Yield of all processes and their namespaces of KINDS: the namespace's identity, its kind, the pid."""
    for pid in processes.read_pids():
        with suppress(ProcessGone, OSError), Process(pid) as process:  # it ends, or has ended and waits for its parent
            yield from [(process.namespace(kind), kind, pid) for kind in kinds]


def _find_foreign(pid: int, kind: str, identity: str, groups: Sequence[Membership], deadline: float) -> str:
    """Return the name of process PID if it is still foreign in namespace IDENTITY of KIND at DEADLINE, otherwise "".

    A runtime that starts another command in a container, as a health check, enters its namespaces first and its control groups then.
    """
    with suppress(ProcessGone, OSError), Process(pid) as process:
        while process.namespace(kind) == identity and _is_foreign(process, kind, groups):
            if time.monotonic() > deadline:
                return process.read("comm").decode("utf-8", "replace").strip() or "?"
            time.sleep(0.01)
    return ""


def _find_host_procs(targets: Sequence[Target], host_procs: set[str]) -> list[str]:
    """Return for each of TARGETS what keeps its tools from acting on it alone beside namespaces, in words: one of HOST_PROCS, the devices of the
    host's /proc, is mounted, as agents have it. "" stands for nothing.

    Who may trace reaches files of the host's processes through it, however it is mounted, and whatever root the first process has.
    """
    reasons = []
    for found in read_all_mounts(targets, " - proc "):
        if isinstance(found, OSError):
            reasons.append(f"not known for sure: its mounts cannot be read ({found.strerror})")
            continue
        # A mount that another one covers is out of reach.
        covered = {(one.parent_id, one.mount_point) for one in found}
        open_ones = [one for one in found if (one.mount_id, one.mount_point) not in covered]
        place = next((one.mount_point for one in open_ones if one.device in host_procs), "")
        reasons.append(f"not all that it acts on: the host's processes are seen at {place!r}" if place else "")
    return reasons


def _is_foreign(process: Process, kind: str, groups: Sequence[Membership]) -> bool:
    return not _is_own(process, groups) and not _is_helper(process, kind)


def _is_helper(process: Process, kind: str) -> bool:
    """Return True if PROCESS is an ordinary user's on the host, as the one by which a rootless engine forwards a container's ports."""
    if kind != "net" or processes.parse_status(process.read("status"))["Uid"].split()[1] == "0":
        return False
    fd = process.open("root", os.O_PATH)
    try:
        return os.path.samestat(os.fstat(fd), os.stat("/"))
    finally:
        os.close(fd)


def _find_groups(target: Target, host_groups: set[Membership]) -> list[Membership]:
    """Return the control groups that hold TARGET's own processes and nobody else's."""
    found = []
    for one in cgroups.parse_cgroup(target.process.read("cgroup")):
        path = cgroups.cut_after_id(one.path, target.container.id)
        # An init may have put itself into a group beside those of its services (systemd).
        path = path[: -len(_INIT)] if path.endswith(_INIT) else path
        own = Membership(one.controllers, path)
        if path not in ("", "/") and own not in host_groups:
            found.append(own)
    return found


def _is_own(process: Process, groups: Sequence[Membership]) -> bool:
    """Return True if PROCESS is in one of GROUPS or below, or if there are none to tell it by."""
    if not groups:
        return True
    paths = {one.controllers: one.path for one in cgroups.parse_cgroup(process.read("cgroup"))}
    return any((paths.get(one.controllers, "") + "/").startswith(one.path + "/") for one in groups)
