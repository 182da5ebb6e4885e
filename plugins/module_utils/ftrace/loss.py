# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Account for what a capture lacks, in the same form for rings and recordings, with the reasons in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Sequence


@dataclass
class CpuLoss:
    """The account of one CPU's events in a capture.

    ENTRIES: events in the capture, by the kernel's count.
    OVERRUN: events that newer ones have overwritten.
    DROPPED: events for which the buffer had no room.
    LOST: events that are missing in the capture for any reason.
    EXACT: False if more than LOST may be missing.
    PAGES: pages in the capture.
    ERROR: why the reading of the CPU's pages ended early; '' if it did not.
    """

    cpu: int
    entries: int = 0
    overrun: int = 0
    dropped: int = 0
    lost: int = 0
    exact: bool = True
    pages: int = 0
    error: str = ""


@dataclass(frozen=True)
class Rotated:
    """The part of a recording that was removed to make room before a fetch: SEGMENTS, their EVENTS, the BYTES of their pages."""

    segments: int = 0
    events: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Loss:
    """The account of what a capture lacks.

    CPUS: the accounts of the CPUs.
    OTHERS: missing events whose CPU is not known.
    DISCARDED: those of OTHERS that the kernel dropped when a setting changed.
    UNWRITTEN: events that count in ENTRIES but could not be written to a full disk.
    ROTATED: what was removed to make room for newer segments.
    SEGMENTS: segments of a recording in the capture.
    PARTIAL: True if more segments wait for the next fetch.
    EXACT: False if more events may be missing than were counted.
    TOUCHED: reasons, in words, why events may be missing, such as foreign access to the trace, or a trace without a watch.
    """

    cpus: Sequence[CpuLoss]
    others: int = 0
    discarded: int = 0
    unwritten: int = 0
    rotated: Rotated = field(default_factory=Rotated)
    segments: int = 0
    partial: bool = False
    exact: bool = True
    touched: Sequence[str] = ()

    @property
    def lost(self) -> int:
        """Return how many events are missing, as far as they were counted."""
        return sum(account.lost for account in self.cpus) + self.others + self.unwritten + self.rotated.events

    @property
    def is_exact(self) -> bool:
        """Return True if no more events are missing than were counted."""
        return self.exact and all(account.exact for account in self.cpus)

    def list_reasons(self) -> list[str]:
        """Return the reasons, in words, why the capture is not complete; empty if it is complete."""
        reasons = list(dict.fromkeys(self.touched))
        reasons += [f"CPU {account.cpu}: {account.error}" for account in self.cpus if account.error]
        if self.rotated.events:
            reasons.append(f"{self.rotated.events} events had to make room for newer ones")
        if self.discarded:
            reasons.append(f"{self.discarded} events went when a setting of the trace changed")
        rest = self.lost - self.rotated.events - self.discarded
        if rest:
            at_least = "" if self.is_exact else "at least "
            reasons.append(f"{at_least}{rest} events were lost: the buffers were full before they were read")
        if not reasons and not self.is_exact:
            reasons.append("nobody knows whether events were lost")
        return reasons

    def as_json(self) -> dict[str, Any]:
        """Return the account in the form of a manifest."""
        reasons = self.list_reasons()
        return {
            "complete": not reasons,
            "reasons": reasons,
            "lost": self.lost,
            "lost_exact": self.is_exact,
            "entries": sum(account.entries for account in self.cpus) - self.unwritten,
            "pages": sum(account.pages for account in self.cpus),
            "discarded": self.discarded,
            "rotated": asdict(self.rotated),
            "segments": self.segments,
            "partial": self.partial,
            "cpus": [asdict(account) for account in self.cpus],
        }
