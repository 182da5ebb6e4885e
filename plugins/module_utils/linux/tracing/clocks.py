# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the offset from the time stamps of a trace to real time, and the uncertainty of that offset."""

from __future__ import annotations

import time
from typing import Any

_ROUNDS = 20
# The kernel's trace clocks that user space can read as well.
_CLOCKS = {
    "mono": time.CLOCK_MONOTONIC,
    "mono_raw": time.CLOCK_MONOTONIC_RAW,
    "boot": getattr(time, "CLOCK_BOOTTIME", None),
    "tai": getattr(time, "CLOCK_TAI", None),
}


def read(clock: str) -> int | None:
    """Return the trace clock CLOCK in nanoseconds, as time stamps have it; None for a clock that user space cannot read."""
    number = _CLOCKS.get(clock)
    return None if number is None else time.clock_gettime_ns(number)


def measure_offset(clock: str) -> dict[str, Any]:
    """Return offset_ns, which added to a time stamp of the trace clock CLOCK gives real time, as measured at real_time_ns.

    The offset is right to plus or minus uncertainty_ns. Both are None for a clock that user space cannot read.
    """
    number = _CLOCKS.get(clock)
    if number is None:
        return {"offset_ns": None, "uncertainty_ns": None, "real_time_ns": time.time_ns()}
    # Each round reads real time between two readings of the clock. The closest two readings leave the least uncertainty.
    best: tuple[int, int, int] | None = None
    for _round in range(_ROUNDS):
        before = time.clock_gettime_ns(number)
        real = time.time_ns()
        after = time.clock_gettime_ns(number)
        if best is None or after - before < best[0]:
            best = (after - before, real - (before + after) // 2, real)
    width, offset, real = best or (0, 0, 0)
    return {"offset_ns": offset, "uncertainty_ns": width // 2 + 1, "real_time_ns": real}
