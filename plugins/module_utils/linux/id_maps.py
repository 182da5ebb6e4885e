# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Translate numbers of users and groups between a user namespace and the host. Source: user_namespaces(7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable


@dataclass(frozen=True)
class IdRange:
    """One line of /proc/PID/uid_map or gid_map: a range of numbers inside the user namespace and its counterpart outside."""

    inside: int  # first number inside the namespace
    outside: int  # the same user or group outside
    count: int  # length of both ranges


def parse_id_map(text: bytes) -> list[IdRange]:
    """Return the ranges in TEXT, the text of /proc/PID/uid_map or gid_map."""
    return [IdRange(*map(int, line.split())) for line in text.decode("ascii").splitlines()]


def find_outside(number: int, ranges: Iterable[IdRange]) -> int | None:
    """Return the number outside the namespace for NUMBER inside; None when no range of RANGES maps it."""
    for mapping in ranges:
        if mapping.inside <= number < mapping.inside + mapping.count:
            return mapping.outside + number - mapping.inside
    return None


def find_inside(number: int, ranges: Iterable[IdRange]) -> int | None:
    """Return the number inside the namespace for NUMBER outside; None when no range of RANGES maps it."""
    reversed_ranges = [IdRange(mapping.outside, mapping.inside, mapping.count) for mapping in ranges]
    return find_outside(number, reversed_ranges)
