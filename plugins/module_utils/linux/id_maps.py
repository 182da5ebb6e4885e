# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of users and groups in a user namespace, and what they are on the host. Source: user_namespaces(7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable


@dataclass(frozen=True)
class IdRange:
    """One line of /proc/PID/uid_map or gid_map: COUNT numbers from INSIDE on are those from OUTSIDE on."""

    inside: int
    outside: int
    count: int


def parse_id_map(text: bytes) -> list[IdRange]:
    """The ranges from the text of /proc/PID/uid_map or gid_map."""
    return [IdRange(*map(int, line.split())) for line in text.decode("ascii").splitlines()]


def find_outside(number: int, ranges: Iterable[IdRange]) -> int | None:
    """What NUMBER of the namespace is outside; None when it is nobody there."""
    for one in ranges:
        if one.inside <= number < one.inside + one.count:
            return one.outside + number - one.inside
    return None


def find_inside(number: int, ranges: Iterable[IdRange]) -> int | None:
    """What NUMBER of outside is in the namespace; None when it is nobody there."""
    return find_outside(number, [IdRange(one.outside, one.inside, one.count) for one in ranges])
