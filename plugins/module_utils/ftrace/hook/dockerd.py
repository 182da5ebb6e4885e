# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give Docker's daemon our runtimes, or take them away, by its configuration and a reload. The daemon is never restarted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes

_FIRST_WITH_CDI = (28, 2)
_RELOAD_S = 20.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class Daemon:
    """A Docker daemon by what it tells of itself.

    VERSION: its version. RUNTIMES: name → description of its runtimes. DEFAULT: the name of the default one.
    """

    version: str
    runtimes: Mapping[str, Any]
    default: str

    @property
    def has_cdi(self) -> bool:
        """Return True if this version of Docker reads CDI files by itself."""
        numbers = tuple(map(int, re.findall(r"\d+", self.version)[:2]))
        return numbers >= _FIRST_WITH_CDI

    def find_real(self) -> list[str]:
        """Return the command of Docker's default runtime, which our runtimes wrap; raises FleetError where that is one of ours or unknown."""
        if wiring.is_ours(self.default):
            raise FleetError(
                f"Docker's default runtime is {self.default}, which traces each container: make another one the default first"
            )
        about = self.runtimes.get(self.default) or {}
        path = about.get("path") or about.get("runtimeType") or self.default
        found = shutil.which(path)
        if found is None:
            raise FleetError(
                f"Docker's default runtime {self.default} is no program here ({path}), so it cannot be wrapped: leave `runtime` out of ways"
            )
        return [found, *(about.get("runtimeArgs") or ())]


def ask(engine: DockerEngine) -> Daemon:
    """Return what the daemon behind ENGINE tells of itself."""
    about = engine.read_info()
    return Daemon(
        str(about.get("ServerVersion", "")), about.get("Runtimes") or {}, str(about.get("DefaultRuntime", ""))
    )


def list_ours(engine: DockerEngine) -> set[str]:
    """Return the names of our runtimes that the daemon behind ENGINE has now."""
    return {name for name in ask(engine).runtimes if wiring.is_ours(name)}


def reload(engine: DockerEngine, pid_file: str, wanted: Sequence[str]) -> None:
    """Have the daemon behind ENGINE read its configuration again, and wait until it has just the runtimes WANTED of ours.

    Its pid is in PID_FILE. Raises FleetError if it does not.
    """
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read())
    except (OSError, ValueError) as error:
        raise FleetError(
            f"{pid_file} does not tell the pid of Docker's daemon: give its path as docker_pidfile"
        ) from error
    if processes.read_comm(pid) != "dockerd":
        raise FleetError(f"process {pid}, which {pid_file} names, is no dockerd: give the right file as docker_pidfile")
    os.kill(pid, signal.SIGHUP)
    deadline = time.monotonic() + _RELOAD_S
    while list_ours(engine) != set(wanted):
        if time.monotonic() > deadline:
            raise FleetError(
                "Docker's daemon has read its configuration again and does not have the runtimes that this says: see its log, and whether it"
                " reads that file (docker_config)"
            )
        time.sleep(_LOOK_S)
