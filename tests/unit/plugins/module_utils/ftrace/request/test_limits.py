# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits of traces: what users write, what fits together, when the brake acts."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Brake, Limits

NAMES = ("ttl", "max_rate", "max_loss", "max_size", "max_age", "rotate_size", "rotate_time", "when_full", "min_free")


def parse(mode="ring", **options):
    return limits.parse_limits({"mode": mode, **dict.fromkeys(NAMES), **options})


def test_without_any_a_trace_has_no_bound():
    assert parse() == Limits()
    assert parse().describe() == {}


def test_a_recording():
    assert parse("record") == Limits(
        is_recorded=True, max_bytes=1 << 30, rotate_bytes=64 << 20, rotate_s=60, when_full="stop", min_free=512 << 20
    )
    wanted = parse("record", max_size="2GiB", when_full="rotate", max_age="1h", rotate_time="10s", max_loss=0)
    assert (wanted.max_bytes, wanted.when_full, wanted.max_age_s) == (2 << 30, "rotate", 3600)
    assert parse("record", max_size="80MiB").rotate_bytes == 10 << 20
    assert parse("record", max_size="80MiB", rotate_size="60MiB").rotate_bytes == 60 << 20
    assert parse("record", max_size="80MiB", rotate_size="40MiB", when_full="rotate").rotate_bytes == 40 << 20
    with pytest.raises(FleetError, match="rotate_size: 41MiB is more than half of max_size"):
        parse("record", max_size="80MiB", rotate_size="41MiB", when_full="rotate")
    assert (wanted.rotate_s, wanted.max_loss, wanted.describe()["max_loss"]) == (10, 0, 0)


@pytest.mark.parametrize("name", NAMES[2:])
def test_a_ring_has_no_files(name):
    value = 5 if name == "max_loss" else "rotate" if name == "when_full" else "1m"
    with pytest.raises(FleetError, match=f"{name} is for mode=record"):
        parse(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("max_rate", 0), ("max_rate", -5), ("max_loss", -1), ("min_free", "a lot"), ("ttl", "0s")]
)
def test_what_is_no_limit(name, value):
    with pytest.raises(FleetError, match=name):
        parse("record", **{name: value})


def test_buffers_have_to_fit_in():
    limits.check_buffers(parse("record", max_size="8MiB"), 2 << 20)
    limits.check_buffers(parse(), 1 << 40)
    with pytest.raises(FleetError, match=r"max_size: 8192 KiB .* \(2049 KiB\)"):
        limits.check_buffers(parse("record", max_size="8MiB"), (2 << 20) + 1024)


def test_the_brake_lets_bursts_pass():
    brake = Brake(1000, 10.0, 500)
    assert brake.look(11.0, 500 + 5900) is None  # 4900 ahead
    assert brake.look(13.0, 500 + 5900) is None  # 2900 ahead
    assert brake.look(13.5, 500 + 5900 + 2600) is None  # 5000 ahead
    assert (
        brake.look(14.0, 500 + 5900 + 2600 + 501)
        == "it recorded 1002 events per second, more than max_rate (1000) allows"
    )


def test_a_steady_rate_below_it_never_brakes():
    brake = Brake(1000, 0.0, 0)
    assert all(brake.look(second, second * 1000) is None for second in range(1, 1000))


def test_a_rate_above_it_brakes_in_the_end():
    brake = Brake(1000, 0.0, 0)
    looks = [brake.look(second, second * 1100) for second in range(1, 60)]
    assert looks[:50] == [None] * 50
    assert looks[50]


def test_what_was_saved_up_does_not_count():
    brake = Brake(1000, 0.0, 0)
    assert brake.look(1000.0, 0) is None
    assert brake.look(1001.0, 6001) is not None
