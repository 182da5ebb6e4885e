# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test that hosts with engines leave nothing on this machine, however the tests end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support import host

HERE = Path(__file__).parent
FOLDER = str(HERE.parents[1] / "build/engines")
# Starts a host with containers of all engines, of which one is traced, and waits.
USE = """
import sys
import time
from contextlib import suppress
from pathlib import Path
sys.path[:0] = sys.argv[1:4]
import engines, modules, place
with place.start("bookworm") as host, modules.ModuleServer(host) as server:
    for kind in engines.KINDS:
        engines.choose(kind, host).run(f"cc-{kind}", "sleep 1000")
    server.call("ftrace_instance", {"containers": "cc-*"})
    print("ready", flush=True)
    sys.stdin.read()
"""


def look():
    """Return what tests of engines could leave on this machine."""
    commands, namespaces = [], set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            namespaces.add(os.readlink(folder / "ns/mnt"))
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            commands += [command] if str(HERE) in command or FOLDER in command else []
    return {
        "processes": sorted(commands),
        "mount namespaces": sorted(namespaces),
        "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
        "sockets": sorted(line.split(None, 7)[7:] for line in Path("/proc/net/unix").read_text().splitlines()),
        "listeners": sorted(
            line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line
        ),
        "control groups": sorted(map(str, Path("/sys/fs/cgroup").rglob("*/"))),
        "loop devices": host.run("losetup", "-a").stdout,
        "instances": sorted(os.listdir(f"{host.TRACEFS}/instances")),
        "probes": Path(f"{host.TRACEFS}/dynamic_events").read_text(),
        "files": sorted(str(path) for top in ("/run", "/var/lib", "/etc") for path in Path(top).glob("*")),
        "build": sorted(map(str, Path(FOLDER).glob("*"))),
    }


@pytest.mark.parametrize("end", ["EOF", "INT", "KILL", "KILL of all"])
def test_nothing_is_left(end):
    before = look()
    paths = [str(HERE), str(HERE.parent / "fleet"), str(HERE.parent / "integration")]
    with subprocess.Popen(
        [sys.executable, "-c", USE, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as user:
        try:
            assert user.stdout.readline() == "ready\n"
            during = look()
            assert len(during["instances"]) - len(before["instances"]) == 3
            assert during["listeners"] != before["listeners"]
            if end == "EOF":
                user.stdin.close()
            elif end != "KILL of all":
                user.send_signal(getattr(signal, f"SIG{end}"))
            else:
                os.killpg(user.pid, signal.SIGKILL)  # with the keeper
            user.wait(host.seconds(60))
        finally:
            user.kill()
    if end == "KILL of all":
        # The archives stay in the cache, for the next tests.
        host.run(sys.executable, str(HERE / "clean.py"), "--keep-archives")
    # A keeper that has lost its user, and what the kernel ends by itself, take a moment.
    deadline = time.monotonic() + host.seconds(60)
    while look() != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert look() == before
