# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what a standing rule, and what the start hook, cost a container that starts: `runc run` of /bin/true, with and without, in turns."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import time
from pathlib import Path

from support import host, runtimes
from tables import print_table

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_PROGRAM

RUNS = 200  # of each kind
BLOCK = 10  # runs between two turns
_PAUSE_S = 0.05  # the kernel takes 20 ms for a write to a list of threads
_SAMPLES = 2000
_RULE = "bench"
_QUIET = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def measure_rules(folder: Path) -> None:
    """Measure and print a table. FOLDER is for the container's bundle."""
    bundle = runtimes.make_bundle(folder / "bundle", "/bin/true")
    times: dict[bool, list[float]] = {True: [], False: []}
    used_s = 0.0
    for block in range(2 * RUNS // BLOCK):
        has_rule = block % 2 == 1
        if has_rule:
            host.call_module("ftrace_instance", state="awaiting", containers=["cc-bench-*"], rule=_RULE)
            used_s -= _read_used()
        for number in range(BLOCK):
            begun = time.perf_counter()
            subprocess.run(["runc", "run", "--bundle", str(bundle), f"cc-bench-{block}-{number}"], check=True)
            times[has_rule].append((time.perf_counter() - begun) * 1000)
            time.sleep(_PAUSE_S)
        if has_rule:
            used_s += _read_used()
            (found,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
            assert found["rule"]["traced"] == BLOCK, found["rule"]
            host.call_module("ftrace_instance", state="absent", rule=_RULE)
    low, high = _find_interval(times[False], times[True])
    without, with_rule = (statistics.median(times[kind]) for kind in (False, True))
    print_table(
        f"A start by plain runc, with and without a rule (medians of {RUNS})",
        ["without, ms", "with a rule, ms", "difference, ms", "95 % interval, ms", "recorder, ms of processor time"],
        [[without, with_rule, with_rule - without, f"{low:.1f} to {high:.1f}", used_s * 1000 / RUNS]],
    )


def measure_hooks(folder: Path) -> None:
    """Measure and print a table for the start hook: start and end together, also beside a container whose events fill the buffers.

    FOLDER is for the containers' bundles.
    """
    plain = runtimes.make_bundle(folder / "plain", "/bin/true")
    hooked = _add_hook(runtimes.make_bundle(folder / "hooked", "/bin/true"))
    loud = _add_hook(runtimes.make_bundle(folder / "loud", "/bin/sh", "-c", "while :; do /bin/true; done"))
    host.call_module("ftrace_hook", ways=["cdi"], profiles=[{"name": "startup", "max_containers": 100}])
    rows = []
    try:
        _run(hooked, "cc-bench-first")  # the trace runs from now on
        for title, others in (("with the hook", ()), ("beside one that fills the buffers", ("cc-bench-loud",))):
            for name in others:
                subprocess.run(["runc", "run", "-d", "-b", str(loud), name], check=True, **_QUIET)
            times = {bundle: [] for bundle in (plain, hooked)}
            for number in range(2 * RUNS):
                bundle = (plain, hooked)[number % 2]
                times[bundle].append(_run(bundle, f"cc-bench-{number}"))
            for name in others:
                subprocess.run(["runc", "delete", "-f", name], check=True)
            low, high = _find_interval(times[plain], times[hooked])
            without, having = (statistics.median(found) for found in times.values())
            rows.append([title, without, having, having - without, f"{low:.1f} to {high:.1f}"])
        troubles = host.call_module("ftrace_info", gather=["start_hook"])["start_hook"]["troubles"]
        assert troubles == [], troubles
    finally:
        host.call_module("ftrace_instance", state="absent", everything=True)
        host.call_module("ftrace_hook", state="absent", force=True)
    print_table(
        f"Start and end by plain runc, with and without the start hook (medians of {RUNS})",
        ["case", "without, ms", "with the hook, ms", "difference, ms", "95 % interval, ms"],
        rows,
    )


def _add_hook(bundle: Path) -> Path:
    """Have the container of BUNDLE run the start hook, and return the bundle."""
    path = bundle / "config.json"
    call = {"path": HOOK_PROGRAM, "args": ["start-hook", "create", "startup"]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "hooks": {"createRuntime": [call]}}))
    return bundle


def _run(bundle: Path, name: str) -> float:
    """Run a container NAME of BUNDLE until its end, and return the milliseconds that took."""
    begun = time.perf_counter()
    subprocess.run(["runc", "run", "--bundle", str(bundle), name], check=True, stdin=subprocess.DEVNULL)
    found = (time.perf_counter() - begun) * 1000
    time.sleep(_PAUSE_S)
    return found


def _read_used() -> float:
    """Return the seconds of processor time that the recorder has used."""
    fields = Path(f"/proc/{orders.find_recorder()}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _find_interval(without: list[float], having: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of the medians of HAVING and WITHOUT, by the bootstrap."""
    chance = random.Random(1)
    differences = sorted(
        statistics.median(chance.choices(having, k=len(having)))
        - statistics.median(chance.choices(without, k=len(without)))
        for _sample in range(_SAMPLES)
    )
    return differences[_SAMPLES * 25 // 1000], differences[_SAMPLES * 975 // 1000]
