# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recording takes and loses at a rate of events, beside trace-cmd on the same workload."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import support
from support import host
from tables import print_table

SECONDS = 20
RATES = (100_000, 500_000, 1_000_000)  # calls per second asked for; each gives two events
_PROGRAM = Path(support.__file__).with_name("workload_storm.py").read_text(encoding="utf-8")
_TICKS = os.sysconf("SC_CLK_TCK")


def _read_cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / _TICKS


def _read_peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _run(name: str, rounds: int) -> tuple[int, float]:
    """Calls of a round of the workload in container NAME, its ROUNDSth, and the seconds that they took."""
    host.docker("kill", "--signal", "USR1", name)
    host.wait_until(lambda: host.docker("logs", name).count("calls") >= rounds, 3 * SECONDS)
    _word, calls, taken_s = host.docker("logs", name).splitlines()[-1].split()
    return int(calls), float(taken_s)


def measure(prefix: str, folder: str) -> None:
    """Print the tables. PREFIX is that of the container images, FOLDER takes captures."""
    rows = []
    for rate in RATES:
        name = host.docker(
            *("run", "-d", "--network", "none", f"{prefix}/python", "/usr/bin/python3", "-S", "-c", _PROGRAM),
            *(str(SECONDS), str(rate)),
        )
        try:
            host.wait_until(lambda n=name: "ready" in host.docker("logs", n))  # type: ignore[misc]
            rows += [_measure_ours(name, folder), _measure_trace_cmd(name, folder)]
        finally:
            host.docker("rm", "-f", name)
            host.call_module("ftrace_instance", state="absent")
    headings = ["recorded by", "events per second", "events", "lost", "CPU, s per million events", "memory, peak MiB"]
    print_table(f"A recording of {SECONDS} s, all system calls, 8 MiB per CPU", headings, rows)


def _measure_ours(name: str, folder: str) -> list[Any]:
    host.call_module(
        "ftrace_instance", containers=[name], mode="record", buffer_size="8MiB", max_size="16GiB", follow_exec=False
    )
    pid = host.call_module("crashcart_info")["recorder"]["pid"]
    before_s = _read_cpu_s(pid)
    calls, taken_s = _run(name, 1)
    time.sleep(0.5)
    cpu_s, memory = _read_cpu_s(pid) - before_s, _read_peak_mib(pid)
    host.call_module("ftrace_instance", containers=[name], state="stopped")
    arguments = {"containers": [name], "dest": folder, "docker_host": os.environ["DOCKER_HOST"]}
    manifest = host.ad_hoc("localhost", "ftrace_fetch", arguments)["captures"][0]["manifest"]
    events = manifest["entries"] + manifest["lost"]
    assert manifest["lost_exact"] and events >= 2 * calls
    return ["ftrace_instance", events / taken_s, events, manifest["lost"], cpu_s / events * 1e6, memory]


def _measure_trace_cmd(name: str, folder: str) -> list[Any]:
    pid = host.find_pid(name)
    path = f"{folder}/trace-cmd.dat"
    options = ("-q", "-o", path, "-b", "8192", "-C", "mono", "-P", str(pid), "-e", "raw_syscalls")
    with subprocess.Popen(
        ["trace-cmd", "record", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as recorder:
        time.sleep(2)
        calls, taken_s = _run(name, 2)
        recorder.send_signal(signal.SIGINT)
        # With the times of its children, one for each CPU.
        _pid, _status, usage = os.wait4(recorder.pid, 0)
        recorder.returncode = 0
    statistics = host.run("trace-cmd", "report", "--stat", path, check=False).stdout
    lost = sum(int(line.split(":")[1]) for line in statistics.splitlines() if line.strip().startswith("overrun:"))
    os.unlink(path)
    events = 2 * calls
    cpu_s = usage.ru_utime + usage.ru_stime
    return ["trace-cmd record", events / taken_s, events, lost, cpu_s / events * 1e6, ""]
