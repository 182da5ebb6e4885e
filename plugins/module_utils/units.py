# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse sizes and times as users write them (8MiB, 64kB, 30s, 10m, 1h30m), and format them for people."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

_TIME_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+\Z")
_TIME_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE_FACTORS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)\Z")


def parse_seconds(text: str | None, option: str) -> float | None:
    """Return the seconds that TEXT means, such as 90 for 1m30s; a plain number means seconds, and None gives None.

    Raises FleetError, which names OPTION, when TEXT is no time above 0 and below 10**9 seconds.
    """
    if text is None:
        return None
    text = text.strip()
    if _TIME.match(text):
        seconds = sum(float(number) * _TIME_FACTORS[unit] for number, unit in _TIME_PART.findall(text))
    else:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
    if not 0 < seconds < 10**9:
        raise FleetError(f"{option}: {text!r} is not a time: write for example 30s, 10m or 1h30m")
    return seconds


def parse_bytes(text: str, option: str) -> int:
    """Return the bytes that TEXT, such as 8MiB, means. Raises FleetError, which names OPTION, when TEXT is no size."""
    match = _SIZE.match(text.strip())
    if not match or match.group(2) not in _SIZE_FACTORS:
        raise FleetError(f"{option}: {text!r} is not a size: write for example 512KiB, 8MiB or 1GiB")
    return int(float(match.group(1)) * _SIZE_FACTORS[match.group(2)])


def format_bytes(size: int) -> str:
    """Return SIZE, a number of bytes, as a text for people, such as 57.2 MiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def format_time(seconds: float) -> str:
    """Return SECONDS since the epoch as ISO 8601 in UTC, such as 2026-11-21T23:15:00Z."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
