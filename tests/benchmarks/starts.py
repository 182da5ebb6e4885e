# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what a standing rule costs a container that starts: `runc run` of /bin/true, with and without a rule, in turns."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from pathlib import Path

from support import host, runtimes
from tables import print_table

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders

RUNS = 200  # of each kind
BLOCK = 10  # runs between two turns
_PAUSE_S = 0.05  # the kernel takes 20 ms for a write to a list of threads
_SAMPLES = 2000
_RULE = "bench"


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
    low, high = _find_interval(times)
    without, with_rule = (statistics.median(times[kind]) for kind in (False, True))
    print_table(
        f"A start by plain runc, with and without a rule (medians of {RUNS})",
        ["without, ms", "with a rule, ms", "difference, ms", "95 % interval, ms", "recorder, ms of processor time"],
        [[without, with_rule, with_rule - without, f"{low:.1f} to {high:.1f}", used_s * 1000 / RUNS]],
    )


def _read_used() -> float:
    """Return the seconds of processor time that the recorder has used."""
    fields = Path(f"/proc/{orders.find_recorder()}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _find_interval(times: dict[bool, list[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of the medians of TIMES with and without a rule, by the bootstrap."""
    chance = random.Random(1)
    differences = sorted(
        statistics.median(chance.choices(times[True], k=RUNS)) - statistics.median(chance.choices(times[False], k=RUNS))
        for _sample in range(_SAMPLES)
    )
    return differences[_SAMPLES * 25 // 1000], differences[_SAMPLES * 975 // 1000]
