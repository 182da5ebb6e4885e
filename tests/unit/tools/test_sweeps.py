# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The integration tests' samples of sweeps, and their measure of how slow a machine is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "integration"))

from support import speed, sweeps


@pytest.mark.parametrize(
    ("keep", "expected"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))]
)
def test_a_sample_has_the_first_the_last_and_some_between(monkeypatch, keep, expected):
    monkeypatch.setattr(sweeps, "IS_ALL", False)
    assert sweeps.sample(range(10), keep) == expected
    monkeypatch.setattr(sweeps, "IS_ALL", True)
    assert sweeps.sample(range(10), keep) == list(range(10))


def test_limits_grow_with_the_factor_that_is_given(monkeypatch):
    monkeypatch.setenv(speed.VARIABLE, "2.5")
    monkeypatch.setattr(speed, "measure_slowness", speed.measure_slowness.__wrapped__)
    assert speed.seconds(4) == 10


def test_no_machine_is_faster_than_usual(monkeypatch):
    monkeypatch.delenv(speed.VARIABLE, raising=False)
    monkeypatch.setattr(speed, "_START_S", 1000.0)
    assert speed.measure_slowness.__wrapped__() == 1
    monkeypatch.setattr(speed, "_START_S", 1e-9)
    assert speed.measure_slowness.__wrapped__() == 20
