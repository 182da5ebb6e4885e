# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Align the columns of a table for people. Pure."""

from __future__ import annotations

from typing import Collection, Sequence


def align(rows: Sequence[Sequence[str]], numbers: Collection[int]) -> list[str]:
    """Return a line for each of ROWS, which have equally many cells. The columns in NUMBERS (from 0) are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
