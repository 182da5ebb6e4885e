# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The counts of one round of workload.py: system call → number of calls, and errors by name."""

from __future__ import annotations

COUNTS: dict[str, tuple[int, dict[str, int]]] = {
    "openat": (300, {"ENOENT": 100}),
    "connect": (50, {"ENOENT": 50}),
    "write": (200, {}),
}
