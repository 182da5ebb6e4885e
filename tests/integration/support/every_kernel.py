# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold whatever the kernel: run on the machine's own by the integration tests, on the guests' by the fleet's."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Protocol

from support import host
from support.workload_counts import COUNTS


class Machine(Protocol):
    """A host with containers, seen from the controller."""

    def run(self, command: str) -> str:
        """What a shell's COMMAND prints, run as root."""

    def call(self, module: str, **arguments: Any) -> dict[str, Any]:
        """The result of a module of ours; raises ModuleFailed or AssertionError when it fails."""

    def fetch(self, dest: Path, **selection: Any) -> list[dict[str, Any]]:
        """The captures of ftrace_fetch, in DEST on the controller."""


def wait_for_worker(machine: Machine, worker: str) -> None:
    """Wait until workload.py in container WORKER takes signals."""
    _wait_for_log(machine, worker, "ready", 1)


def run_workload(machine: Machine, worker: str) -> None:
    """One round of the workload in container WORKER, to its end."""
    rounds = machine.run(f"docker logs {worker}").count("done")
    machine.run(f"docker kill --signal USR1 {worker}")
    _wait_for_log(machine, worker, "done", rounds + 1)


def _wait_for_log(machine: Machine, worker: str, word: str, times: int) -> None:
    host.wait_until(lambda: machine.run(f"docker logs {worker}").count(word) >= times, 60)


def report(src: Path, dest: Path) -> list[dict[str, Any]]:
    """The captures in ftrace_report's summary of SRC."""
    host.call_module("ftrace_report", src=str(src), dest=str(dest))
    captures: list[dict[str, Any]] = json.loads((dest / "summary.json").read_text(encoding="utf-8"))["captures"]
    return captures


def count(capture: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Calls and errors per system call of all processes of CAPTURE."""
    calls: dict[str, dict[str, Any]] = {}
    for row in capture["processes"]:
        entry = calls.setdefault(row["syscall"], {"calls": 0, "errors": {}})
        entry["calls"] += row["calls"]
        for error, number in row["errors"].items():
            entry["errors"][error] = entry["errors"].get(error, 0) + number
    return calls


def check_exact_counts(machine: Machine, worker: str, folder: Path) -> None:
    """A known workload is counted exactly, and trace-cmd reads as many events as we do."""
    machine.call("ftrace_instance", containers=[worker], buffer_size="8MiB")
    run_workload(machine, worker)
    machine.call("ftrace_instance", containers=[worker], state="stopped")
    (capture,) = machine.fetch(folder, containers=[worker])
    assert (capture["manifest"]["complete"], capture["manifest"]["lost"]) == (True, 0)
    (summary,) = report(folder, folder / "report")
    counted = count(summary)
    for syscall, (calls, errors) in COUNTS.items():
        assert counted[syscall] == {"calls": calls, "errors": errors}, syscall
    text = subprocess.run(["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) - 1 == summary["events"]


def check_filters(machine: Machine, worker: str, folder: Path) -> None:
    """`syscalls` and `errors_only` are filters in the kernel: nothing else is in the trace."""
    machine.call("ftrace_instance", containers=[worker], syscalls=["openat", "write"], errors_only=True)
    run_workload(machine, worker)
    machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    _calls, errors = COUNTS["openat"]
    assert count(summary) == {"openat": {"calls": sum(errors.values()), "errors": errors}}


def check_loss(machine: Machine, worker: str, folder: Path) -> None:
    """A ring that overflows says exactly how much is lost."""
    # Pinned to one CPU, so that its counter alone is the truth.
    pid = machine.run(f"docker inspect -f '{{{{.State.Pid}}}}' {worker}").strip()
    machine.run(f"taskset -a -p 1 {pid}")
    machine.call("ftrace_instance", containers=[worker], buffer_size="8KiB")
    for _round in range(3):
        run_workload(machine, worker)
    machine.call("ftrace_instance", containers=[worker], state="stopped")
    statistics = machine.run(f"cat {host.TRACEFS}/instances/crashcart-*/per_cpu/cpu0/stats")
    overrun, entries = (
        int(re.search(rf"^{name}: (\d+)", statistics, re.M).group(1))  # type: ignore[union-attr]
        for name in ("overrun", "entries")
    )
    assert overrun > 0
    (capture,) = machine.fetch(folder, containers=[worker])
    manifest = capture["manifest"]
    assert (manifest["complete"], manifest["lost"], manifest["lost_exact"]) == (False, overrun, True)
    assert manifest["cpus"][0]["overrun"] == overrun
    (summary,) = report(folder, folder / "report")
    assert (summary["complete"], summary["lost"], summary["events"]) == (False, overrun, entries)
    assert f"INCOMPLETE: {overrun} events lost" in (folder / "report" / "summary.txt").read_text()


def check_executed(machine: Machine, worker: str, folder: Path) -> None:
    """What `docker exec` starts is in the trace from its first call on, and the runtime is not."""
    machine.call("ftrace_instance", containers=[worker])
    for _number in range(3):
        machine.run(f"docker exec {worker} /usr/bin/python3 -S -c 'import os; os.rmdir(\"/nonesuch\")' || true")
    (capture,) = machine.fetch(folder, containers=[worker])
    (summary,) = report(folder, folder / "report")
    assert {row["name"] for row in summary["processes"]} == {"python3"}
    looked = [row for row in summary["processes"] if row["syscall"] == "rmdir"]
    assert [row["errors"] for row in looked] == [{"ENOENT": 1}] * 3
    text = subprocess.run(["trace-cmd", "report", capture["path"]], capture_output=True, text=True, check=True).stdout
    assert "runc" not in text
    assert "containerd-shim" not in text


def check_what_is_missing_is_named(machine: Machine, worker: str, folder: Path) -> None:
    """A feature is there if and only if the kernel has it, and the reason names the kernel's option."""
    features = {one["name"]: one for one in machine.call("crashcart_info")["host"]["features"]}
    tracers = machine.run(f"cat {host.TRACEFS}/available_tracers").split()
    there = machine.run(f"cd {host.TRACEFS}; ls -d kprobe_events uprobe_events events/sched/sched_switch/hist || true")
    for name, is_there, option in (
        ("kprobes", "kprobe_events" in there, "CONFIG_KPROBE_EVENTS"),
        ("uprobes", "uprobe_events" in there, "CONFIG_UPROBE_EVENTS"),
        ("hist_triggers", "hist" in there, "CONFIG_HIST_TRIGGERS"),
        ("function_graph", "function_graph" in tracers, "CONFIG_FUNCTION_GRAPH_TRACER"),
    ):
        assert features[name]["ok"] == is_there, name
        assert (option in features[name]["reason"]) == (not is_there), name


# In an order in which one container serves all of them: a check may leave an instance and a pinned process.
CHECKS = (check_what_is_missing_is_named, check_exact_counts, check_filters, check_executed, check_loss)
