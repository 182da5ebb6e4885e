# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small Pythons of our own beside the module: they import from where this file came from, a folder or the archive that Ansible sent.

Ansible sends what a module imports, so whoever starts a function here has to import it, be it within a function.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts

_START_S = 20.0
_PAUSE_S = 0.05


def make_command(function: Callable[..., None], *numbers: int) -> list[str]:
    """The command that runs FUNCTION(*NUMBERS), one of a module's own, in a Python without site packages and user settings.

    What it reads and starts is UTF-8, whatever the host's locale is.
    """
    folder = __file__.rpartition("/ansible_collections/crashcart/fleet/")[0]
    name = function.__name__
    code = f"import sys; sys.path.insert(0, sys.argv[1]); from {function.__module__} import {name}; {name}(*map(int, sys.argv[2:]))"
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, folder, *map(str, numbers)]


def start_daemon(function: Callable[[int], None], is_running: Callable[[], bool]) -> bool:
    """Start FUNCTION(READY_FD) in a process of its own session that holds no file of ours; whether it has written to READY_FD in time.

    Or whether another one IS_RUNNING, which somebody has started at the same time.
    All that it imports is read by then, so the archive may go.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        subprocess.Popen(
            make_command(function, writer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LANG": "C"},
            pass_fds=[writer],
            start_new_session=True,
        )
    finally:
        os.close(writer)
    deadline = time.monotonic() + _START_S
    try:
        while time.monotonic() < deadline:
            if select.select([reader], [], [], _PAUSE_S)[0]:
                return bool(os.read(reader, 1)) or is_running()
            if is_running():
                return True
        return False
    finally:
        os.close(reader)


def tell_ready(ready_fd: int) -> None:
    """Tell whoever has started this process, who may have been killed since, that it runs."""
    with suppress(BrokenPipeError):
        os.write(ready_fd, b"+")
    os.close(ready_fd)


def leave_control_groups() -> None:
    """Move to the root of each hierarchy: else a login's end may end this process, too (KillUserProcesses of logind.conf(5))."""
    for mount in mounts.read_mounts("self", " - cgroup"):
        if mount.filesystem in ("cgroup", "cgroup2") and mount.root == "/":
            # Where that is not allowed the login's group is as good as it gets.
            with suppress(OSError), open(
                os.path.join(mount.mount_point, "cgroup.procs"), "w", encoding="ascii"
            ) as file:
                file.write("0")
