# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts that integration tests are run in, and their measure of how slow a machine is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from support import parts, speed

NAMES = [f"targets/traces/test_fetch.py::test_{number}" for number in range(600)]


def test_each_test_is_in_one_part():
    found = [[name for name in NAMES if parts.is_in(name, part, 6)] for part in range(1, 7)]
    assert sorted(name for one in found for name in one) == sorted(NAMES)
    assert all(60 < len(one) < 140 for one in found)


@pytest.mark.parametrize(("text", "expected"), [("", (1, 1)), ("all", (1, 1)), ("2/6", (2, 6)), ("6/6", (6, 6))])
def test_which_part_is_meant(text, expected):
    assert parts.parse(text) == expected


@pytest.mark.parametrize("text", ["0/6", "7/6", "1/0", "two", "1/2/3", "-1/2"])
def test_no_part_is_an_error(text):
    with pytest.raises(ValueError, match="CRASHCART_TESTS="):
        parts.parse(text)


def test_limits_grow_with_the_factor_that_is_given(monkeypatch):
    monkeypatch.setenv(speed.VARIABLE, "2.5")
    monkeypatch.setattr(speed, "measure_slowness", speed.measure_slowness.__wrapped__)
    assert speed.seconds(4) == 10


def test_no_machine_is_faster_than_usual(monkeypatch):
    monkeypatch.delenv(speed.VARIABLE, raising=False)
    monkeypatch.setattr(speed, "_STARTS", 1)
    monkeypatch.setattr(speed, "_START_S", 1000.0)
    assert speed.measure_slowness.__wrapped__() == 1
    monkeypatch.setattr(speed, "_START_S", 1e-9)
    assert speed.measure_slowness.__wrapped__() == 20
