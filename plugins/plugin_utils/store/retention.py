# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose which captures of a store are removed. Pure.

- Each container on each host keeps its newest capture, whatever the limits are.
- Nothing that came into the store less than a day ago is removed, whatever the limits are.
- A capture's age is counted from its end by the manifest, but no later than from when it came into the store.
- The oldest that may be removed go first, until a limit is kept.
- Where the controller's clock was set back, or may have jumped, nothing is removed, and what came within the day before counts as new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time, parse_bytes, parse_seconds
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.records import DAY_NS, HOUR_NS, SECOND_NS, Record


@dataclass(frozen=True)
class Limits:
    """Limits of what stays: AGE_NS, the age of a capture; COUNT and SIZE (bytes), of each container on each host; TOTAL, bytes of all.

    None is no limit. TEXTS: name of an option → its value as the user wrote it. FREE: bytes below which a collection does not begin.
    """

    age_ns: int | None = None
    count: int | None = None
    size: int | None = None
    total: int | None = None
    free: int | None = None
    texts: Mapping[str, str] | None = None

    @property
    def are_set(self) -> bool:
        """True if there is a limit by which captures are removed."""
        return any(limit is not None for limit in (self.age_ns, self.count, self.size, self.total))

    def explain(self, name: str) -> str:
        """Return the option NAME with its value as the user wrote it, such as keep_age=14d."""
        return f"{name}={(self.texts or {}).get(name, '')}"


def parse_limits(options: Mapping[str, Any]) -> Limits:
    """Return the limits in OPTIONS (keep_age, keep_count, keep_size, keep_total, keep_free); raise FleetError for one that is none."""
    given = {name: str(value) for name, value in options.items() if name.startswith("keep_") and value is not None}
    age = parse_seconds(given.get("keep_age"), "keep_age")
    if age is not None and age < DAY_NS / SECOND_NS:
        raise FleetError(
            f"keep_age: {given['keep_age']!r} is less than a day, and nothing that came within a day is removed: give a time such as 14d"
        )
    sizes = {name: _parse_size(given[name], name) for name in ("keep_size", "keep_total", "keep_free") if name in given}
    count = given.get("keep_count")
    if count is not None and not (count.isascii() and count.isdigit() and int(count[:18]) > 0 and len(count) <= 18):
        raise FleetError(f"keep_count: {count!r} is not a number of captures: give 1 or more")
    return Limits(
        None if age is None else int(age * SECOND_NS),
        None if count is None else int(count),
        sizes.get("keep_size"),
        sizes.get("keep_total"),
        sizes.get("keep_free"),
        given,
    )


def _parse_size(text: str, option: str) -> int:
    size = parse_bytes(text, option)
    if not size:
        raise FleetError(f"{option}: {text!r} would keep nothing: give more, or leave the option out")
    return size


def find_clock_problem(now_ns: int, times: Sequence[int], latest_ns: int = 0) -> str | None:
    """Return why the controller's clock, which says NOW_NS, is not to be trusted with removals, or None.

    TIMES are those of earlier updates, in the order in which they were noted. LATEST_NS is when the last capture came. Once the clock was
    set back, a gap of less than a day counts, too: by that it may have been set right again.
    """
    last = max(times[-1] if times else 0, latest_ns)
    if now_ns < last:
        return (
            f"the controller's clock says {format_time(now_ns / SECOND_NS)}, which is before {format_time(last / SECOND_NS)}, the last"
            " time in the catalogue: nothing is removed this time"
        )
    if not times:
        return None
    gap = now_ns - times[-1]
    before = times[-1] - times[-2] if len(times) > 1 else 0
    was_set_back = any(later < earlier for earlier, later in zip(times, times[1:]))
    if gap > 2 * before and (gap > DAY_NS or was_set_back):
        known = (
            "more than twice the time between the two runs before"
            if before > 0
            else "and nothing tells whether that is usual"
        )
        ago = f"{gap / DAY_NS:.1f} days" if gap > DAY_NS else f"{gap / HOUR_NS:.1f} hours"
        return (
            f"the last run was {ago} ago, {known}, so the controller's clock may have jumped: nothing is removed this time;"
            " if the clock is right, the next run removes again"
        )
    return None


def choose(records: Iterable[Record], limits: Limits, now_ns: int) -> dict[str, str]:
    """Return path → why for those of RECORDS, the captures of a store, that are to be removed at NOW_NS by LIMITS, the oldest first."""
    ordered = sorted(records, key=lambda record: (record.aged_from_ns, record.added_ns, record.path))
    newest = {record.of_container: record.path for record in ordered}
    kept = set(newest.values()) | {record.path for record in ordered if now_ns - record.added_ns < DAY_NS}
    chosen: dict[str, str] = {}
    if limits.age_ns is not None:
        for record in ordered:
            if record.path not in kept and now_ns - record.aged_from_ns > limits.age_ns:
                chosen[record.path] = limits.explain("keep_age")
    groups: dict[tuple[str, str | None, str], list[Record]] = {}
    for record in ordered:
        groups.setdefault(record.of_container, []).append(record)
    for group in groups.values():
        if limits.count is not None:
            _choose_until(group, lambda _record: 1, limits.count, limits.explain("keep_count"), chosen, kept)
        if limits.size is not None:
            _choose_until(group, _size, limits.size, limits.explain("keep_size"), chosen, kept)
    if limits.total is not None:
        _choose_until(ordered, _size, limits.total, limits.explain("keep_total"), chosen, kept)
    places = {record.path: place for place, record in enumerate(ordered)}
    return dict(sorted(chosen.items(), key=lambda one: places[one[0]]))


def _choose_until(
    ordered: Sequence[Record],
    weigh: Callable[[Record], int],
    limit: int,
    why: str,
    chosen: dict[str, str],
    kept: Collection[str],
) -> None:
    """Add to CHOSEN, with WHY, the first of ORDERED that are not in KEPT, until those that stay weigh no more than LIMIT."""
    weight = sum(weigh(record) for record in ordered if record.path not in chosen)
    for record in ordered:
        if weight <= limit:
            return
        if record.path not in chosen and record.path not in kept:
            chosen[record.path] = why
            weight -= weigh(record)


def _size(record: Record) -> int:
    return record.bytes
