# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the fleet and print tables; `make fleet-bench` runs this program.

The figures are the start and the memory of guests, a ping compared with crashcart_info, and the cost of tracing compared with trace-cmd,
perf and strace. The guests' kernel has all features that these need.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "fleet"))
sys.path.append(os.path.join(os.path.dirname(__file__), "..", "integration"))

import fleet
import golden
import workloads
from modules import ModuleServer
from support import images
from tables import make_ratios, print_table

ROUNDS = 3


def time_up(count: int) -> float:
    """Return the seconds from no guest to COUNT guests that accept a login."""
    fleet.down()
    start = time.perf_counter()
    fleet.up(count)
    return time.perf_counter() - start


def read_memory_mib(host: fleet.Host) -> float:
    """Return the memory of HOST's process in MiB as its proportional set size, which divides shared pages among the clones."""
    text = Path(f"/proc/{host.machine.find_pid()}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def time_ansible(pattern: str, module: str) -> float:
    """Return the seconds of one ad-hoc call of MODULE on PATTERN."""
    start = time.perf_counter()
    subprocess.run(
        ["ansible", pattern, "-i", str(fleet.INVENTORY), "-b", "-m", module],
        cwd=fleet.ROOT,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def measure_tracers(host: fleet.Host) -> None:
    """Measure workloads in a container of HOST under ftrace_instance, and on HOST itself under other tracers, which a tool image has."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tracers.image")
        images.build(path, packages=["trace-cmd", "linux-perf", "strace"])
        host.run("cat >/root/tracers.image", path.read_bytes())
    host.run("mkdir -p /dev/crashcart && mount -o loop,ro /root/tracers.image /dev/crashcart")
    host.run("cat >/root/workloads.py", Path(workloads.__file__).read_bytes())
    shared = " ".join(f"-v {path}:{path}:ro" for path in ("/usr", "/lib", "/lib64", "/root/workloads.py"))
    host.run(f"docker run -d --name worker --network none {shared} {golden.IMAGE} /bin/sleep 100000")
    script = "/usr/bin/python3 -S /root/workloads.py"

    def run(command: str, part: float) -> dict[str, float]:
        output = host.run(f"{command} {script} {part}")
        return dict(json.loads(next(line for line in output.splitlines() if line.startswith("{"))))

    tools = "/dev/crashcart/bin"
    ways: dict[str, tuple[str, float, dict[str, str] | None]] = {
        "nothing": ("docker exec worker", 0.1, None),
        "ftrace_instance, profile syscalls": ("docker exec worker", 0.1, {"profile": "syscalls"}),
        "ftrace_instance, profile syscalls, mode record": (
            "docker exec worker",
            0.1,
            {"profile": "syscalls", "mode": "record"},
        ),
        "nothing, on the host": ("", 0.1, None),
        "trace-cmd record -e raw_syscalls -F": (
            f"{tools}/trace-cmd record -o /root/it.dat -e raw_syscalls -F",
            0.1,
            None,
        ),
        "perf record -e raw_syscalls": (f"{tools}/perf record -q -o /root/it.data -e 'raw_syscalls:*'", 0.1, None),
        "perf trace": (f"{tools}/perf trace -o /dev/null", 0.02, None),
        "strace -f": (f"{tools}/strace -f -o /dev/null", 0.01, None),
    }
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with ModuleServer(host) as server:
        for _round in range(ROUNDS):
            for way, (command, part, wish) in ways.items():
                if wish:
                    server.call("ftrace_instance", {"containers": ["worker"], **wish})
                figures[way].append(run(command, part))
                if wish:
                    server.call("ftrace_instance", {"containers": ["worker"], "state": "absent"})
    rows = make_ratios(figures)
    print_table("Times untraced, by who looks, on an emulated host", ["", *workloads.WORKLOADS], rows)


def main() -> None:
    """Run all measurements and print their tables."""
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
            ][1:]  # the first round warms caches up
            ping, info = (statistics.median(column) for column in zip(*pairs))
            rows.append([count, ping, info, info / ping])
        print_table("Calls by ssh with become", ["hosts", "ping, s", "crashcart_info, s", "times ping"], rows)
        used = [read_memory_mib(host) for host in hosts]
        memory = [["fresh", statistics.mean(fresh)], ["after these calls", statistics.mean(used)]]
        print_table("Memory of each of three guests", ["", "MiB"], memory)
        measure_tracers(hosts[0])
    finally:
        fleet.down()


if __name__ == "__main__":
    main()
