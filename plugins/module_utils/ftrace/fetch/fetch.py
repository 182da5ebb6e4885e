# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's half of a fetch: drain, and offer what is not at home yet.

A fetch moves what the kernel holds into segments (outbox.py) and offers those that its controller lacks. What no controller has
is offered to every fetch, what is kept for others to those that select its instance.
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
    """What a controller has: bytes of segments that a BROKEN transfer has left, stamps of whole captures, and all up to CURSOR.

    METHODS are the compressions that it reads, OWNER (user and group) whom it logs in as.
    """

    parts: Mapping[str, int] = field(default_factory=dict)
    broken: str = ""
    stamps: Sequence[str] = ()
    cursor: int = 0
    methods: Sequence[str] = ()
    owner: tuple[int, int] = (0, 0)

    def has(self, one: Staged) -> bool:
        """Whether all of ONE is there, or is not asked for."""
        return one.stamp_ns <= self.cursor or find_stamp(one.name) in self.stamps


def foresee(found: Sequence[TraceInstance], home: Home) -> bool:
    """Whether fetch would bring anything."""
    names = {one.instance.name for one in found}
    return any(map(recording.count_entries, found)) or any(
        not home.has(one) and (one.state != outbox.KEPT or one.instance in names) for one in outbox.list_segments()
    )


def fetch(
    found: Sequence[TraceInstance], outcome: Outcome, home: Home, warn: Callable[[str], None], *, consume: bool
) -> dict[str, Any]:
    """Drain FOUND, and offer what HOME lacks: the transfer (None for nothing), manifests of instances that held no event.

    Where MORE is left there was no room for it; another fetch has it once this is at home.
    With CONSUME what HOME has is removed from the host. OUTCOME gets those that could not be drained.
    """
    if not found and not outbox.list_segments():  # nothing of ours is made where there is nothing
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
        left = [one for one in outbox.list_segments() if one.state == outbox.NEW]
        if outbox.is_in_transfer():
            # Those of a transfer of ours that broke are nobody else's.
            others = [one for one in left if one.name not in home.parts and not home.has(one)]
            left = [one for one in left if one not in others]
            if others:
                warn(
                    f"{len(others)} earlier captures are being brought home by another fetch, or by one that broke less than a"
                    " minute ago; the next fetch brings those that are left"
                )
        before = {one.name for one in outbox.list_segments()}
        empty: list[dict[str, Any]] = []
        has_more = False
        with outcome.complaining():  # what waits is offered all the same
            outbox.check_waiting()
            empty, has_more = ring.stage(found, outcome, recording.list_sources, home.methods)
        names = {one.instance.name for one in found}
        present = outbox.list_segments()
        kept = [one for one in present if one.state == outbox.KEPT and one.instance in names]
        candidates = sorted(
            [*left, *kept, *(one for one in present if one.name not in before)], key=lambda one: one.stamp_ns
        )
        chosen = []
        for one in candidates:
            # What has just been drained is nowhere else, whatever a cursor or a clock that was set back makes of its stamp.
            if one.name not in before or not home.has(one):
                chosen.append(one)
            elif consume:
                os.unlink(one.path)
            elif one.state == outbox.NEW:  # it arrived, and the word of that did not
                os.rename(one.path, one.path[: -len(outbox.NEW)] + outbox.KEPT)
        transfer = outbox.make_transfer(chosen, home.parts, home.owner)
    return {
        "changed": bool(chosen),
        "transfer": transfer,
        "empty": empty,
        "cursor": str(max([home.cursor, *(one.stamp_ns for one in candidates)])),
        "more": has_more,
    }
