# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running kernel: its release, the identity of its boot, and the seconds since that boot, which no change of the host's date alters."""

from __future__ import annotations

import re
import time


def read_boot_id() -> str:
    """Return the identity of the host's current boot, a UUID that the kernel makes anew at each boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read_clock() -> float:
    """Return the current time in seconds since boot, including suspended time (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parse_release(release: str) -> tuple[int, ...]:
    """Return the major and minor number of a kernel release such as 6.1.0-17-amd64."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])
