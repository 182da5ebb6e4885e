# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers whose calls are numbered, and the proof that a store has each of them once, but for those that its manifests count as lost."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.peers import read_ours

# The numbers are pids that no process has, so each call fails. A start of the container begins with a number that no earlier one has reached.
# The last number is in the file /now.
COUNTER = """\
i=$((1000000000 + $(date +%s) % 100000 * 10000))
while :; do
    i=$((i + 1))
    kill -0 $i 2>/dev/null
    echo $i >/now
    [ $((i % 10)) -ne 0 ] || sleep 0.2
done
"""
TRACED = {"events": ["syscalls:sys_enter_kill"]}
_STARTS_APART = 10_000  # a second's


@dataclass
class Seen:
    """The content of a store of one container on one host: its NUMBERS, sorted, and the MANIFESTS of its captures in the order of time."""

    numbers: list[int] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def count_missing(self, first: int, last: int) -> int:
        """Return how many numbers after FIRST, up to LAST, which one start of the container has counted, are not there.

        FIRST, if it was read after a trace had begun, may have been counted before that.
        """
        return last - first - sum(first < number <= last for number in self.numbers)

    def list_ends(self) -> list[tuple[int, int]]:
        """Return the first and the last number for each start of the container."""
        ends: list[tuple[int, int]] = []
        for number in self.numbers:
            if ends and number - ends[-1][1] < _STARTS_APART:
                ends[-1] = (ends[-1][0], number)
            else:
                ends.append((number, number))
        return ends

    def count_lost(self) -> int:
        """Return the number of events that the manifests count as lost."""
        return sum(manifest["lost"] for manifest in self.manifests)

    def list_reasons(self) -> list[str]:
        """Return the reasons of the manifests for being incomplete."""
        return [reason for manifest in self.manifests for reason in manifest["reasons"]]


def read(container: str, *stores: Path, host: str = "*") -> Seen:
    """Return what STORES together have of CONTAINER in the folder of HOST, a pattern.

    Raises AssertionError for a number that is there twice.
    """
    counts: Counter[int] = Counter()
    seen = Seen()
    paths = [path for store in stores for path in store.glob(f"{host}/{container}/*.dat")]
    for path in sorted(paths, key=lambda path: path.name):
        seen.manifests.append(json.loads(path.with_suffix(".json").read_text()))
        counts.update(number for _time, _tid, number in read_ours(str(path), "syscalls:sys_enter_kill", ["pid"]))
    twice = [number for number, count in counts.items() if count > 1]
    assert not twice, f"{len(twice)} calls of {container} were captured twice, such as {twice[:3]}"
    seen.numbers = sorted(counts)
    return seen


def check_catalogue(store: Path) -> None:
    """Raise AssertionError unless the catalogue of STORE has the files that are there, and nothing else is there."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*.dat")}
    with closing(sqlite3.connect(f"file:{store}/catalogue.sqlite?mode=ro", uri=True)) as database:
        found = dict(database.execute("SELECT path, sha256 FROM captures WHERE removed_ns IS NULL"))
    assert found == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    others = {path for path in store.rglob("*") if path.is_file()} - set(files.values())
    known = {path.with_suffix(".json") for path in files.values()}
    left = [path for path in others - known if not _is_of_the_store(path.relative_to(store))]
    assert not left, f"{left} is left in the store"


def _is_of_the_store(path: Path) -> bool:
    return path.parts[0] in ("catalogue.sqlite", "report", ".crashcart-run")
