# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to trace, as the user says it, and the settings of an instance that it comes to. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import TraceError

SYS_ENTER = "raw_syscalls:sys_enter"
SYS_EXIT = "raw_syscalls:sys_exit"
# Without these nobody could say later which process an event was of.
PROCESS_EVENTS = ("sched:sched_process_exec", "task:task_newtask", "task:task_rename")
# `docker exec` starts below the container's shim, and so do the runtime's own processes. Until runc hands over to the
# program it is called runc:[2:INIT]; "exe" is its copy of itself.
_RUNTIME_NOISE = '!(COMM ~ "containerd-shim*") && !(COMM ~ "runc*") && COMM != "exe"'
# Busybox's shell starts applets as "exe", too, and the rename from that to the applet's own name tells who it is.
_RENAME_NOISE = (
    '!(oldcomm ~ "containerd-shim*") && !(oldcomm ~ "runc*") && '
    '!(newcomm ~ "containerd-shim*") && !(newcomm ~ "runc*") && newcomm != "exe"'
)
_EVENT_NAME = re.compile(r"[A-Za-z0-9_-]+:[A-Za-z0-9_-]+\Z")
_MAX_FILTER_BYTES = 4095  # the kernel takes less than a page
_MAX_ERRNO = 4095
_MIN_BUFFER_KB = 8  # two pages


@dataclass(frozen=True)
class Specification:
    """What to trace. SYSCALLS are numbers (empty: all); BUFFER_KB is per CPU, in units of 1024 bytes."""

    events: tuple[str, ...] = ()
    syscalls: tuple[int, ...] = ()
    errors_only: bool = False
    buffer_kb: int = 2048
    clock: str = "mono"
    follow_exec: bool = True


@dataclass(frozen=True)
class Settings:
    """The state of an instance: control file → value, and event → filter."""

    files: dict[str, str] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)


def find_settings(specification: Specification) -> Settings:
    """The settings that SPECIFICATION comes to; raises TraceError for what no kernel would take."""
    for event in specification.events:
        if not _EVENT_NAME.match(event):
            raise TraceError(f"{event!r} is not an event: write system:name, for example sched:sched_switch")
    if specification.buffer_kb < _MIN_BUFFER_KB:
        raise TraceError(
            f"buffer_size: {specification.buffer_kb} KiB is less than the kernel takes: ask for 8KiB or more"
        )
    events = dict.fromkeys((*specification.events, *PROCESS_EVENTS), "")
    wanted = " || ".join(f"id == {number}" for number in sorted(specification.syscalls))
    if specification.errors_only:
        failed = f"ret < 0 && ret >= -{_MAX_ERRNO}"
        events[SYS_EXIT] = f"({wanted}) && {failed}" if wanted else failed
    else:
        events[SYS_ENTER] = events[SYS_EXIT] = wanted
    if specification.follow_exec:
        events = {
            event: _join(_RENAME_NOISE if event == "task:task_rename" else _RUNTIME_NOISE, own)
            for event, own in events.items()
        }
    for event, text in events.items():
        if len(text) > _MAX_FILTER_BYTES:
            raise TraceError(f"the filter for {event} is longer than the kernel takes: name fewer syscalls")
    return Settings(
        files={
            "trace_clock": specification.clock,
            "buffer_size_kb": str(specification.buffer_kb),
            "options/overwrite": "1",
            "options/event-fork": "1",
        },
        events=events,
    )


def _join(noise: str, own: str) -> str:
    return f"{noise} && ({own})" if own else noise
