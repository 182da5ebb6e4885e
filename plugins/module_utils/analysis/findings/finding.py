# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of a finding, how equal findings of several captures become one, and which one comes first.

Pure. A rule makes findings of one capture. Its statement is a template, so that the statement of a merged finding is made of the merged
numbers and stays true. Findings with other words are other findings.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Hashable, Iterable, Mapping, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_surrogates
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_bytes

MAX_PIDS = 20
MAX_EVIDENCE = 5
MAX_PLACES = 20  # in findings.json; more are counted
CRITICAL = 80  # severity from which on a program cannot do its work
CONFIDENCES = ("certain", "likely", "inferred")  # the strongest first

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_MERGES: Mapping[str, Callable[[float, float], float]] = {"sum": lambda a, b: a + b, "max": max, "min": min}

Key = Tuple[Hashable, ...]


@dataclass(frozen=True, order=True)
class Thing:
    """The object of a finding."""

    kind: str  # path, peer, socket, pipe, anon, program, limit
    text: str


@dataclass(frozen=True, order=True)
class Place:
    """A container on a host. Both are empty where a capture has no manifest."""

    host: str
    container: str


@dataclass(frozen=True, order=True)
class Evidence:
    """A moment in a capture that shows a finding."""

    file: str  # path of the capture, as the report names it
    time: str | None  # ISO 8601, UTC; None where the capture does not have its clock's offset


@dataclass(frozen=True)
class Number:
    """A number within a statement, and how those of equal findings become one."""

    value: float
    merge: str = "max"  # sum, max or min
    unit: str = ""  # ns, bytes or nothing

    def __str__(self) -> str:
        """Return the number for people."""
        if self.unit == "ns":
            return format_duration(self.value)
        if self.unit == "bytes":
            return format_bytes(int(self.value))
        # Counts are given in full, as all counts of a report; of a rate below 1000, three digits are.
        is_whole = self.value >= 1000 or self.value == int(self.value)
        return f"{self.value:.0f}" if is_whole else f"{self.value:.3g}"


@dataclass(frozen=True)
class Finding:
    """One plain statement of what failed or waited, on what, who, where and how often.

    TEMPLATE is the statement with placeholders: {program}, {object}, {call}, {error}, {count}, {of}, {often} ("3 times", "3 of 10
    times"), and the names in WORDS and NUMBERS. Texts of a container belong into these, never into TEMPLATE itself.
    """

    rule: str  # name of the rule's file
    template: str
    severity: int  # 0 to 100
    next: str  # a command to run
    program: str = ""
    call: str | None = None  # name of the system call
    error: str | None = None  # name of its errno
    object: Thing | None = None
    words: Mapping[str, str] = field(default_factory=dict)  # further texts of the statement, by placeholder
    numbers: Mapping[str, Number] = field(default_factory=dict)  # further numbers of the statement, by placeholder
    container_pids: tuple[int, ...] = ()
    where: tuple[Place, ...] = ()
    count: int = 1
    of: int | None = None  # of how many; None where that has no meaning
    first: str | None = None  # ISO 8601, UTC
    last: str | None = None
    evidence: tuple[Evidence, ...] = ()
    confidence: str = "certain"
    missing: str | None = None  # the part of the truth that was not recorded, or was lost
    image: str = (
        ""  # of the container, for what is about a program alone: another image has another program of that name
    )

    @property
    def key(self) -> Key:
        """Return the key that findings of different captures share when they are about the same thing."""
        thing = (self.object.kind, self.object.text) if self.object else None
        words = tuple(sorted(self.words.items()))
        return (self.rule, thing, self.program, self.image, self.call, self.error, self.template, words)

    @property
    def statement(self) -> str:
        """Return one plain line."""
        known: dict[str, object] = {
            "program": self.program or "a program",
            "object": self.object.text if self.object else "",
            "call": self.call or "",
            "error": self.error or "",
            "count": self.count,
            "of": self.count if self.of is None else self.of,
            "often": self.often,
            **self.words,
            **self.numbers,
        }
        return _PLACEHOLDER.sub(lambda match: str(known.get(match[1], match[0])), self.template)

    @property
    def often(self) -> str:
        """Return how often it happened, in words."""
        if self.of is not None and self.of > 1:
            return f"{self.count} of {self.of} times"
        return "once" if self.count == 1 else f"{self.count} times"

    @property
    def rank(self) -> tuple[Any, ...]:
        """Return the key to sort findings by: the worst first, and equal ones always in the same order."""
        return (-self.severity, -len(self.where), -self.count, self.statement, repr(self.key))


