# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell whether a capture without events says something: threads that wait for one thing from its beginning to its end."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import (
    AMONG_THEMSELVES,
    FOR_SOMETHING,
    SIGNAL_WAITS,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import Tables

_LEAST_NS = 1_000_000_000


def has_telling_waits(tables: Tables) -> bool:
    """Return True if by TABLES a thread waited in one call at the beginning and at the end, which were a second apart, and that may be a fault.

    It may be where the call is for something that has a name, such as a lock. A container whose threads all wait for each other
    may be one with a deadlock. Idle servers wait in other calls, and sleeps end by themselves.
    """
    first, last = tables.first_holdings, tables.last_holdings
    if last.get("time_ns", 0) - first.get("time_ns", 0) < _LEAST_NS:
        return False
    before = {wait["tid"]: wait for wait in first.get("waits") or ()}
    waits = last.get("waits") or []
    lasting = [wait for wait in waits if before.get(wait["tid"]) == wait]
    compat = {task["tid"] for task in (*tables.first_tasks, *tables.tasks) if task.get("compat")}
    names = {_name(wait, tables, is_compat=wait["tid"] in compat) for wait in lasting}
    if names & FOR_SOMETHING:
        return True
    return len(lasting) == len(waits) and names <= AMONG_THEMSELVES and not names <= frozenset(SIGNAL_WAITS)


def _name(wait: dict[str, Any], tables: Tables, *, is_compat: bool) -> str:
    calls = tables.compat_syscalls if is_compat else tables.syscalls
    return calls.get(wait["number"], "")
