# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a set of numbers as an event filter that the kernel decides with few comparisons. Pure.

The kernel compares from left to right until the result is certain. A hundred comparisons cost more than recording the event.
"""

from __future__ import annotations

from typing import Iterable, Sequence, Tuple

_MAX_LEAVES = 3
Range = Tuple[int, int]


def make_filter(field: str, numbers: Iterable[int]) -> str:
    """Return the filter that passes the events whose FIELD is one of NUMBERS; '' for no numbers."""
    ranges = find_ranges(numbers)
    return _format(field, ranges) if ranges else ""


def find_ranges(numbers: Iterable[int]) -> list[Range]:
    """Return the first and last number of each run of consecutive NUMBERS, in ascending order."""
    ranges: list[Range] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _format(field: str, ranges: Sequence[Range]) -> str:
    if len(ranges) <= _MAX_LEAVES:
        return " || ".join(_format_range(field, first, last) for first, last in ranges)
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
