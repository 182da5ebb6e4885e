# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A filter lets exactly the numbers pass that it was made of."""

from __future__ import annotations

import random

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.filters import find_ranges, make_filter


def passes(text, number):
    """Return True if the kernel's filter TEXT lets NUMBER pass; its operators are Python's by other names."""
    return bool(eval(text.replace("||", " or ").replace("&&", " and "), {"id": number}))


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [([], []), ([5], [(5, 5)]), ([7, 3, 4, 5, 4, 9], [(3, 5), (7, 7), (9, 9)]), ([0, 1], [(0, 1)])],
)
def test_runs(numbers, ranges):
    assert find_ranges(numbers) == ranges


def test_few_numbers_stay_readable():
    assert make_filter("id", []) == ""
    assert make_filter("id", [257, 0, 59]) == "id == 0 || id == 59 || id == 257"
    assert make_filter("id", [1, 2]) == "id == 1 || id == 2"
    assert make_filter("id", [1, 2, 3]) == "(id >= 1 && id <= 3)"


@pytest.mark.sweep
def test_exactly_these_pass():
    choose = random.Random(1)
    for count in (1, 2, 3, 4, 5, 8, 30, 120):
        numbers = set(choose.sample(range(460), count))
        text = make_filter("id", numbers)
        assert {number for number in range(-2, 470) if passes(text, number)} == numbers


@pytest.mark.sweep
def test_many_numbers_are_decided_by_few_comparisons():
    text = make_filter("id", range(0, 200, 2))
    compared = []

    class Number(int):
        def __lt__(self, other):
            compared.append(other)
            return int(self) < other

        def __ge__(self, other):
            compared.append(other)
            return int(self) >= other

        def __eq__(self, other):
            compared.append(other)
            return int(self) == other

        __hash__ = int.__hash__

    for number in range(200):
        compared.clear()
        passes(text, Number(number))
        assert len(compared) < 20
