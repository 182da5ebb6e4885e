# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the short form of a capture until all captures of a report are read, for rules that compare them: bounded, and without arrays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import find_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Place, Thing

MAX_DEEDS = 2000  # of a capture
_COMPARED = ("path", "peer")  # kinds of objects whose texts mean the same in another container


class Deed(NamedTuple):
    """Calls that a program made in the same way."""

    program: str
    call: str
    error: str | None
    object: Thing | None


@dataclass(frozen=True)
class Digest:
    """The short form of a capture."""

    file: str  # its path, as the report names it
    place: Place
    image: str  # of the container; empty where it is not known
    first: str | None  # ISO 8601, UTC
    last: str | None
    deeds: dict[Deed, int]  # how often each was done, the most frequent ones
    is_cut: bool  # there were more deeds
    loss: str | None  # what is missing in the capture, in words


def digest(capture: Capture) -> Digest:
    """Return the short form of CAPTURE, without errors that are answers.

    Where it has too many deeds, those with errors and objects stay, and then the most frequent.
    """
    deeds: Counter[Deed] = Counter()
    for cell in capture.cells:
        if cell.outcome.error is None or find_rule(cell) is not None:
            # The numbers of pipes and sockets differ everywhere.
            thing = cell.object if cell.object and cell.object.kind in _COMPARED else None
            deeds[Deed(cell.who.program, cell.call, cell.outcome.error, thing)] += cell.count
    kept = sorted(
        deeds.items(), key=lambda pair: (pair[0].error is None, pair[0].object is None, -pair[1], repr(pair[0]))
    )
    cells = capture.cells
    return Digest(
        file=capture.file,
        place=capture.place,
        image=(capture.manifest.get("container") or {}).get("image") or "",
        first=capture.format_time(min(cell.first_ns for cell in cells)) if cells else None,
        last=capture.format_time(max(cell.last_ns for cell in cells)) if cells else None,
        deeds=dict(kept[:MAX_DEEDS]),
        is_cut=len(kept) > MAX_DEEDS,
        loss=capture.loss,
    )
