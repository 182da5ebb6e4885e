# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a process in a user namespace of its own without an engine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from support import host


@contextmanager
def run_in_user_namespace() -> Iterator[int]:
    """Run a process in user, mount, pid and network namespaces of its own and give its pid. Users 0 to 65535 are 100000 to 165535 outside."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.read(ready, 1)
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            words = [
                "unshare",
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sleep",
                "100000",
            ]
            os.execvp(words[0], words)
        finally:
            os._exit(1)
    try:
        host.wait_until(lambda: os.readlink(f"/proc/{child}/ns/user") != os.readlink("/proc/self/ns/user"))
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text("0 100000 65536\n")
        os.write(go, b"x")
        pid = int(host.wait_until(Path(f"/proc/{child}/task/{child}/children").read_text))
        host.wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        yield pid
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(go)
