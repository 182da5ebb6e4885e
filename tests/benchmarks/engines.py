# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what a container costs with the engines of three releases of Debian, beside each engine's own exec. `make bench-engines` runs this.

Modules run on the host without Ansible, in one call for all containers, so that only the work for the containers is measured.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("engines", "fleet", "integration")]

import engines
import releases
import stations
from support import alone, images
from tables import print_table

COUNT = 10
_ROUNDS = 5
_HOLD = "while true; do sleep 100; done"


def main() -> None:
    """Measure all engines and print a table."""
    rows = []
    with alone.hold_kernel(), tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "small.squashfs")
        images.build(image, packages=["bash", "coreutils"])
        for release in releases.RELEASES:
            inventory = Path(folder, release)
            inventory.mkdir()
            with stations.run(release, image, inventory) as station:
                rows += [[release, kind, *measure(station, station.engines[kind], inventory)] for kind in engines.KINDS]
    print_table(
        f"ms per container of {COUNT}, and times the engine's own exec",
        [
            "release",
            "engine",
            "own exec, ms",
            "attach",
            "times",
            "exec",
            "times",
            "trace start",
            "times",
            "fetch",
            "times",
        ],
        rows,
    )


def measure(station: stations.Station, engine: engines.Engine, folder: Path) -> list[float]:
    """Return the figures of ENGINE on STATION for its row of the table. Captures go to FOLDER."""
    names = [engine.choose_name(f"bench{number}") for number in range(COUNT)]
    for name in names:
        engine.run(name, _HOLD)
    chosen = {"containers": names}
    try:
        own = take_time(lambda: [engine.exec(name, "true") for name in names])
        ssh = take_time(lambda: [station.run("true") for _name in names])
        parts: dict[str, list[float]] = defaultdict(list)
        for _round in range(_ROUNDS):
            for name, function in (
                ("attach", lambda: station.call("crashcart_attach", **chosen)),
                ("exec", lambda: station.call("crashcart_exec", **chosen, argv=["true"])),
                ("start", lambda: station.call("ftrace_instance", **chosen, buffer_size="1MiB")),
                ("fetch", lambda: station.fetch(folder / "traces", **chosen)),
            ):
                parts[name].append(take_time(function))
            station.call("ftrace_instance", **chosen, state="absent")
            station.call("crashcart_attach", **chosen, state="detached")
    finally:
        for name in names:
            engine.remove(name)
    base = (own - ssh) / COUNT
    medians = [statistics.median(times) / COUNT for times in parts.values()]
    return [base * 1000, *(cell for each in medians for cell in (each * 1000, each / base))]


def take_time(function: Callable[[], object]) -> float:
    """Return the seconds that FUNCTION takes."""
    start = time.monotonic()
    function()
    return time.monotonic() - start


if __name__ == "__main__":
    main()
