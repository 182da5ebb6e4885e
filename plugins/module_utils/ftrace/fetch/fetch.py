# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carry out the host's half of a fetch: drain the buffers into segments, and offer the segments that the controller lacks.

The segments wait in a folder (outbox.py). A segment that no controller has is offered to every fetch. A segment that is kept for other
controllers is offered to a fetch that selects its instance.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox, recording, ring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.outbox import Staged
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import find_stamp
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance


@dataclass(frozen=True)
class Home:
    """The captures that a controller has, and how it fetches.

    PARTS: segment → bytes of it that a broken transfer has brought.
    BROKEN: the path of that transfer on the host; '' for none.
    STAMPS: the stamps of the captures that the controller has.
    CURSOR: nanoseconds of real time; segments up to it are fetched already, or not wanted.
    METHODS: the compressions that the controller reads.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    broken: str = ""
    stamps: Sequence[str] = ()
    cursor: int = 0
    methods: Sequence[str] = ()

    def has(self, segment: Staged) -> bool:
        """Return True if the controller has all of SEGMENT, or does not want it."""
        return segment.stamp_ns <= self.cursor or find_stamp(segment.name) in self.stamps


def make_home(parameters: Mapping[str, Any], cursor: int = 0) -> Home:
    """Return the controller's captures as PARAMETERS, values of arguments.HOME_ARGUMENTS, and CURSOR describe them."""
    return Home(
        parts=parameters["_parts"],
        broken=parameters["_broken"],
        stamps=parameters["_stamps"],
        cursor=cursor,
        methods=parameters["_methods"],
    )


def foresee(found: Sequence[TraceInstance], home: Home) -> bool:
    """Return True if a fetch of FOUND would bring any capture to HOME."""
    names = {trace.instance.name for trace in found}
    is_waiting = any(
        not home.has(segment) and (segment.state != outbox.KEPT or segment.instance in names)
        for segment in outbox.list_segments()
    )
    return is_waiting or any(map(recording.count_entries, found)) or any(map(recording.has_waits, found))


def stage(
    found: Sequence[TraceInstance], outcome: Outcome, methods: Sequence[str]
) -> tuple[list[dict[str, Any]], bool]:
    """Drain FOUND into segments that wait for the next fetch, compressed by one of METHODS. OUTCOME gets the failures.

    Returns the manifests of instances without events and telling waits, and True if some events found no room on the host.
    """
    with outbox.hold_folder():
        outbox.recover()
        outbox.prune()
        outbox.check_waiting()
        return ring.stage(found, outcome, recording.list_sources, methods)


def fetch(
    found: Sequence[TraceInstance], outcome: Outcome, home: Home, warn: Callable[[str], None], *, consume: bool
) -> dict[str, Any]:
    """Drain FOUND, and offer the segments that HOME lacks as one transfer.

    The result has `changed`, `transfer` (as make_transfer returns it), `empty` (manifests of instances without events and telling
    waits), `cursor` (for the next fetch), and `more` (True if some events found no room on the host and need another fetch).
    With CONSUME a segment that HOME has is removed from the host. OUTCOME gets the traces that could not be drained, WARN warnings.
    """
    if not found and not outbox.list_segments():  # a host without captures gets no folder for them
        return {
            "changed": False,
            "transfer": None,
            "empty": [],
            "cursor": str(home.cursor),
            "more": False,
        }
    with outbox.hold_folder():
        outbox.recover()
        outbox.prune()
        outbox.drop_transfer(home.broken)
        left = [segment for segment in outbox.list_segments() if segment.state == outbox.NEW]
        if outbox.is_in_transfer():
            # The segments of this controller's broken transfer are in no other fetch.
            others = [segment for segment in left if segment.name not in home.parts and not home.has(segment)]
            left = [segment for segment in left if segment not in others]
            if others:
                warn(
                    f"{len(others)} earlier captures are being transferred by another fetch, or by one that broke less than a"
                    " minute ago; the next fetch brings those that are left"
                )
        before = {segment.name for segment in outbox.list_segments()}
        empty: list[dict[str, Any]] = []
        has_more = False
        with outcome.complaining():  # the waiting segments are offered even if nothing can be drained
            outbox.check_waiting()
            empty, has_more = ring.stage(found, outcome, recording.list_sources, home.methods)
        names = {trace.instance.name for trace in found}
        present = outbox.list_segments()
        kept = [segment for segment in present if segment.state == outbox.KEPT and segment.instance in names]
        drained = [segment for segment in present if segment.name not in before]
        candidates = sorted([*left, *kept, *drained], key=lambda segment: segment.stamp_ns)
        chosen = []
        for segment in candidates:
            # A segment that was drained just now is nowhere else, even if a clock that was set back put its stamp before the cursor.
            if segment.name not in before or not home.has(segment):
                chosen.append(segment)
            elif consume:
                os.unlink(segment.path)
            elif segment.state == outbox.NEW:  # it arrived at the controller, but the confirmation did not arrive here
                os.rename(segment.path, segment.path[: -len(outbox.NEW)] + outbox.KEPT)
        transfer = outbox.make_transfer(chosen, home.parts)
    return {
        "changed": bool(chosen),
        "transfer": transfer,
        "empty": empty,
        "cursor": str(max([home.cursor, *(segment.stamp_ns for segment in candidates)])),
        "more": has_more,
    }
