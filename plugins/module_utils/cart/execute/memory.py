# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether the kernel has killed a command because its container's memory was used up. Sources: cgroup-v2.rst, cgroup-v1/memory.rst."""

from __future__ import annotations

import os

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import Mount
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes

# The files with the number of processes that were killed, and with the limit, of version 2 and of version 1.
_FILES = (("memory.events", "memory.max"), ("memory.oom_control", "memory.limit_in_bytes"))


class MemoryWatch:
    """The memory group of a container, in which a process has MEMBERSHIPS, and how many processes the kernel has killed there so far.

    HOST_MOUNTS: the host's mounts of control groups. Where no memory group is to be found, no kill is.
    """

    def __init__(self, memberships: list[cgroups.Membership], host_mounts: list[Mount], container_id: str) -> None:
        place = cgroups.find_controller_directory(memberships, host_mounts, "memory", container_id)
        self._folder, is_v1 = place or ("", False)
        self._kills_file, self._limit_file = _FILES[is_v1]
        self._before = self._count_kills()

    def explain_kill(self) -> str:
        """Return why the kernel has killed a process of the container since the watch began; '' where it has killed none."""
        if self._count_kills() <= self._before:
            return ""
        limit = cgroups.parse_number(self._read(self._limit_file))
        if limit is None or limit >= cgroups.NO_LIMIT:
            return "the kernel has killed the command, since the memory of the host, or of a control group above the container, is used up"
        return (
            f"the kernel has killed the command, since the container has reached its memory limit of {format_bytes(limit)}:"
            " raise the limit, or use a tool that needs less"
        )

    def _count_kills(self) -> int:
        return cgroups.parse_flat(self._read(self._kills_file)).get("oom_kill", 0)

    def _read(self, name: str) -> bytes:
        if not self._folder:
            return b""
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read(4096)
        except OSError:  # the container has ended
            return b""
