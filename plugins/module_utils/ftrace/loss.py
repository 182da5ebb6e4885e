# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a capture lacks: one account for rings and recordings, with the reasons in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Sequence


@dataclass
class CpuLoss:
    """The account of one CPU's events in a capture.

    ENTRIES is how many the capture holds by the kernel's count, PAGES how many pages they came in.
    OVERRUN is how many were overwritten, DROPPED how many found no place, LOST how many are missing in the capture for any reason.
    EXACT is false where more than LOST may be missing. ERROR says why the reading of its pages ended early.
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
    """What of a recording had to make room before it was fetched: SEGMENTS, EVENTS in them, BYTES of their pages."""

    segments: int = 0
    events: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Loss:
    """What a capture lacks. CPUS holds the accounts of the CPUs.

    OTHERS is how many events are missing of which nobody knows the CPU; DISCARDED of them went with a change of settings.
    ROTATED is what made room for newer segments, UNWRITTEN how many events of ENTRIES a full disk has kept from being written.
    SEGMENTS is how many parts of a recording it has, PARTIAL whether more of them wait. EXACT is false where more may be missing than
    was counted. TOUCHED tells in words who but us had to do with the trace, or that nobody watched it.
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
        """How many events are missing, as far as they were counted."""
        return sum(account.lost for account in self.cpus) + self.others + self.unwritten + self.rotated.events

    @property
    def is_exact(self) -> bool:
        """Whether no more events are missing than were counted."""
        return self.exact and all(account.exact for account in self.cpus)

    def list_reasons(self) -> list[str]:
        """Return why the capture is not complete, in words; empty where it is."""
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
        """Return it as a manifest says it."""
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
