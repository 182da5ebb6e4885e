# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A part of the tests: `make test` runs one of several parts, another one with each commit, so that it ends soon; `make test-all` runs all.

The environment's CRASHCART_TESTS says which: `2/6` for the second of six parts, `all` for everything and for long sweeps in full. Without it
everything runs. The name of a test decides which part it is in, so the parts stay the same when tests are added.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Sequence

import pytest

VARIABLE = "CRASHCART_TESTS"
IS_ALL = os.environ.get(VARIABLE) == "all"


def parse(text: str) -> tuple[int, int]:
    """Return the number of the part that TEXT names, from 1 on, and of how many; 1, 1 for everything."""
    if text in ("", "all"):
        return 1, 1
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"{VARIABLE}={text} names no part of the tests: write all, or 2/6 for the second of six parts")
    return int(found[1]), int(found[2])


def is_in(name: str, part: int, count: int) -> bool:
    """Return True if the test called NAME is in PART of COUNT."""
    return zlib.crc32(name.encode()) % count == part - 1


def select(
    config: pytest.Config, items: list[pytest.Item], name: Callable[[pytest.Item], str] = lambda item: item.nodeid
) -> None:
    """Leave the wanted part of ITEMS, and tell pytest of the others. Those with the same NAME(item) are in the same part."""
    part, count = parse(os.environ.get(VARIABLE, ""))
    left_out: Sequence[pytest.Item] = [item for item in items if not is_in(name(item), part, count)]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
