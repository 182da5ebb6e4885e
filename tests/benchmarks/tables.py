# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the results of benchmarks as tables."""

from __future__ import annotations

import sys
from typing import Any


def make_ratios(figures: dict[str, list[dict[str, float]]]) -> list[list[Any]]:
    """Return a row for each way with its best figures, as multiples of the last way before it that begins with "nothing".

    FIGURES maps each way to its rounds, and a round maps names of figures to microseconds. A row of "nothing" has microseconds.
    """
    rows: list[list[Any]] = []
    base: dict[str, float] = {}
    for way, rounds in figures.items():
        best = {name: min(figures_of_round[name] for figures_of_round in rounds) for name in rounds[0]}
        if way.startswith("nothing"):
            base = best
            rows.append([f"{way}, µs", *best.values()])
        else:
            rows.append([way, *(best[name] / base[name] for name in best)])
    return rows


def print_table(title: str, headings: list[str], rows: list[list[Any]]) -> None:
    """Print a Markdown table with TITLE, HEADINGS and ROWS."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    sys.stdout.flush()
