# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How slow this machine is: every wait of a test, and every limit on how long something may take, grows with it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

VARIABLE = "CRASHCART_TEST_PATIENCE"  # a number in the environment, for machines whose speed changes while tests run
_STARTS = 8
_START_S = 0.06  # what one start takes on two idle cores of 2020
_MOST = 20.0


@functools.lru_cache(maxsize=None)
def measure_slowness() -> float:
    """Return how many times longer than usual this machine takes to start Python, between 1 and 20; VARIABLE overrides it."""
    if os.environ.get(VARIABLE):
        return float(os.environ[VARIABLE])
    start = time.monotonic()
    for _number in range(_STARTS):
        subprocess.run([sys.executable, "-I", "-c", "import json, subprocess"], check=True)
    return min(_MOST, max(1.0, (time.monotonic() - start) / (_STARTS * _START_S)))


def seconds(number: float) -> float:
    """Return how many seconds of this machine NUMBER seconds of a usual one are."""
    return number * measure_slowness()


def pause(number: float) -> None:
    """Sleep for NUMBER seconds of a usual machine."""
    time.sleep(seconds(number))
