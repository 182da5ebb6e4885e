# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep runs of tests on this machine apart: all trace by one kernel, and each run removes everything of ours at its end."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hold_kernel() -> Iterator[None]:
    """Wait until no other run of tests traces on this machine, and keep others waiting until the context ends."""
    with open("/run/lock/crashcart-fleet-tests", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
