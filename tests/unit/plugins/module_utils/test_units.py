# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and times as users write them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import (
    format_bytes,
    format_time,
    parse_bytes,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("1d", 86400.0),
        ("250ms", 0.25),
        ("1m30s500ms", 90.5),
        ("1.5h", 5400.0),
        ("90", 90.0),
        ("0.25", 0.25),
        (" 5s ", 5.0),
    ],
)
def test_time_is_read(text, seconds):
    assert parse_seconds(text, "timeout") == pytest.approx(seconds)


def test_no_time_stays_none():
    assert parse_seconds(None, "timeout") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "5 s",
        "5x",
        "0",
        "0s",
        "-1",
        "-5s",
        "nan",
        "inf",
        "1h30",
        "m5",
        "5S",
        "5s;",
        "9" * 400 + "s",
        "5s\n5",
    ],
)
def test_what_is_no_time_is_refused_by_the_name_of_its_option(text):
    with pytest.raises(FleetError, match=r"^timeout: .*is not a time"):
        parse_seconds(text, "timeout")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KiB", 512 * 1024),
        ("8MiB", 8 << 20),
        ("1GiB", 1 << 30),
        ("64kB", 64000),
        ("2MB", 2000000),
        ("1GB", 10**9),
        ("100B", 100),
        ("0.5KiB", 512),
        ("8 MiB", 8 << 20),
        (" 8MiB ", 8 << 20),
    ],
)
def test_size_is_read(text, size):
    assert parse_bytes(text, "buffer_size") == size


@pytest.mark.parametrize("text", ["", "8", "MiB", "8mib", "8KB", "8K", "-8MiB", "8MiBs", "1e3B", "8MiB 1KiB", "0x8B"])
def test_what_is_no_size_is_refused_by_the_name_of_its_option(text):
    with pytest.raises(FleetError, match=r"^buffer_size: .*is not a size"):
        parse_bytes(text, "buffer_size")


def test_size_beyond_all_floats_is_refused():
    with pytest.raises(FleetError):
        parse_bytes("9" * 400 + "B", "buffer_size")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (60_000_000, "57.2 MiB"), (3 << 30, "3.0 GiB")],
)
def test_a_size_for_people(size, text):
    assert format_bytes(size) == text


def test_a_time_for_people_is_utc_to_the_second():
    assert format_time(1790000000.25) == "2026-09-21T14:13:20Z"
