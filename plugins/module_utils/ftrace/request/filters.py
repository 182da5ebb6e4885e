# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A set of numbers as a filter of the kernel's, which it can decide with few comparisons. Pure.

The kernel compares from left to right until it knows: a hundred numbers in a row cost an event more than recording it.
"""

from __future__ import annotations

from typing import Iterable, Sequence, Tuple

_MAX_LEAVES = 3
Range = Tuple[int, int]


def make_filter(field: str, numbers: Iterable[int]) -> str:
    """The filter that lets those events pass whose FIELD is one of NUMBERS; '' for no numbers."""
    ranges = find_ranges(numbers)
    return _format(field, ranges) if ranges else ""


def find_ranges(numbers: Iterable[int]) -> list[Range]:
    """First and last of each run of NUMBERS, in order."""
    ranges: list[Range] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _format(field: str, ranges: Sequence[Range]) -> str:
    if len(ranges) <= _MAX_LEAVES:
        return " || ".join(_format_range(field, *one) for one in ranges)
    middle = len(ranges) // 2
    border = ranges[middle][0]
    lower, upper = (_format(field, half) for half in (ranges[:middle], ranges[middle:]))
    return f"({field} < {border} && ({lower})) || ({field} >= {border} && ({upper}))"


def _format_range(field: str, first: int, last: int) -> str:
    if first == last:
        return f"{field} == {first}"
    if first + 1 == last:
        return f"{field} == {first} || {field} == {last}"
    return f"({field} >= {first} && {field} <= {last})"
