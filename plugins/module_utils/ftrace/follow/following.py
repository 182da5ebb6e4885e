# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose events belong to a container: its control group's processes, what its runtime starts in it later, and tools of ours or not.

The kernel follows the children of who is followed (event-fork). Everything that `docker exec` starts descends from the container's
shim, so that is followed, too, and nothing is missed. Other runtimes have no such ancestor: there the recorder looks at the control
group again and again, and misses what happens between two looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import SUPERVISOR_TITLE, TITLE_LENGTH

_SHIM_NAME = "containerd-shim"
LOOK_S = 0.05  # between two looks at a control group
START_LOOK_S = 0.002  # the same while a container starts
_MAX_ANCESTORS = 4  # between a starting container's first process and its shim


@dataclass(frozen=True)
class Following:
    """How a container's processes are found. SHIM is the one of which all that is exec'ed descends, None where there is none (yet) or
    nobody asked, and DESCENDS says whether it does. WATCH_EXEC and TOOLS say whether what is exec'ed without one, and our tools, are
    looked for while it is traced, and RESTARTS whether its next starts are awaited."""

    shim: int | None = None
    descends: bool = False
    watch_exec: bool = False
    tools: bool = False
    restarts: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether somebody has to look at the control group while the container is traced."""
        return self.watch_exec or self.tools

    def describe(self) -> dict[str, Any]:
        """For results and manifests: `exec` (descent, watch or none), `tools`, `restarts`, and what `may_be_missed`."""
        exec_ = "descent" if self.descends else "watch" if self.watch_exec else "none"
        looked_for = [name for name, is_so in (("what is exec'ed", self.watch_exec), ("tools", self.tools)) if is_so]
        missed = []
        if looked_for:
            missed.append(f"of {' and '.join(looked_for)} the first {LOOK_S * 1000:g} ms, and all that ends sooner")
        if self.restarts:
            missed.append(f"of a start what its runtime does in the first {START_LOOK_S * 1000:g} ms")
        return {
            "exec": exec_,
            "tools": self.tools,
            "restarts": self.restarts,
            "may_be_missed": "; ".join(missed) or None,
        }


NOBODY = Following()


@dataclass(frozen=True)
class Awaited:
    """A container that does not run; GROUP is the folder that its control group will have when it starts, and HAS_SHIM says whether
    all that is exec'ed then descends from a shim."""

    container: Container
    group: str
    has_shim: bool


def find_following(target: Target | Awaited, *, follow_exec: bool, tools: bool) -> Following:
    """The best way to follow TARGET as asked."""
    if isinstance(target, Awaited):
        shim, descends = None, follow_exec and target.has_shim
    else:
        shim = find_shim(target) if follow_exec else None
        descends = shim is not None
    return Following(shim, descends, watch_exec=follow_exec and not descends, tools=tools)


def find_shim(target: Target) -> int | None:
    """The pid of the container's shim; None where its parent is none."""
    parent = processes.read_parent(target.process.pid)
    task = processes.read_task(parent) if parent > 1 else None
    return parent if task is not None and task.comm.startswith(_SHIM_NAME) else None


def find_starting(group: str, ended: int) -> tuple[int | None, int | None]:
    """The first process of the container that starts in control GROUP, where ENDED was its first process before, and its shim.

    None for what is not there yet.
    """
    for pid in set(cgroups.gen_pids(group)) - {ended}:
        task = processes.read_task(pid)
        shim = _find_shim_above(pid)
        # Where it shares the host's pid namespace its runtime leaves it to the shim.
        if task is not None and (task.container_tid == 1 or (shim is not None and processes.read_parent(pid) == shim)):
            return pid, shim
    return None, None


def _find_shim_above(pid: int) -> int | None:
    for _step in range(_MAX_ANCESTORS):
        pid = processes.read_parent(pid)
        if pid <= 1:
            return None
        if processes.read_comm(pid).startswith(_SHIM_NAME):
            return pid
    return None


def list_threads(target: Target, following: Following) -> set[int]:
    """Threads whose events belong to the container now, as the host numbers them."""
    directory = cgroups.find_container_directory(target.process.read("cgroup"), target.container.id)
    pids = {target.process.pid, *(list_members(directory, tools=following.tools) if directory else ())}
    if following.shim is not None:
        pids.add(following.shim)
    return {tid for pid in pids for tid in processes.read_threads(pid)}


def list_members(directory: str, *, tools: bool) -> set[int]:
    """Pids in the control group DIRECTORY; without TOOLS those are left out that crashcart_exec or a task of the connection has started."""
    pids = set(cgroups.gen_pids(directory))
    return pids if tools else pids - find_tools(pids, pids, processes.read_parent, processes.read_comm)


def find_tools(
    pids: set[int], group: set[int], find_parent: Callable[[int], int], find_comm: Callable[[int], str]
) -> set[int]:
    """Those of PIDS, which are in GROUP, whose first ancestor outside of it is a supervisor of ours.

    No process of the container can make itself one of these.
    """
    tops: dict[int, int] = {}
    for pid in pids:
        chain = [pid]
        while chain[-1] in group and chain[-1] not in tops and len(chain) <= len(group) + 1:
            chain.append(find_parent(chain[-1]))
        top = tops.get(chain[-1], chain[-1])
        tops.update(dict.fromkeys((one for one in chain if one in group), top))
    ours = {top for top in set(tops.values()) if top > 1 and find_comm(top) == SUPERVISOR_TITLE[:TITLE_LENGTH]}
    return {pid for pid in pids if tops[pid] in ours}
