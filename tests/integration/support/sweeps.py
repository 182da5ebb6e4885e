# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sweeps look at very many cases of one thing. `make test` takes a sample of each, `make test-all` all of them.

A test with many parameters is marked with `@pytest.mark.sweep(keep=NUMBER)`; one that goes through cases by itself asks `sample`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import pytest

VARIABLE = "CRASHCART_TESTS"  # in the environment: `all` for all cases
IS_ALL = os.environ.get(VARIABLE) == "all"
Case = TypeVar("Case")


def sample(cases: Sequence[Case], keep: int) -> list[Case]:
    """Return KEEP of CASES, from the first to the last at even distances; all of them where sweeps are wanted whole."""
    if IS_ALL or len(cases) <= keep:
        return list(cases)
    if keep == 1:
        return [cases[0]]
    return [cases[index * (len(cases) - 1) // (keep - 1)] for index in range(keep)]


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a sample of the cases of each marked test in ITEMS, and tell pytest of the others."""
    swept: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep"):
            swept[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for found in swept.values():
        left_out.update(set(found) - set(sample(found, found[0].get_closest_marker("sweep").kwargs["keep"])))
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))
