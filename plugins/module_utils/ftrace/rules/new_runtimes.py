# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Learn of each container runtime that is executed on the host to start a container, tens of milliseconds before it makes the container."""

from __future__ import annotations

from contextlib import suppress

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import (
    RUNTIME_NAMES,
    is_runtimes,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.event_notices import EventNotices
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

_EVENT = "sched/sched_process_exec"
_CONDITION = " || ".join(f'filename ~ "*/{name}"' for name in RUNTIME_NAMES)
# What comes first of these on the command line is the runtime's command: it may have words of options before.
_STARTING = {b"create", b"run", b"restore"}
_OTHERS = set(b"checkpoint delete events exec features init kill list pause ps resume spec start state update".split())


class RuntimeWatcher:
    """A watch of all executions of runtimes on the host, in the pid namespace of this process; TRACING is any trace instance.

    FDS are readable when one may have been executed. TROUBLES: what prevents that they are seen, in words.
    """

    def __init__(self, tracing: Instance) -> None:
        self.troubles: list[str] = []
        self._notices: EventNotices | None = None
        try:
            self._notices = EventNotices(tracing, _EVENT, _CONDITION)
        except OSError as error:
            self.troubles.append(
                f"runtimes that are executed are not seen ({error.strerror}): the start of a container may be missed"
            )

    @property
    def fds(self) -> list[int]:
        """Return the descriptors; none where the kernel gives no notices."""
        return self._notices.fds if self._notices else []

    def read(self) -> set[int]:
        """Return the pids of the runtimes that have been executed since the last call, and that start a container."""
        return {pid for pid in self._notices.read() if _starts_container(pid)} if self._notices else set()

    def close(self) -> None:
        """End the watch."""
        if self._notices:
            self._notices.close()


def _starts_container(pid: int) -> bool:
    """Return True if process PID is a runtime of root's that starts a container; anybody may call a program so."""
    with suppress(processes.ProcessGone, OSError), processes.Process(pid) as process:
        words = process.read("cmdline").split(b"\0")[1:]
        if next((word for word in words if word in _STARTING or word in _OTHERS), b"") not in _STARTING:
            return False
        status = processes.parse_status(process.read("status"))
        # In another pid namespace it starts containers within a container, whose processes are that one's.
        is_hosts = len(status.get("NSpid", "").split()) == 1 and process.read_owner() == 0
        return is_hosts and status["Uid"].split()[1] == "0" and is_runtimes(status["Name"])
    return False