def merge(one: Finding, other: Finding) -> Finding:
    """Return the finding for ONE and OTHER, which have the same key. The next command is that of the one that ranks first."""
    first, second = sorted((one, other), key=lambda finding: finding.rank)
    return replace(
        first,
        severity=max(one.severity, other.severity),
        numbers={name: _merge_numbers(number, second.numbers.get(name)) for name, number in first.numbers.items()},
        container_pids=tuple(sorted({*one.container_pids, *other.container_pids})[:MAX_PIDS]),
        where=tuple(sorted({*one.where, *other.where})),
        count=one.count + other.count,
        of=None if one.of is None or other.of is None else one.of + other.of,
        first=min(filter(None, (one.first, other.first)), default=None),
        last=max(filter(None, (one.last, other.last)), default=None),
        evidence=choose_evidence((*one.evidence, *other.evidence)),
        confidence=max(one.confidence, other.confidence, key=CONFIDENCES.index),
        missing=_join_texts(one.missing, other.missing),
    )


def choose_evidence(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return at most five of EVIDENCE: one of each file before a second one of a file, the earliest first."""
    seen: Counter[str] = Counter()
    turns = []
    for moment in sorted(set(evidence), key=lambda moment: (moment.file, moment.time or "")):
        turns.append((seen[moment.file], moment))
        seen[moment.file] += 1
    return tuple(moment for _turn, moment in sorted(turns, key=lambda pair: pair[0])[:MAX_EVIDENCE])


def describe(finding: Finding) -> dict[str, Any]:
    """Return FINDING as an entry of findings.json."""
    found = {
        "rule": finding.rule,
        "statement": finding.statement,
        "severity": finding.severity,
        "object": {"kind": finding.object.kind, "text": finding.object.text} if finding.object else None,
        "program": finding.program,
        "call": finding.call,
        "error": finding.error,
        "container_pids": list(finding.container_pids[:MAX_PIDS]),
        "where": [{"host": place.host, "container": place.container} for place in finding.where[:MAX_PLACES]],
        "hosts": len({place.host for place in finding.where}),
        "containers": len(finding.where),
        "count": finding.count,
        "of": finding.of,
        "first": finding.first,
        "last": finding.last,
        "evidence": [{"file": moment.file, "time": moment.time} for moment in finding.evidence[:MAX_EVIDENCE]],
        "confidence": finding.confidence,
        "missing": finding.missing,
        "next": finding.next,
    }
    return {name: _escape(value) for name, value in found.items()}


def format_duration(nanoseconds: float) -> str:
    """Return NANOSECONDS for people, such as 1.5 ms or 2 m 5 s."""
    if nanoseconds >= 60e9:
        minutes, seconds = divmod(round(nanoseconds / 1e9), 60)
        return f"{minutes} m {seconds} s"
    for unit, factor in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def _merge_numbers(one: Number, other: Number | None) -> Number:
    return one if other is None else replace(one, value=_MERGES[one.merge](one.value, other.value))


def _join_texts(one: str | None, other: str | None) -> str | None:
    """Return ONE and OTHER as one text; where both say something else, that of one of them and that there is more."""
    if not one or not other or one == other:
        return one or other
    more = "; more in other captures"
    return one if one.endswith(more) else one + more


def _escape(value: Any) -> Any:
    """Return VALUE with lone surrogates escaped in all its texts, since readers of JSON refuse them."""
    if isinstance(value, str):
        return escape_surrogates(value)
    if isinstance(value, list):
        return [_escape(item) for item in value]
    return {name: _escape(item) for name, item in value.items()} if isinstance(value, dict) else value
