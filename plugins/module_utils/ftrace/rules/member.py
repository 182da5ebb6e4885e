# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hold what is known of a container that has started, and how many have."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import starts_log
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.identity import Source
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import word_size


@dataclass
class Member:
    """A control group that may be of a container of the rule.

    NUMBER: counts the containers of the recording; 0 while it is not known whether the group is a container's.
    SINCE_S: when it came into being, by time.monotonic().
    TIDS: its threads at the last look, which were put into the list. ROUNDS: how many looks found that nothing had still to be written.
    UNTRACED, UNTRACED_ROUNDS: its threads that were put into the list of the unrecorded at the last look, and the number of these looks.
    SOURCE: what knows the container; None if nothing of root's does.
    FIRST: its first process; None if not known. IS_SETTLED is True when all its threads are in the list, FOLLOWS_SHIM when its shim is.
    VERDICT: one of starts_log; '' before there is one. IS_DECIDED: True if it is known which container it is, or that nobody knows it.
    START, BEGUN_NS: readings of the clocks, and of the trace's clock, when its first thread was seen.
    """

    group: str
    since_s: float
    number: int = 0
    tids: set[int] = field(default_factory=set)
    rounds: int = 0
    untraced: set[int] = field(default_factory=set)
    untraced_rounds: int = 0
    source: Source | None = None
    first: int | None = None
    is_settled: bool = False
    follows_shim: bool = False
    container: Container | None = None
    verdict: str = ""
    is_decided: bool = False
    start: dict[str, Any] | None = None
    begun_ns: int = 0
    tasks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def shim(self) -> int | None:
        """Return the pid of the container's shim; None if it has none."""
        return self.source.shim if self.source else None

    @property
    def owns_shim(self) -> bool:
        """Return True if it has a shim that runs in its own bundle, and not in that of another container of its pod."""
        source = self.source
        return source is not None and source.shim is not None and os.path.basename(source.bundle) in self.group

    @property
    def is_traced(self) -> bool:
        """Return True if its threads are, or are to be, in the list."""
        return self.verdict in ("", starts_log.UNDECIDED, starts_log.TRACED)

    def describe(self) -> dict[str, Any]:
        """Return what the log has of it."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("verdict", "start", "tasks")}
        if self.container is not None:
            names = ("id", "name", "image", "labels", "runtime")
            found["container"] = {name: getattr(self.container, name) for name in names}
        return found


@dataclass
class Counts:
    """How many containers have started since the rule began.

    TRACED, UNMEANT: those that the rule means, or may mean, and others. REFUSED: those beyond max_containers.
    MISSED: those that were gone before they were seen, or before it was known which they were.
    """

    traced: int = 0
    unmeant: int = 0
    refused: int = 0
    missed: int = 0


def describe_tasks(pid: int) -> list[dict[str, Any]]:
    """Return a description of the first thread of process PID as a list, for manifests; [] if it has ended."""
    task = processes.read_task(pid)
    return [] if task is None else [{**vars(task), "compat": word_size.is_compat(task.tid)}]
