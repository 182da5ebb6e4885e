# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note what tests have seen working, and on what, for docs/matrix.md. A conftest.py takes pytest_runtest_logreport from here.

A test says what it shows by `note`. Its outcome goes to build/matrix.json of the checkout, and `make matrix-page` takes it from there.
"""

from __future__ import annotations

import datetime
import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "build" / "matrix.json"
_PROPERTY = "matrix"
WORKS, FAILS = "works", "fails"


def note(item: pytest.Item, table: str, column: str, row: str) -> None:
    """Say that the test ITEM shows the feature ROW on COLUMN, such as an engine with its version, in TABLE."""
    item.user_properties.append((_PROPERTY, [table, column, row]))


def read_parameters(item: pytest.Item) -> dict[str, Any]:
    """Return the parameters of the test ITEM by name; {} where it has none."""
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down the outcome of a test that shows something."""
    # A test that a fixture kept from beginning, or that was skipped, has shown nothing. To pytest a failure that is allowed is skipped, too.
    if report.when != "call" or (report.skipped and not hasattr(report, "wasxfail")):
        return
    shown = [value for name, value in report.user_properties if name == _PROPERTY]
    write([(*place, WORKS if report.passed else FAILS) for place in shown])


def write(seen: list[tuple[str, str, str, str]]) -> None:
    """Add SEEN, each a table, a column, a row and an outcome in words, with today's date. Earlier outcomes of the same cells go."""
    if not seen:
        return
    FILE.parent.mkdir(exist_ok=True)
    with open(FILE, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        known: dict[str, Any] = json.loads(file.read() or "{}")
        for table, column, row, outcome in seen:
            known.setdefault(table, {}).setdefault(column, {})[row] = [outcome, datetime.date.today().isoformat()]
        file.truncate(0)
        file.write(json.dumps(known, indent=1))
