# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers that need no engine: those of LXC and systemd-nspawn, found by their cgroups, and any process, by its pid."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import (
    Process,
    ProcessGone,
    parse_status,
    read_start_ticks,
)

PROCESS_PREFIX = "pid:"
PROCESS_RUNTIME = "process"
# The hierarchy of cgroup version 2, and the two of version 1 in which both LXC and systemd-nspawn have groups.
_HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/pids")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
# Below the top of a hierarchy: where containers have their groups, and the name in the path of one. Later versions of systemd put no
# "machine-" before the name of a scope. Podman's scopes are in the same slice, and Podman lists them.
_PLACES = (
    ("lxc", "lxc.payload.*", re.compile(r"lxc\.payload\.(.+)")),
    ("lxc", "lxc/*", re.compile(r"lxc/([^.].*)")),
    ("systemd-nspawn", "machine.slice/machine-*.scope", re.compile(r"machine\.slice/machine-(.+)\.scope")),
    (
        "systemd-nspawn",
        "machine.slice/*.scope/payload",
        re.compile(r"machine\.slice/(?!machine-|libpod-)(.+)\.scope/payload"),
    ),
    (
        "systemd-nspawn",
        "machine.slice/systemd-nspawn@*.service",
        re.compile(r"machine\.slice/systemd-nspawn@(.+)\.service"),
    ),
)


class Machines:
    """The containers of LXC and systemd-nspawn on the host, and processes by their pids."""

    name = "machines"
    label = "cgroups"

    def list_containers(self) -> list[Container]:
        """Return the running containers of LXC and systemd-nspawn."""
        found: dict[str, Container] = {}
        for runtime, pattern, name_pattern in _PLACES:
            for hierarchy in _HIERARCHIES:
                for folder in sorted(glob.glob(f"{hierarchy}/{pattern}/")):
                    match = name_pattern.fullmatch(os.path.relpath(folder, hierarchy))
                    name = _unescape(match.group(1)) if match else ""
                    if name and f"{runtime}:{name}" not in found:
                        leader = _find_leader(folder)
                        owner = _find_owner(leader) if leader else None
                        if owner is not None:
                            found[f"{runtime}:{name}"] = Container(
                                name, name, "running", leader, "", {}, runtime, read_start_ticks(leader), owner or None
                            )
        return list(found.values())

    def find_process(self, text: str) -> Container:
        """Return the process that TEXT names, as pid:1234, as a container.

        Raises ContainerError where the host has no such process.
        """
        digits = text[len(PROCESS_PREFIX) :]
        pid = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
        start_ticks = read_start_ticks(pid)
        if start_ticks is None:
            raise ContainerError(f"{text}: the host has no such process")
        # The start time makes the id unique: a later process may have the same pid.
        return Container(
            f"{pid}-{start_ticks}", f"{PROCESS_PREFIX}{pid}", "running", pid, "", {}, PROCESS_RUNTIME, start_ticks
        )

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return a description of CONTAINER in the form of `docker inspect`, as far as it is known."""
        return {
            "Id": container.id,
            "Name": container.name,
            "State": {"Status": container.state, "Pid": container.pid},
            "Config": {"Image": "", "Labels": {}},
        }

    def refresh(self, container: Container) -> Container:
        """Return a copy of CONTAINER; raises ContainerGoneError where it has ended."""
        if read_start_ticks(container.pid) != container.start_ticks:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) has just ended")
        return replace(container)

    def predict_place(self, _container: Container) -> Place | None:
        """Return None: the program that starts such a container also chooses its control group."""
        return None

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        # The host's environment must not reach the container.
        enter = ["nsenter", "--all", "--root", "--wd", f"--target={container.pid}"]
        return ["env", "-i", "TERM=xterm", *variables, *enter, *argv]


def _unescape(name: str) -> str:
    """Return NAME with systemd's escapes resolved; names of machines contain only the one for "-"."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), name)


def _find_owner(pid: int) -> int | None:
    """Return the owner of the user namespace of process PID, the first of a container; None where the process has ended.

    A container that root starts has a user namespace of root, whatever numbers are mapped in it. Its name proves nothing: a service that manages
    machines for users names them as they like.
    """
    try:
        with Process(pid) as process:
            return process.read_owner()
    except ProcessGone:
        return None


def _find_leader(folder: str) -> int:
    """Return the first process of the pid namespace of the processes below the cgroup FOLDER; 0 where that is the host's namespace."""
    for pid in sorted(cgroups.gen_pids(folder)):
        try:
            with Process(pid) as process:
                numbers = parse_status(process.read("status")).get("NSpid", "").split()
        except ProcessGone:
            continue
        if len(numbers) == 2 and numbers[1] == "1":
            return pid
    return 0
