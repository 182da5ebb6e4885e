# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the manifest of a capture: one type for rings and recordings, in the form of docs/manifest.schema.json."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from typing import Any, Dict

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import Loss
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names

# The version grows with each change that an older reader would misunderstand. Since version 3 long parts are in the trace.dat (tables.py).
# More tables there are no such change: a reader asks for them by name.
VERSION = 3
Task = Dict[str, Any]


def describe_host() -> dict[str, Any]:
    """Return the host's part of a manifest: name, kernel release, architecture and boot id."""
    uname = platform.uname()
    return {
        "host": uname.node,
        "kernel": uname.release,
        "arch": uname.machine,
        "boot_id": boot.read_boot_id(),
    }


def describe_container(container: Container) -> dict[str, Any]:
    """Return the container's part of a manifest; it has owner_uid only if CONTAINER is a user's, not root's."""
    owner = {} if container.owner_uid is None else {"owner_uid": container.owner_uid}
    return {**{name: getattr(container, name) for name in ("id", "name", "image", "labels", "runtime")}, **owner}


@dataclass(frozen=True)
class Tables:
    """The tables that a reader of a capture's events needs; they are too long for the manifest and travel in the trace.dat.

    FIRST_TASKS: the container's threads when the trace began.
    TASKS: the container's threads when the trace was fetched or ended.
    CMDLINES: lines of 'tid comm'.
    FIRST_HOLDINGS, LAST_HOLDINGS: what the container's processes held and waited for at the beginning and at the end of the capture, as
    holdings/collect.py tells it; empty where it is not known.
    SYSCALLS, COMPAT_SYSCALLS: number → name of the host's system calls.
    """

    first_tasks: list[Task]
    tasks: list[Task]
    cmdlines: str
    first_holdings: dict[str, Any] = field(default_factory=dict)
    last_holdings: dict[str, Any] = field(default_factory=dict)
    syscalls: dict[int, str] = field(default_factory=syscall_names.list_names)
    compat_syscalls: dict[int, str] = field(default_factory=syscall_names.list_compat_names)

    def as_json(self) -> dict[str, Any]:
        """Return the tables in the form in which a segment carries them to the controller."""
        return {
            "first_tasks": self.first_tasks,
            "tasks": self.tasks,
            "cmdlines": self.cmdlines,
            **holdings.join(self.first_holdings, self.last_holdings),
            "syscalls": {str(number): name for number, name in self.syscalls.items()},
            "compat_syscalls": {str(number): name for number, name in self.compat_syscalls.items()},
        }


@dataclass(frozen=True)
class Manifest:
    """The manifest of a capture, without its account of losses.

    HOST, CONTAINER: what describe_host and describe_container returned when the capture was recorded.
    INSTANCE, MODE: the name of the trace instance; ring or record.
    CLOCK, BUFFER_KB: the clock of the time stamps; the size of each CPU's buffer, in the kernel's words.
    EVENTS: event → filter.
    START, CHANGED, END: readings of the trace clock beside real time; None where there was no reading. From CHANGED on the capture has all
    events that were asked for. Before CHANGED other events may have been asked for, or the events are in an earlier capture.
    SPECIFICATION, EARLIER_SYSCALLS: what was asked for; the system calls that were asked for before.
    LIMITS, FOLLOWED: the limits of the trace; how the container's processes were followed.
    HAS_RUN: True if the container ran when the trace began, or when it was fetched or ended.
    TRACING, STOPPED: True if the trace goes on; why it ended by itself, or None.
    RULE: the name of the rule by which the container was traced; None if it was traced by itself.
    FETCHED: when the manifest was made, in seconds since the epoch.
    """

    host: dict[str, Any]
    container: dict[str, Any]
    instance: str
    mode: str
    clock: str
    buffer_kb: str
    events: dict[str, str]
    start: dict[str, Any] | None
    changed: dict[str, Any] | None
    end: dict[str, Any] | None
    specification: dict[str, Any] | None
    earlier_syscalls: list[Any]
    limits: dict[str, Any]
    followed: dict[str, Any] | None
    has_run: bool
    tracing: bool
    stopped: str | None
    rule: str | None = None
    fetched: float = field(default_factory=time.time)

    def as_json(self, loss: Loss) -> dict[str, Any]:
        """Return the manifest, with the account of LOSS, as it is written in JSON."""
        return {
            "version": VERSION,
            **self.host,
            "container": self.container,
            "instance": self.instance,
            "mode": self.mode,
            "clock": self.clock,
            "clock_offset_ns": (self.end or {}).get("offset_ns"),
            "time": {"start": self.start, "changed": self.changed, "end": self.end},
            "fetched": self.fetched,
            "specification": self.specification,
            "earlier_syscalls": self.earlier_syscalls,
            "limits": self.limits,
            "followed": self.followed,
            "has_run": self.has_run,
            "tracing": self.tracing,
            "stopped": self.stopped,
            **({} if self.rule is None else {"rule": self.rule}),
            "buffer_kb": self.buffer_kb,
            "events": self.events,
            **loss.as_json(),
        }
