# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the threads whose events belong to a container.

These are the threads of its control group's processes and of the programs that its runtime starts in it later. The user chooses whether
this collection's tools belong to them.

The kernel follows the children of a followed thread (event-fork). Everything that `docker exec` starts descends from the container's
shim. So the shim is followed, too, and nothing is missed. Other runtimes have no such ancestor. For them the recorder looks at the
control group again and again, and misses what happens between two looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.names import SUPERVISOR_TITLE, TITLE_LENGTH

_SHIM_NAME = "containerd-shim"
LOOK_S = 0.05  # between two looks at a control group
START_LOOK_S = 0.002  # between two looks while a container starts
_MAX_ANCESTORS = 4  # between a starting container's first process and its shim


@dataclass(frozen=True)
class Following:
    """The way in which a container's processes are found.

    SHIM: the pid of the shim to follow; None if the container has none (yet), or if exec'ed programs are not followed.
    DESCENDS: True if all exec'ed programs descend from a shim that is followed.
    WATCH_EXEC: True if the recorder looks for exec'ed programs, because no shim is followed.
    TOOLS: True if this collection's tools are followed, for which the recorder looks, too.
    RESTARTS: True if the recorder waits for the container's next starts.
    """

    shim: int | None = None
    descends: bool = False
    watch_exec: bool = False
    tools: bool = False
    restarts: bool = False

    @property
    def is_watched(self) -> bool:
        """Return True if the recorder has to look at the control group while the container is traced."""
        return self.watch_exec or self.tools

    def describe(self) -> dict[str, Any]:
        """Return for results and manifests what is followed, and how.

        The keys are `exec` (descent, watch or none), `tools`, `restarts`, and `may_be_missed` (in words, or None).
        """
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
    """A container that does not run, and whose next start is traced.

    GROUP: the folder that its control group will have.
    HAS_SHIM: True if all exec'ed programs will descend from a shim.
    RULE: the rule whose containers are awaited; CONTAINER stands for it then, and GROUP is ''. None for one container.
    """

    container: Container
    group: str
    has_shim: bool
    rule: Rule | None = None


def find_following(target: Target | Awaited, *, follow_exec: bool, tools: bool) -> Following:
    """Return the best way to follow TARGET: its shim if possible, else looks at its control group.

    With FOLLOW_EXEC programs that the runtime starts later are followed, with TOOLS this collection's tools.
    """
    if isinstance(target, Awaited):
        shim, descends = None, follow_exec and target.has_shim
    else:
        shim = find_shim(target) if follow_exec else None
        descends = shim is not None
    return Following(shim, descends, watch_exec=follow_exec and not descends, tools=tools)


def find_shim(target: Target) -> int | None:
    """Return the pid of the container's shim; None if the parent of its first process is no shim."""
    parent = processes.read_parent(target.process.pid)
    task = processes.read_task(parent) if parent > 1 else None
    return parent if task is not None and task.comm.startswith(_SHIM_NAME) else None


def find_starting(group: str, ended: int) -> tuple[int | None, int | None]:
    """Return the pids of the first process, and of its shim, of the container that starts in control GROUP; None for each not found.

    ENDED is the pid of the container's earlier first process, which is passed over.
    """
    for pid in set(cgroups.gen_pids(group)) - {ended}:
        task = processes.read_task(pid)
        shim = _find_shim_above(pid)
        # In the host's pid namespace the first process has another number than 1. There the runtime leaves it to the shim as its parent.
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
    """Return the thread ids, in the host's numbering, whose events belong to the container now."""
    directory = cgroups.find_container_directory(target.process.read("cgroup"), target.container.id)
    pids = {target.process.pid, *(list_members(directory, tools=following.tools) if directory else ())}
    if following.shim is not None:
        pids.add(following.shim)
    return {tid for pid in pids for tid in processes.read_threads(pid)}


def list_members(directory: str, *, tools: bool) -> set[int]:
    """Return the pids in the control group DIRECTORY.

    Without TOOLS the processes that crashcart_exec or a task of the connection has started are left out.
    """
    pids = set(cgroups.gen_pids(directory))
    return pids if tools else pids - find_tools(pids, pids, processes.read_parent, processes.read_comm)


def find_tools(
    pids: set[int], group: set[int], find_parent: Callable[[int], int], find_comm: Callable[[int], str]
) -> set[int]:
    """Return those of PIDS whose first ancestor outside of GROUP is a supervisor of this collection.

    GROUP holds all pids of the control group. FIND_PARENT and FIND_COMM return a process's parent and name.
    No process of the container can give itself such an ancestor.
    """
    tops: dict[int, int] = {}
    for pid in pids:
        chain = [pid]
        while chain[-1] in group and chain[-1] not in tops and len(chain) <= len(group) + 1:
            chain.append(find_parent(chain[-1]))
        top = tops.get(chain[-1], chain[-1])
        tops.update(dict.fromkeys((member for member in chain if member in group), top))
    ours = {top for top in set(tops.values()) if top > 1 and find_comm(top) == SUPERVISOR_TITLE[:TITLE_LENGTH]}
    return {pid for pid in pids if tops[pid] in ours}
