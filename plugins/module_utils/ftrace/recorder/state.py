# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what the recorder does with a trace, and how the trace began and ended, for the results of modules. Nothing is changed."""

from __future__ import annotations

import os
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import history, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

_STOP_ON_FREE = "options/disable_on_free"


def find_order(name: str) -> orders.Order | None:
    """Return the order by which the recorder looks after instance NAME now; None if it does not."""
    order = orders.read_order(name)
    return order if order is not None and orders.is_taken(name) else None


def describe_order(name: str) -> dict[str, Any]:
    """Return the limits by which the recorder looks after instance NAME, for a diff.

    Empty if the recorder does not, or if it only watches the ring of a trace that has ended.
    """
    order = find_order(name)
    return describe_limits(order.limits, order.group, order.rule) if order and not order.ended else {}


def find_end(name: str) -> float | None:
    """Return when the ttl of the trace in instance NAME ends, in seconds since the epoch by the host's clock; None if it has none."""
    order = find_order(name)
    return None if order is None else order.expires


def describe_limits(limits: Limits, group: str, rule: Rule | None) -> dict[str, Any]:
    """Return LIMITS for a diff; if restarts are awaited, with the folder GROUP of the control group; with RULE, if there is one."""
    more = {"group": group} if limits.restarts else {}
    return {**limits.describe(), **more, **({} if rule is None else {"rule": rule.describe()})}


def describe_state(instance: Instance, *, is_gone: bool = False) -> dict[str, Any]:
    """Return what modules return of INSTANCE beside its settings; if it IS_GONE, what its record and recordings tell."""
    expires = find_end(instance.name)
    found = recordings.list_recordings(instance.name)
    record = {} if is_gone else metadata.read_record(instance)
    stopped = record.get("stopped")
    removed = metadata.read_removed(instance) if is_gone else None
    if removed is not None:
        stopped = metadata.describe_removed(removed)
    if stopped is None and found and (is_gone or not instance.is_tracing()):
        stopped = found[-1].as_result()["stopped"]
    begun, ended = _find_history(record, found)
    is_on = not is_gone and instance.is_tracing()
    return {
        "mode": "record" if (found if is_gone else is_recorded(instance)) else "ring",
        "begun": begun,
        "ended": None if is_on else ended,
        "summary": history.summarize(begun, ended, stopped, expires, is_on=is_on),
        "stopped": stopped,
        "followed": record.get("followed"),
        "discarded": metadata.read_discarded(record).events,
        "expires": expires,
        "expires_at": None if expires is None else format_time(expires),
        "recordings": [recording.as_result() for recording in found],
        "rule": _describe_rule(record.get("rule"), found, is_on=is_on),
    }


def _describe_rule(
    described: dict[str, Any] | None, found: Sequence[recordings.Recording], *, is_on: bool
) -> dict[str, Any] | None:
    """Return the rule that a record has DESCRIBED, with what has started since it began; None for the trace of one container.

    FOUND are the recordings of the trace. IS_ON is True if it traces now.
    """
    if described is None:
        return None
    nothing = {"traced": 0, "unmeant": 0, "refused": 0, "missed": 0, "running": 0, "latest": [], "troubles": []}
    starts = recordings.read_json(os.path.join(found[-1].path, recordings.STARTS)) if found else None
    return {**described, **(starts or nothing), **({} if is_on else {"running": 0})}


def _find_history(
    record: dict[str, Any], found: Sequence[recordings.Recording]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return who began and who ended the trace with RECORD; without a record those of the last of the recordings FOUND."""
    end = record.get("end")
    if not record and found:
        record, end = found[-1].about["record"], (found[-1].read_end() or {}).get("time")
    ended = record.get("ended") or (end and {"time": end["real_time_ns"] / 1e9, "user": None, "login": None})
    return record.get("begun"), ended


def is_recorded(instance: Instance) -> bool:
    """Return True if INSTANCE is set up to be recorded to files."""
    return instance.read(_STOP_ON_FREE) == "1"


def list_watched() -> list[dict[str, Any]]:
    """Return all orders of the recorder in the form in which modules return them."""
    return [
        {
            "instance": order.name,
            "container": order.container.name,
            "mode": "record" if order.run else "ring",
            "expires": order.expires,
            "expires_at": None if order.expires is None else format_time(order.expires),
        }
        for order in orders.list_orders()
    ]
