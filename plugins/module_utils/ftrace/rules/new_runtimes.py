# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Learn of each container runtime that is executed on the host to start a container, tens of milliseconds before it makes the container."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from typing import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    RUNTIME_NAMES,
    is_runtimes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.event_notices import EventNotices
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_EVENT = "sched/sched_process_exec"
_CONDITION = " || ".join(f'filename ~ "*/{name}"' for name in RUNTIME_NAMES)
# What comes first of these on the command line is the runtime's command: it may have words of options before.
_STARTING = {b"create", b"run", b"restore"}
_OTHERS = set(b"checkpoint delete events exec features init kill list pause ps resume spec start state update".split())
_MAX_WORDS_BYTES = 1 << 16
# So many programs in a second that are called like runtimes and start no container are looked at as they come, and more of them later.
_MAX_NOISE = 100
_LOST = "so many programs called like runtimes were executed at once that the start of a container may have been missed"
_NOISE = "programs called like runtimes are executed so often that they are looked at late: the start of a container may be missed"


class RuntimeWatcher:
    """A watch of all executions of runtimes on the host, in the pid namespace of this process; TRACING is any trace instance.

    FD is readable when one may have been executed. TROUBLES: what prevents that they are seen, in words.
    """

    def __init__(self, tracing: Instance) -> None:
        self.troubles: list[str] = []
        self._tracing = tracing
        self._notices: EventNotices | None = None
        self._poll = select.epoll()
        self._noise = 0
        self._second = 0
        self._is_paused = False
        self.fd = self._poll.fileno()
        self._begin()

    def _begin(self) -> None:
        try:
            self._notices = EventNotices(self._tracing, _EVENT, _CONDITION)
        except (OSError, TraceError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._tell(f"runtimes that are executed are not seen ({why}): the start of a container may be missed")
            return
        for fd in self._notices.fds:
            self._poll.register(fd, select.EPOLLIN)

    def _tell(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.append(trouble)

    def read(self, is_passed_over: Callable[[int, bytes], bool]) -> set[int]:
        """Return the pids of the runtimes that have been executed since the last call, and that start a container.

        IS_PASSED_OVER(pid, text of its /proc/PID/cgroup) is true for a process that is in a container.
        """
        if self._notices is None:
            return set()
        found = set()
        for pid in self._notices.read():
            if _starts_container(pid, is_passed_over):
                found.add(pid)
            else:
                self._noise += 1
        if self._notices.has_lost:
            self._tell(_LOST)
        self._pace(self._notices)
        return found

    def _pace(self, notices: EventNotices) -> None:
        """Let nobody wake this process more often than a host's health checks do."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._noise = second, 0
            if not notices.is_current():
                notices.close()
                self._notices = None
                self._begin()
        is_loud = self._noise > _MAX_NOISE
        if is_loud:
            self._tell(_NOISE)
        if is_loud != self._is_paused and self._notices is not None:
            self._is_paused = is_loud
            for fd in self._notices.fds:
                self._poll.modify(fd, 0 if is_loud else select.EPOLLIN)

    def close(self) -> None:
        """End the watch."""
        if self._notices:
            self._notices.close()
        self._poll.close()


def _starts_container(pid: int, is_passed_over: Callable[[int, bytes], bool]) -> bool:
    """Return True if process PID is a runtime of root's that starts a container; anybody may call a program so."""
    with suppress(processes.ProcessGone, OSError), processes.Process(pid) as process:
        status = processes.parse_status(process.read("status"))
        # In another pid namespace it starts containers within a container, whose processes are that one's.
        if len(status.get("NSpid", "").split()) != 1 or process.read_owner() != 0 or status["Uid"].split()[1] != "0":
            return False
        if not is_runtimes(status["Name"]) or is_passed_over(pid, process.read("cgroup")):
            return False
        fd = process.open("cmdline")
        try:
            words = os.read(fd, _MAX_WORDS_BYTES).split(b"\0")[1:]  # a process may have as many as it likes
        finally:
            os.close(fd)
        return next((word for word in words if word in _STARTING or word in _OTHERS), b"") in _STARTING
    return False
