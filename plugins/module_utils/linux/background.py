# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run functions of the collection in Python processes beside the module.

These processes import from the place that this file came from: a folder, or the archive that Ansible sent. Ansible sends only what a
module imports, so a caller has to import the function that it starts here, even if the import is within a function.
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

# A start reads a hundred source files: half a second on a usual host, a minute on an emulated processor.
START_S = 300.0
_PAUSE_S = 0.05


def make_command(function: Callable[..., None], *numbers: int) -> list[str]:
    """Return the command that runs FUNCTION(*NUMBERS), a function of this collection, in a Python without site packages and user settings.

    That Python reads and writes UTF-8, whatever the host's locale is.
    """
    folder = __file__.rpartition("/ansible_collections/crashcart/fleet/")[0]
    name = function.__name__
    code = f"import sys; sys.path.insert(0, sys.argv[1]); from {function.__module__} import {name}; {name}(*map(int, sys.argv[2:]))"
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", code, folder, *map(str, numbers)]


def start_daemon(function: Callable[[int], None], is_running: Callable[[], bool]) -> bool:
    """Start FUNCTION(READY_FD) in a process with its own session and none of our files; return True once the daemon runs.

    The daemon runs when FUNCTION has written to READY_FD (tell_ready), or when IS_RUNNING finds a daemon that another process has
    started at the same time. By then all its imports are read, so Ansible may remove the archive. Returns False where the process has ended,
    or after five minutes.
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
    deadline = time.monotonic() + START_S
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
    """Report through READY_FD, to the process that started this one, that this process runs; close READY_FD."""
    with suppress(BrokenPipeError):  # the starter may have been killed
        os.write(ready_fd, b"+")
    os.close(ready_fd)


def leave_control_groups() -> None:
    """Move this process to the root of each cgroup hierarchy.

    In the login's group, the end of the login could end this process, too (KillUserProcesses of logind.conf(5)).
    """
    for mount in mounts.read_mounts("self", " - cgroup"):
        if mount.filesystem in ("cgroup", "cgroup2") and mount.root == "/":
            # Where the move is not allowed, the process has to stay in the login's group.
            with suppress(OSError), open(
                os.path.join(mount.mount_point, "cgroup.procs"), "w", encoding="ascii"
            ) as file:
                file.write("0")
