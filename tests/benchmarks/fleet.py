# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make fleet-bench` measures: how fast guests are there, what they need, and a ping beside crashcart_info. Prints tables."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "fleet"))

import fleet
import golden
from tables import print_table

ROUNDS = 3


def time_up(count: int) -> float:
    """Seconds from nothing to COUNT guests that let somebody in."""
    fleet.down()
    start = time.perf_counter()
    fleet.up(count)
    return time.perf_counter() - start


def read_memory_mib(host: fleet.Host) -> float:
    """The proportional share of memory of HOST's process: what clones share counts in parts."""
    text = Path(f"/proc/{host.machine.find_pid()}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def time_ansible(pattern: str, module: str) -> float:
    """Seconds of one ad-hoc call."""
    start = time.perf_counter()
    subprocess.run(
        ["ansible", pattern, "-i", str(fleet.INVENTORY), "-b", "-m", module],
        cwd=fleet.ROOT,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def main() -> None:
    golden.prepare()
    try:
        starts = [[count, statistics.median(time_up(count) for _round in range(ROUNDS))] for count in (1, 3)]
        print_table("From nothing to ssh", ["guests", "s"], starts)
        hosts = fleet.list_hosts()
        fresh = [read_memory_mib(host) for host in hosts]
        rows = []
        for pattern, count in (("host1", 1), ("fleet", 3)):
            pairs = [
                (time_ansible(pattern, "ansible.builtin.ping"), time_ansible(pattern, "crashcart.fleet.crashcart_info"))
                for _round in range(ROUNDS + 1)
            ][1:]  # the first one warms
            ping, info = (statistics.median(column) for column in zip(*pairs))
            rows.append([count, ping, info, info / ping])
        print_table("Calls by ssh with become", ["hosts", "ping, s", "crashcart_info, s", "times ping"], rows)
        used = [read_memory_mib(host) for host in hosts]
        memory = [["fresh", statistics.mean(fresh)], ["after these calls", statistics.mean(used)]]
        print_table("Memory of each of three guests", ["", "MiB"], memory)
    finally:
        fleet.down()


if __name__ == "__main__":
    main()
