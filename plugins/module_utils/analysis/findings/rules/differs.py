# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find who differs from the rest, and in what: containers that did the same work, of which a few did something that no other did.

Two containers did the same work when they are of one image, or, where images are not known, when most of their programs and calls are the same.
A deed of a few is told with what the others did in its place: another object of the same program and call.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Iterator, NamedTuple, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import SEARCHES
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.digest import Deed, Digest
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import (
    Evidence,
    Finding,
    Place,
    choose_evidence,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_MIN_PEERS = 3  # of two, nobody can say which one is different
_MAX_SHARE = 0.25  # of the containers may be those that differ
_MAX_OF_PLACES = 5  # findings about the same containers
_SEVERITY, _SEVERITY_FAILED = 30, 50


class _Work(NamedTuple):
    """The common traits of containers of one kind: those of one image, or with the same programs."""

    image: str
    programs: frozenset[str]


def find_across(captures: Sequence[Digest]) -> Iterator[Finding]:
    """Yield a finding for each deed that few of the containers with the same work did."""
    groups: dict[_Work, list[Digest]] = defaultdict(list)
    for capture in captures:
        programs = frozenset() if capture.image else frozenset(deed.program for deed in capture.deeds)
        groups[_Work(capture.image, programs)].append(capture)
    for work, group in groups.items():
        if work.image or work.programs:
            yield from _compare(group)


def _compare(group: Sequence[Digest]) -> Iterator[Finding]:
    by_place: dict[Place, set[Deed]] = defaultdict(set)
    for capture in group:
        by_place[capture.place] |= capture.deeds.keys()
    if len(by_place) < _MIN_PEERS:
        return
    doers: dict[Deed, set[Place]] = defaultdict(set)
    for place, deeds in by_place.items():
        for deed in deeds:
            doers[deed].add(place)
    most = _MAX_SHARE * len(by_place)
    # Places where a program looked in vain for what hardly any other place looked for. Where these are many, each has requests of its own.
    alone: dict[tuple[str, str], set[Place]] = defaultdict(set)
    for deed, places in doers.items():
        if deed.error in SEARCHES and len(places) <= most:
            alone[deed.program, deed.call] |= places
    told: Counter[frozenset[Place]] = Counter()
    # Failures first, then what has an object with others in its place.
    for deed, places in sorted(doers.items(), key=lambda pair: (pair[0].error is None, repr(pair[0]))):
        if deed.object is None or len(places) > most or told[frozenset(places)] >= _MAX_OF_PLACES:
            continue
        instead = _find_instead(deed, doers, len(by_place))
        is_usual = deed.error is None or (deed.error in SEARCHES and len(alone[deed.program, deed.call]) > most)
        if instead is None and is_usual:
            continue
        told[frozenset(places)] += 1
        yield _make_finding(deed, instead, [capture for capture in group if capture.place in places], len(by_place))


def _find_instead(deed: Deed, doers: dict[Deed, set[Place]], peers: int) -> Deed | None:
    """Return what most of the PEERS did, and those that did DEED did not: the same call of the same program otherwise."""
    found = [
        (other, places)
        for other, places in doers.items()
        if (other.program, other.call) == (deed.program, deed.call)
        and other.object is not None
        and other.error is None
        and not places & doers[deed]
        and len(places) >= (1 - _MAX_SHARE) * peers
    ]
    # Of the same call on the same object first.
    return min(
        (other for other, _places in found), key=lambda other: (other.object != deed.object, repr(other)), default=None
    )


def _make_finding(deed: Deed, instead: Deed | None, captures: Sequence[Digest], peers: int) -> Finding:
    places = sorted({capture.place for capture in captures})
    words = {"share": f"{len(places)} of {peers}"}
    if instead is None:
        rest = "; the others did not"
    elif instead.object == deed.object:
        rest = "; for the others it does not fail"
    else:
        rest = "; the others have {instead} in its place"
        words["instead"] = instead.object.text if instead.object else ""
    verb = "differs" if len(places) == 1 else "differ"
    failed = " fails with {error}" if deed.error else ""
    is_path = deed.object is not None and deed.object.kind == "path"
    return Finding(
        rule="differs",
        template=f"{{share}} containers {verb}: {{call}} {{object}} of {{program}}{failed}{rest}",
        severity=_SEVERITY_FAILED if deed.error else _SEVERITY,
        program=deed.program,
        call=deed.call,
        error=deed.error,
        object=deed.object,
        words=words,
        where=tuple(places),
        count=sum(capture.deeds.get(deed, 0) for capture in captures),
        first=min(filter(None, (capture.first for capture in captures)), default=None),
        last=max(filter(None, (capture.last for capture in captures)), default=None),
        evidence=choose_evidence(Evidence(capture.file, capture.first) for capture in captures),
        confidence="likely",
        missing=_find_missing(captures),
        next=run_in(places[0], "ls", "-ld", deed.object.text) if is_path and deed.object else trace_again(places[0]),
    )


def _find_missing(captures: Sequence[Digest]) -> str | None:
    """Return what a comparison with CAPTURES does not know, in words; None where they are whole."""
    if any(capture.is_cut for capture in captures):
        return "a container did more than is compared"
    return next((capture.loss for capture in captures if capture.loss), None)


RULE = Rule(name="differs", title="who differs from the rest, and in what", find_across=find_across)
