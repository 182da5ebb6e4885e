# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/matrix.md, the page of what runs of tests have seen working, from docs/matrix.json. `make matrix-page` runs this program.

Outcomes of the tests in build/matrix.json, if there are any, replace those of the same cells in docs/matrix.json first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SEEN = ROOT / "build" / "matrix.json"
KEPT = ROOT / "docs" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"
# Name of a table → its heading, and what it says.
TABLES = {
    "engines": (
        "Engines",
        "`make engines`, on the kernel of the machine of the tests. `ctr` is containerd without another engine. Docker 28.5 keeps its images"
        " with containerd, the others themselves. Podman runs containers by runc here, and by crun on guests (below).",
    ),
    "kernels": (
        "Kernels",
        "What `crashcart_info` says of each kernel, after all tests for every kernel had passed there: they use what works, and check that"
        " what is missing is refused by its name and for that reason.",
    ),
    "hosts": ("Hosts and runtimes", "`make matrix`, on guests in QEMU with systemd and control groups of version 2."),
    "controllers": ("Controllers", "`make controllers`: versions of ansible-core, and of Python on the controller."),
}
_HEAD = """\
# What was seen working

This page is written by runs of the tests (`make matrix-page`), and each cell has the day of the last one. A cell with — was not tried.
Nobody has tried Red Hat's and SUSE's distributions, or CRI-O and Kubernetes but for the annotations that they leave with an OCI runtime.
The [support matrix](support.md) has what each feature needs, and its limits.
"""


def merge(kept: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """Return KEPT with the cells of SEEN: table → column → row → [outcome, date]."""
    merged = {table: {column: dict(rows) for column, rows in columns.items()} for table, columns in kept.items()}
    for table, columns in seen.items():
        for column, rows in columns.items():
            merged.setdefault(table, {}).setdefault(column, {}).update(rows)
    return merged


def render(cells: dict[str, Any]) -> str:
    """Return the page for CELLS: table → column → row → [outcome, date]."""
    parts = [_HEAD]
    for table, (heading, words) in TABLES.items():
        columns = cells.get(table, {})
        if columns:
            parts.append(f"## {heading}\n\n{words}\n\n{_render_table(columns)}")
    return "\n".join(parts)


def _render_table(columns: dict[str, dict[str, list[str]]]) -> str:
    names = sorted(columns, key=_find_order)
    rows = list(dict.fromkeys(row for name in names for row in columns[name]))
    reasons: list[str] = []
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        shown = [_render_cell(columns[name].get(row), reasons) for name in names]
        lines.append(f"| {row} | {' | '.join(shown)} |")
    notes = "".join(f"\n{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return "\n".join(lines) + "\n" + (f"\nRefused by name:\n{notes}\n" if notes else "")


def _render_cell(cell: list[str] | None, reasons: list[str]) -> str:
    """Return the text of CELL, an outcome and a date. A reason, which is another outcome than works and fails, joins REASONS."""
    if cell is None:
        return "—"
    outcome, date = cell
    if outcome in ("works", "fails"):
        return f"{outcome}, {date}"
    if outcome not in reasons:
        reasons.append(outcome)
    return f"refused ({reasons.index(outcome) + 1}), {date}"


def _find_order(name: str) -> list[tuple[int, str]]:
    """Return a key that puts numbers in NAME in the order of their sizes."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def main() -> None:
    """Merge what runs have seen, and write the page."""
    cells = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    if SEEN.exists():
        cells = merge(cells, json.loads(SEEN.read_text(encoding="utf-8")))
    text = re.sub(r"\[\s+(.+),\s+(.+)\s+\]", r"[\1, \2]", json.dumps(cells, indent=1))  # a line for each cell
    KEPT.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(render(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
