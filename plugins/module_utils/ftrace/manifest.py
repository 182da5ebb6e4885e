# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a capture beside its events: one type for rings and recordings, whose form docs/manifest.schema.json tells."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from typing import Any, Dict

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import Loss
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names

# Raised with each change that an older reader would take for something else. Since 3 long parts are within the trace.dat (tables.py).
VERSION = 3
Task = Dict[str, Any]


def describe_host() -> dict[str, Any]:
    """Return what a manifest says of the host."""
    uname = platform.uname()
    return {
        "host": uname.node,
        "kernel": uname.release,
        "arch": uname.machine,
        "boot_id": boot.read_boot_id(),
    }


def describe_container(container: Container) -> dict[str, Any]:
    """Return what a manifest says of CONTAINER; its user where it is not root's."""
    owner = {} if container.owner_uid is None else {"owner_uid": container.owner_uid}
    return {**{name: getattr(container, name) for name in ("id", "name", "image", "labels", "runtime")}, **owner}


@dataclass(frozen=True)
class Tables:
    """What a reader of a capture's events has to know, and what is too long for the manifest: it travels within the trace.dat.

    FIRST_TASKS are the container's threads when the trace began, TASKS those when it was fetched or ended.
    SYSCALLS and COMPAT_SYSCALLS are the host's names of system calls by their numbers. CMDLINES is lines of 'tid comm'.
    """

    first_tasks: list[Task]
    tasks: list[Task]
    cmdlines: str
    syscalls: dict[int, str] = field(default_factory=syscall_names.list_names)
    compat_syscalls: dict[int, str] = field(default_factory=syscall_names.list_compat_names)

    def as_json(self) -> dict[str, Any]:
        """Return it as a segment carries it to the controller."""
        return {
            "first_tasks": self.first_tasks,
            "tasks": self.tasks,
            "cmdlines": self.cmdlines,
            "syscalls": {str(number): name for number, name in self.syscalls.items()},
            "compat_syscalls": {str(number): name for number, name in self.compat_syscalls.items()},
        }


@dataclass(frozen=True)
class Manifest:
    """What is said of a capture.

    HOST is what describe_host tells, of the host that has recorded it, CONTAINER what describe_container tells.
    INSTANCE is the name of its trace instance, MODE ring or record.
    CLOCK is the clock of its time stamps, BUFFER_KB the size of each CPU's buffer as the kernel tells it, EVENTS event → filter.
    START, CHANGED and END are readings of the trace clock beside real time, None where nobody has read it. From CHANGED on the capture has all
    events that were asked for: before that others may have been, or they are in an earlier capture.
    SPECIFICATION is what was asked for, EARLIER_SYSCALLS what was before it, LIMITS what bounded it, FOLLOWED who was followed.
    HAS_RUN says whether the container was seen to run, when the trace began, or when it was fetched or ended.
    TRACING says whether the trace goes on, STOPPED why it has ended by itself.
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
    fetched: float = field(default_factory=time.time)

    def as_json(self, loss: Loss) -> dict[str, Any]:
        """Return it with the account of LOSS."""
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
            "buffer_kb": self.buffer_kb,
            "events": self.events,
            **loss.as_json(),
        }
