# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are to be run, and their results."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.memory import MemoryWatch
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError


class ExecutionError(FleetError):
    """A command that could not be started; the text says in which container and why."""


# A command has the rights of its container's first process; or these and the rights that tools need; or the rights of the host's root.
RIGHTS = CONTAINER, TOOLS, HOST = ("container", "tools", "host")
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user")  # as in /proc/PID/ns
HOST_NAMESPACES = NAMESPACES[:5]  # that a command with the host's rights enters by default
MAX_OUTPUT_BYTES = 4 << 20


@dataclass(frozen=True)
class Command:
    """A command to run.

    TIMEOUT_S: None for no limit. ENV: variables on top of the image's own. RIGHTS: one of the constant RIGHTS.
    CAPABILITIES: a set that replaces the one that TOOLS adds, or the only ones of HOST; None for the usual ones.
    TRUST_CONTAINER: allows HOST also with an image whose programs load files of the container.
    USER: a name or numbers; None for the user of the first process, or with HOST for root.
    IMAGE: a name; None for the attached image, or else the one called default.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    chdir: str = "/"
    timeout_s: float | None = None
    namespaces: tuple[str, ...] = NAMESPACES
    rights: str = TOOLS
    capabilities: int | None = None
    trust_container: bool = False
    user: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Output:
    """The destination of a command's output: the result, or, with DEST, files in that folder of the host.

    MAX_BYTES: the bound for each stream and container; None for 4 MiB in results and for no bound in files. ENCODING: text or base64.
    """

    max_bytes: int | None = None
    encoding: str = "text"
    dest: str | None = None

    @property
    def bound(self) -> int | None:
        """Return the bound that applies, in bytes; None for no bound."""
        return MAX_OUTPUT_BYTES if self.max_bytes is None and self.dest is None else self.max_bytes


@dataclass(frozen=True)
class Job:
    """A command for one container.

    MOUNT_FD: a detached mount of the image for PREFIX. PROGRAM, ENVIRONMENT: as seen with the image at PREFIX.
    GROUPS: the control groups to join, descriptors of their files by names of hierarchies. MEMORY: tells of the kernel's kills.
    """

    target: Target
    command: Command
    rights: Rights
    mount_fd: int
    prefix: str
    program: str
    environment: dict[str, str]
    groups: dict[str, int]
    memory: MemoryWatch

    def explain_kill(self, rc: int) -> str:
        """Return why the kernel has killed the command, which has ended with RC; '' where nothing says that it has."""
        return self.memory.explain_kill() if rc == 128 + signal.SIGKILL else ""


@dataclass
class Result:
    """The end of a command.

    RC: the exit code, or 128 + n after signal n. START, END: seconds since the epoch. Sizes: bytes that the command wrote.
    ERROR: why the command could not be run, was killed by the kernel, or its output cannot be kept.
    """

    container: str
    id: str
    rc: int = -1
    stdout_size: int = 0
    stderr_size: int = 0
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timed_out: bool = False
    oom_killed: bool = False
    rights: str = TOOLS
    start: float = 0.0
    end: float = 0.0
    error: str = ""
