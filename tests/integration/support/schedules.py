# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A schedule on this machine by cron, whose runs a test begins itself, as cron begins them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.running import LOCK
from support import host

PACKAGES = Path(__file__).resolve().parents[3] / "tools/install_packages.sh"
# This machine's own tables stay out of it.
_DAEMON = (
    "mount -t tmpfs none /etc/cron.d; cat >/etc/cron.d/schedule; mount --bind /dev/null /etc/crontab; exec cron -f"
)


def kill_with_children(pid: int) -> None:
    """Kill process PID, and all processes that it and they have started, whichever sessions they have made."""
    found = [str(pid)]
    for parent in found:
        # A process that is stopped starts no other one between the look at its children and its end.
        host.run("kill", "-STOP", parent, check=False)
        found += host.run("pgrep", "-P", parent, check=False).stdout.split()
    host.run("kill", "-KILL", *found, check=False)


class Schedule:
    """A schedule called NAME. VARIABLES are those of its playbook, without their prefix crashcart_. `take_away` ends it."""

    def __init__(self, name: str, **variables: Any) -> None:
        self.crontab = Path(f"/etc/cron.d/crashcart-schedule-{name}")
        self.folder = Path(f"/var/lib/crashcart-schedules/{name}")
        self._variables = {"name": name, "cron": "* * * * *", "offset": "1s", "time_limit": "10m", **variables}

    def play(self, *options: str, check: bool = True, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the playbook with OPTIONS, and with VARIABLES beside those of the schedule."""
        return host.playbook("schedule", *options, check=check, **{**self._variables, **variables})

    def take_away(self) -> str:
        """Run the playbook that takes the schedule away, and return what it prints."""
        return self.play(state="absent").stdout

    def list_words(self, word: str = "--timer") -> list[str]:
        """Return the command of the schedule's line for cron that has WORD, for a process with cron's environment."""
        (line,) = [line for line in self.crontab.read_text().splitlines() if word in line]
        command = re.sub(r"^(@reboot|(\S+ ){5})\s*root ", "", line)
        return ["env", "-i", f"PATH={os.environ['PATH']}", "/bin/sh", "-c", f"exec {command}"]

    def run(self, word: str = "--timer") -> subprocess.CompletedProcess[str]:
        """Run the schedule once and return the ended process, whatever has come of it."""
        return host.run(*self.list_words(word), check=False)

    def wait_for_killed_run(self, store: Path) -> None:
        """Wait until nothing is left of a run into STORE that was killed: a process whose parent had just ended was not found.

        Such a process ends by itself, and has the run's locks until then.
        """
        for lock in (self.folder / LOCK, store / LOCK):
            host.wait_until(lambda lock=lock: host.run("flock", "-n", str(lock), "true", check=False).returncode == 0)

    @contextmanager
    def cron(self) -> Iterator[None]:
        """Run cron's own daemon, which begins the runs, until the context ends."""
        host.run(str(PACKAGES), "cron")
        with host.start("unshare", "--mount", "sh", "-c", _DAEMON, stdin=subprocess.PIPE) as daemon:
            daemon.stdin.write(self.crontab.read_bytes())
            daemon.stdin.close()
            yield

    def read_record(self) -> dict[str, Any]:
        """Return the record of the last run."""
        record: dict[str, Any] = json.loads((self.folder / "last-run.json").read_text())
        return record
