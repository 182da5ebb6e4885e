# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find containers that have no control group of their own: their events cannot be told from others', so they are refused by name.

Podman makes such a container with --cgroups=disabled. Its runtime is executed as for any other, and its conmon knows its name.
"""

from __future__ import annotations

import time
from typing import Callable, Iterable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.identity import Source, Sources, identify
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.new_groups import is_within_container
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes

_MOST_S = 10.0  # a runtime has made its container, and its engine has noted the first process, within this time
_MAX_TROUBLES = 20


class StartsUnderWay:
    """The runtimes that have been executed under a monitor, until it is known whether their containers have control groups.

    SOURCES find what knows a container. MAY_MEAN(container) is true if the rule means it, or may do so. LEAVE_OUT(threads) has these recorded
    no more. TROUBLES: those that have no group, in words.
    """

    def __init__(
        self, sources: Sources, may_mean: Callable[[Container], bool], leave_out: Callable[[set[int]], None]
    ) -> None:
        self._sources = sources
        self._may_mean = may_mean
        self._leave_out = leave_out
        self._starts: dict[int, tuple[Source, float]] = {}
        self.troubles: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, pids: Iterable[int]) -> None:
        """Note that the runtimes PIDS have been executed to start containers."""
        for pid in pids:
            source = self._sources.find("", pid)
            if source is not None and source.words:
                self._starts[pid] = source, time.monotonic()

    def look(self) -> None:
        """Leave out those containers that have turned out to have no control group, and tell of those that the rule may mean."""
        for pid, (source, since_s) in list(self._starts.items()):
            first = None if processes.is_alive(pid) else source.read_first()
            if first is None and time.monotonic() - since_s <= _MOST_S:
                continue
            del self._starts[pid]
            found = identify("", source)
            if first is None or found is None or _has_group(first):
                continue
            self._leave_out(set(processes.read_threads(first)))
            if self._may_mean(found.container) and len(self.troubles) < _MAX_TROUBLES:
                self.troubles.append(
                    f"container {found.container.name} was not traced: it has no control group of its own, by which it is told from others"
                )


def _has_group(pid: int) -> bool:
    """Return True if process PID is in a container's control group, or has ended."""
    try:
        with processes.Process(pid) as process:
            return is_within_container(process.read("cgroup"))
    except processes.ProcessGone:
        return True
