# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How benchmarks show what they measured."""

from __future__ import annotations

import sys
from typing import Any


def make_ratios(figures: dict[str, list[dict[str, float]]]) -> list[list[Any]]:
    """Rows of a table with a column for each figure: the best of each way's rounds, as a multiple of the last "nothing" before it.

    FIGURES are microseconds by name, in rounds, by way; a way that begins with "nothing" is what others are compared with.
    """
    rows: list[list[Any]] = []
    base: dict[str, float] = {}
    for way, rounds in figures.items():
        best = {name: min(one[name] for one in rounds) for name in rounds[0]}
        if way.startswith("nothing"):
            base = best
            rows.append([f"{way}, µs", *best.values()])
        else:
            rows.append([way, *(best[name] / base[name] for name in best)])
    return rows


def print_table(title: str, headings: list[str], rows: list[list[Any]]) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row) + " |")
    sys.stdout.flush()
