# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is to be run, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import User
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError


class ExecutionError(FleetError):
    """A command could not be started; the text says in which container and why."""


@dataclass(frozen=True)
class Command:
    """What to run: TIMEOUT_S None waits for ever; ENV goes on top of the image's own."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    chdir: str = "/"
    timeout_s: float | None = None


@dataclass(frozen=True)
class Job:
    """A command for one container: MOUNT_FD is a detached mount of the image for PREFIX, PROGRAM and ENVIRONMENT are in its terms."""

    target: Target
    command: Command
    user: User
    mount_fd: int
    prefix: str
    program: str
    environment: dict[str, str]


@dataclass
class Result:
    """How a command ended: RC is 128 + n after signal n; times are seconds since the epoch."""

    container: str
    id: str
    rc: int = -1
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timed_out: bool = False
    start: float = 0.0
    end: float = 0.0
    error: str = ""
