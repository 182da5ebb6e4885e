# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be run, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.rights import Rights
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError


class ExecutionError(FleetError):
    """A command could not be started; the text says in which container and why."""


# What a command may do: what its container's first process may; that and what tools need; or what the host's root may.
RIGHTS = CONTAINER, TOOLS, HOST = ("container", "tools", "host")
NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup", "time", "user")  # as in /proc/PID/ns
HOST_NAMESPACES = NAMESPACES[:5]  # those that a command with the host's rights enters by default
MAX_OUTPUT_BYTES = 4 << 20


@dataclass(frozen=True)
class Command:
    """What to run: TIMEOUT_S None waits for ever; ENV goes on top of the image's own.

    RIGHTS is one of RIGHTS. CAPABILITIES, a set, replaces what TOOLS adds, or are the only ones of HOST; None stands for the usual ones.
    TRUST_CONTAINER allows HOST also with an image whose programs load files of the container. USER and IMAGE are names, None for the
    user of the first process and for the attached image, or the one called default.
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
    """Where a command's output goes: into the result, or, with DEST, into files in that folder of the host.

    MAX_BYTES is the bound for each stream and container; None is 4 MiB for results and no bound for files. ENCODING is text or base64.
    """

    max_bytes: int | None = None
    encoding: str = "text"
    dest: str | None = None

    @property
    def bound(self) -> int | None:
        """The bound that holds."""
        return MAX_OUTPUT_BYTES if self.max_bytes is None and self.dest is None else self.max_bytes


@dataclass(frozen=True)
class Job:
    """A command for one container: MOUNT_FD is a detached mount of the image for PREFIX, PROGRAM and ENVIRONMENT are in its terms.

    GROUPS are the control groups to join: names of hierarchies and descriptors of their files.
    """

    target: Target
    command: Command
    rights: Rights
    mount_fd: int
    prefix: str
    program: str
    environment: dict[str, str]
    groups: dict[str, int]


@dataclass
class Result:
    """How a command ended: RC is 128 + n after signal n; times are seconds since the epoch; sizes are what it wrote, in bytes."""

    container: str
    id: str
    rc: int = -1
    stdout_size: int = 0
    stderr_size: int = 0
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timed_out: bool = False
    rights: str = TOOLS
    start: float = 0.0
    end: float = 0.0
    error: str = ""
