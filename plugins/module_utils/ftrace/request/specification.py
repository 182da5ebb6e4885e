# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What to trace, and the settings of an instance that it comes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import (
    EventRequest,
    format_trigger,
    parse_trigger,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.filters import make_filter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.paths import PathPlan
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest, check_names
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.tracers import TracerRequest, check_request
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import SyscallNumbers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

SYS_ENTER = "raw_syscalls:sys_enter"
SYS_EXIT = "raw_syscalls:sys_exit"
# Without these nobody could say later which process an event was of. The last one comes after an exec of a 64-bit
# program only, and so tells those from 32-bit ones, whose system calls have other numbers.
PROCESS_EVENTS = ("sched:sched_process_exec", "task:task_newtask", "task:task_rename", "syscalls:sys_exit_execve")
# `docker exec` starts below the container's shim, and so do the runtime's own processes. Until runc hands over to the
# program it is called runc:[2:INIT]; "exe" is its copy of itself. crun starts within the container's control group.
_RUNTIME_NOISE = '!(COMM ~ "containerd-shim*") && !(COMM ~ "runc*") && COMM != "crun" && COMM != "exe"'
# Busybox's shell starts applets as "exe", too, and the rename from that to the applet's own name tells who it is.
_RENAME_NOISE = (
    '!(oldcomm ~ "containerd-shim*") && !(oldcomm ~ "runc*") && oldcomm != "crun" && '
    '!(newcomm ~ "containerd-shim*") && !(newcomm ~ "runc*") && newcomm != "crun" && newcomm != "exe"'
)
# A trigger without a condition is set off by every process of the host, one with a condition by those of the instance.
_ANYBODY_OF_OURS = "common_pid >= 0"
_MAX_FILTER_BYTES = 4095  # the kernel takes less than a page
_MAX_ERRNO = 4095
_NO_SYSCALL = -1  # what a return from a signal's handler ends as
_MIN_BUFFER_KB = 8  # two pages


@dataclass(frozen=True)
class Specification:
    """What to trace. SYSCALLS None means none of them; BUFFER_KB is per CPU, in units of 1024 bytes."""

    events: Mapping[str, EventRequest] = field(default_factory=dict)
    syscalls: SyscallNumbers | None = field(default_factory=SyscallNumbers)
    errors_only: bool = False
    buffer_kb: int = 2048
    clock: str = "mono"
    follow_exec: bool = True
    tracer: TracerRequest = field(default_factory=TracerRequest)
    probes: tuple[ProbeRequest, ...] = ()
    paths: PathPlan | None = None
    is_recorded: bool = False

    def list_probes(self) -> tuple[ProbeRequest, ...]:
        """All probes, with those for paths."""
        return (*self.probes, *(self.paths.probes if self.paths else ()))


@dataclass(frozen=True)
class Settings:
    """The state of an instance: control file → value, event → filter, event → triggers.

    SWITCHED are events that triggers switch on, and their filters: whether they are on is no matter of settings.
    """

    files: dict[str, str] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    triggers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    switched: dict[str, str] = field(default_factory=dict)


def find_settings(specification: Specification) -> Settings:
    """The settings that SPECIFICATION comes to; raises TraceError for what no kernel would take."""
    if specification.buffer_kb < _MIN_BUFFER_KB:
        raise TraceError(
            f"buffer_size: {specification.buffer_kb} KiB is less than the kernel takes: ask for 8KiB or more"
        )
    check_request(specification.tracer)
    check_names(specification.probes)
    requests = specification.events
    events = {event: one.filter for event, one in requests.items()}
    # What others need of these, no filter of a user's may take away.
    events.update(dict.fromkeys(specification.paths.events if specification.paths else (), ""))
    events.update(dict.fromkeys(PROCESS_EVENTS, ""))
    for event in PROCESS_EVENTS:
        if event in requests and requests[event].filter:
            raise TraceError(f"{event} takes no filter: it is recorded always, as processes have their names from it")
    for event, text in _find_syscall_filters(specification).items():
        own = events.get(event, "")
        events[event] = f"({text}) && ({own})" if text and own else text or own
    triggers = {event: one.triggers for event, one in sorted(requests.items()) if one.triggers}
    targets = {parse_trigger(text).target for texts in triggers.values() for text in texts}
    noise = _RUNTIME_NOISE if specification.follow_exec else ""
    settings = Settings(
        files={
            "trace_clock": specification.clock,
            "buffer_size_kb": str(specification.buffer_kb),
            "options/overwrite": "1",
            "options/event-fork": "1",
            # Where a recorder drains the buffer, tracing stops with that.
            "options/disable_on_free": "1" if specification.is_recorded else "0",
            **specification.tracer.find_files(),
        },
        events={
            event: _join(_RENAME_NOISE if noise and event == "task:task_rename" else noise, own)
            for event, own in events.items()
        },
        triggers={
            event: tuple(format_trigger(text, noise or _ANYBODY_OF_OURS) for text in texts)
            for event, texts in triggers.items()
        },
        switched=dict.fromkeys((target for target in sorted(filter(None, targets)) if target not in events), noise),
    )
    for event, text in settings.events.items():
        if len(text) > _MAX_FILTER_BYTES:
            raise TraceError(f"the filter for {event} is longer than the kernel takes: name fewer syscalls")
    return settings


def leave_out_noise(text: str) -> str:
    """TEXT, which quotes filters, without what we have put into them about the runtime's processes."""
    for noise in (_RUNTIME_NOISE, _RENAME_NOISE):
        text = text.replace(f" && {noise}", "").replace(f"{noise} && ", "")
    return text


def add_probes(settings: Settings, probes: Mapping[str, str], *, follow_exec: bool) -> Settings:
    """SETTINGS, and the events of PROBES (event → filter) of one container."""
    noise = _RUNTIME_NOISE if follow_exec else ""
    return replace(settings, events={**settings.events, **{event: _join(noise, own) for event, own in probes.items()}})


def _find_syscall_filters(specification: Specification) -> dict[str, str]:
    """Events of system calls and their filters."""
    numbers = specification.syscalls
    if numbers is None:
        return {}
    wanted = make_filter("id", {*numbers.native, *numbers.compat})
    if not specification.errors_only:
        returned = {_NO_SYSCALL} if numbers.has_returns else set()
        return {SYS_ENTER: wanted, SYS_EXIT: make_filter("id", {*numbers.native, *numbers.compat, *returned})}
    failed = f"ret < 0 && ret >= -{_MAX_ERRNO}"
    # What fewest events pass comes first: the kernel looks no further.
    return {SYS_EXIT: f"{failed} && ({wanted})" if wanted else failed}


def _join(noise: str, own: str) -> str:
    # First what fewest events pass and compares numbers: the kernel looks no further.
    return f"({own}) && {noise}" if noise and own else noise or own
