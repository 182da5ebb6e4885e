# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Turn a specification of what to trace into the settings of an instance. Pure."""

from __future__ import annotations

import fnmatch
import re
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
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_RUNTIME_TITLE, TITLE_LENGTH

SYS_ENTER = "raw_syscalls:sys_enter"
SYS_EXIT = "raw_syscalls:sys_exit"
# These events tell a reader the process of each event. The last one comes only after an exec of a 64-bit program, and so tells
# 64-bit programs from 32-bit ones, whose system calls have other numbers.
_NEW_TASK, _RENAME = "task:task_newtask", "task:task_rename"
PROCESS_EVENTS = ("sched:sched_process_exec", _NEW_TASK, _RENAME, "syscalls:sys_exit_execve")
# `docker exec` starts its program below the container's shim, where the runtime's own processes start, too. crun starts within the container's
# control group. runc is called runc:[2:INIT] until it becomes the program. Before that both run a copy of themselves (CVE-2019-5736), whose
# name tells how it was started: "exe" for /proc/self/exe, the number of a descriptor for /proc/self/fd/6 and for fexecve(3), and since
# Linux 6.14 the file's own name for the latter.
RUNTIME_NAMES = ("runc*", "crun")
# Docker's own runtime may be within one of ours.
_OUTSIDE_NAMES = ("containerd-shim*", *RUNTIME_NAMES, HOOK_RUNTIME_TITLE[:TITLE_LENGTH])
_COPY_NAMES = ("exe", "[0-9]", "[0-9][0-9]", "memfd:runc*", "memfd:crun*")
_NAMES = re.compile("|".join(map(fnmatch.translate, (*_OUTSIDE_NAMES, *_COPY_NAMES))))


def is_runtimes(comm: str) -> bool:
    """Return True if a process called COMM is taken for one of the runtime's."""
    return bool(_NAMES.match(comm))


def _exclude(field_name: str, names: tuple[str, ...]) -> str:
    signs = (("==" if name.isalpha() else "~", name) for name in names)
    return " && ".join(f'!({field_name} {sign} "{name}")' for sign, name in signs)


_RUNTIME_NOISE = _exclude("COMM", (*_OUTSIDE_NAMES, *_COPY_NAMES))
# Busybox's shell starts applets as "exe", too. The rename from "exe" to the applet's own name has to be recorded: it names the process.
_RENAME_NOISE = f"{_exclude('oldcomm', _OUTSIDE_NAMES)} && {_exclude('newcomm', (*_OUTSIDE_NAMES, *_COPY_NAMES))}"
# Every process of the host sets off a trigger without a condition; only the instance's processes set off one with a condition.
_ANYBODY_OF_OURS = "common_pid >= 0"
_MAX_FILTER_BYTES = 4095  # the kernel takes less than a page
_MAX_ERRNO = 4095
_NO_SYSCALL = -1  # the number in sys_exit of a return from a signal's handler
_MIN_BUFFER_KB = 8  # two pages


@dataclass(frozen=True)
class Specification:
    """A specification of what to trace, in terms of this host's kernel.

    EVENTS: event → request.
    SYSCALLS: the system calls to record; None for no calls, an object without numbers for all.
    ERRORS_ONLY: True if only calls that fail are recorded.
    BUFFER_KB: the ring buffer of one CPU, in units of 1024 bytes.
    CLOCK: the trace clock.
    FOLLOW_EXEC: True if programs that the runtime starts in the container later are recorded, too.
    TRACER, PROBES: the tracer, and the user's probes.
    PATHS: how the paths of system calls are recorded; None if they are not.
    IS_RECORDED: True if a recorder drains the buffers to files.
    IS_SHARED: True if the instance records several containers, whose threads are told apart by who has made them.
    """

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
    is_shared: bool = False

    def list_probes(self) -> tuple[ProbeRequest, ...]:
        """Return all probes: the user's, then those for the paths of system calls."""
        return (*self.probes, *(self.paths.probes if self.paths else ()))


@dataclass(frozen=True)
class Settings:
    """The settings of an instance.

    FILES: control file → value.
    EVENTS: event → filter, for all events that are on.
    TRIGGERS: event → triggers.
    SWITCHED: event → filter, for events that triggers switch on; these events may be on or off.
    """

    files: dict[str, str] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    triggers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    switched: dict[str, str] = field(default_factory=dict)


def find_settings(specification: Specification) -> Settings:
    """Return the settings that SPECIFICATION needs; raises TraceError for settings that no kernel would take."""
    if specification.buffer_kb < _MIN_BUFFER_KB:
        raise TraceError(
            f"buffer_size: {specification.buffer_kb} KiB is less than the kernel takes: ask for 8KiB or more"
        )
    check_request(specification.tracer)
    check_names(specification.probes)
    requests = specification.events
    events = {event: request.filter for event, request in requests.items()}
    # A user's filter must not apply to the events that the paths and the names of processes come from.
    events.update(dict.fromkeys(specification.paths.events if specification.paths else (), ""))
    events.update(dict.fromkeys(PROCESS_EVENTS, ""))
    for event in PROCESS_EVENTS:
        if event in requests and requests[event].filter:
            raise TraceError(f"{event} takes no filter: it is always recorded, because it tells the names of processes")
    for event, text in _find_syscall_filters(specification).items():
        own = events.get(event, "")
        events[event] = f"({text}) && ({own})" if text and own else text or own
    triggers = {event: request.triggers for event, request in sorted(requests.items()) if request.triggers}
    targets = {parse_trigger(text).target for texts in triggers.values() for text in texts}
    noise = _RUNTIME_NOISE if specification.follow_exec else ""
    noises = {**dict.fromkeys(events, noise), _RENAME: _RENAME_NOISE if noise else ""}
    if specification.is_shared:
        noises[_NEW_TASK] = ""  # the runtime makes a container's processes, too
    settings = Settings(
        files={
            "trace_clock": specification.clock,
            "buffer_size_kb": str(specification.buffer_kb),
            "options/overwrite": "1",
            "options/event-fork": "1",
            # A trace that a recorder drains stops when that recorder ends.
            "options/disable_on_free": "1" if specification.is_recorded else "0",
            **specification.tracer.find_files(),
        },
        events={event: _join(noises[event], own) for event, own in events.items()},
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
    """Return TEXT, which quotes filters, without the conditions about the runtime's processes that find_settings adds."""
    for noise in (_RUNTIME_NOISE, _RENAME_NOISE):
        text = text.replace(f" && {noise}", "").replace(f"{noise} && ", "")
    return text


def add_probes(settings: Settings, probes: Mapping[str, str], *, follow_exec: bool) -> Settings:
    """Return SETTINGS with the events of one container's PROBES (event → filter)."""
    noise = _RUNTIME_NOISE if follow_exec else ""
    return replace(settings, events={**settings.events, **{event: _join(noise, own) for event, own in probes.items()}})


def _find_syscall_filters(specification: Specification) -> dict[str, str]:
    """Return event → filter for the events that record system calls."""
    numbers = specification.syscalls
    if numbers is None:
        return {}
    wanted = make_filter("id", {*numbers.native, *numbers.compat})
    if not specification.errors_only:
        returned = {_NO_SYSCALL} if numbers.has_returns else set()
        return {SYS_ENTER: wanted, SYS_EXIT: make_filter("id", {*numbers.native, *numbers.compat, *returned})}
    failed = f"ret < 0 && ret >= -{_MAX_ERRNO}"
    # The kernel stops at the first condition that fails, so the condition that fewest events pass comes first.
    return {SYS_EXIT: f"{failed} && ({wanted})" if wanted else failed}


def _join(noise: str, own: str) -> str:
    # The kernel stops at the first condition that fails. The own filter comes first: fewer events pass it, and it compares numbers.
    return f"({own}) && {noise}" if noise and own else noise or own
