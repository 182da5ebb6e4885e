# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that were refused, timed out, were reset, or came to nothing, by peer, whoever made them.

A program that tries the addresses of a name in turn, and is connected to one of them at the same port, has no failure if the others are of
another family or its own host (RFC 8305).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import NEVER
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import TRANSFERS, find_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import (
    Holdings,
    describe_target,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_PEER = re.compile(r"(?P<address>\[[^\]]*\]|[^\[\]:\s]+):(?P<port>\d+)(?: \((?P<protocol>\w+)\))?\Z")
_OUTCOMES = {
    "ECONNREFUSED": "{peer} refused the connection of {program}",
    "EHOSTUNREACH": "{program} could not reach {peer}: no route, or the host does not answer",
    "ENETUNREACH": "{program} could not reach {peer}: no route to that network",
    "EHOSTDOWN": "{program} could not reach {peer}: the host does not answer",
    "ENETDOWN": "{program} could not reach {peer}: the network is down",
    "ETIMEDOUT": "{program} got no answer from {peer}: timed out",
    "ECONNRESET": "{peer} reset the connection of {program}",
    "ENETRESET": "{peer} reset the connection of {program}",
    "EADDRNOTAVAIL": "{program} could not connect to {peer}: no free local port, or no such local address",
    "ENOENT": "{program} could not connect to {peer}: no such file",
    "EAGAIN": "{peer} took no connection of {program}: its queue of connections is full",
    "EPERM": "{program} may not connect to {peer}: a firewall or a security module refused",
    "EACCES": "{program} may not connect to {peer}: a firewall or a security module refused",
}
_NOT_CONNECTED = "{program} did not connect to {peer}: it closed the connection without a read or write"
_SEVERITY, _SEVERITY_RESET, _SEVERITY_INFERRED, _SEVERITY_UNNAMED = 80, 60, 60, 40
_SEVERITY_OVER = 20
_LOCAL = ("127.", "[::1]", "[::ffff:127.")
_SPAN_NS = 1_000_000_000
_UNANSWERED = " SYN_SENT"  # the state of a connection whose peer has not answered
_MIN_UNNAMED = 3
_MIN_UNIX = 10  # attempts of one process
_MIN_SHARE = 0.2  # of the attempts, where the others connect
_UNIX = re.compile(r"unix\b", re.IGNORECASE)
_OF_NO_ROUTE = frozenset({"ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH", "EACCES"})


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each peer and error of CAPTURE."""
    failed = [cell for cell in capture.cells if find_rule(cell) == "connections"]
    connected = _Connected(capture)
    tries: Counter[Thing] = Counter()
    for cell in capture.cells:
        if cell.call == "connect" and cell.object is not None:
            tries[cell.object] += cell.count
    holdings = Holdings(capture.manifest)
    named = (
        cell
        for cell in failed
        if cell.object is not None and cell.object.kind == "peer" and not _has_accepted(cell, cell.object, holdings)
    )
    # A peer that refuses also leaves connections that were closed without a read: one cause.
    told: set[Thing] = set()
    for (error, thing), cells in sorted(
        group(named, lambda cell: (cell.outcome.error, cell.object)), key=lambda found: found[0][0] is None
    ):
        shown = [cell for cell in cells if not connected.is_elsewhere(cell)]
        if error is None and _is_spare(shown, tries[thing], connected):
            continue
        if shown and not (error is None and thing in told):
            told.add(thing)
            is_over = error is not None and connected.is_first_after(thing, shown)
            yield _make_finding(capture, error, thing, shown, tries[thing], is_over=is_over)
    yield from _find_unanswered(capture, told)
    unnamed = (cell for cell in failed if cell.object is None or cell.object.kind != "peer")
    for (program, error, thing), cells in group(unnamed, lambda c: (c.who.program, c.outcome.error, c.object)):
        if error is not None and not _is_normal(thing, error, cells, connected):
            yield _make_unnamed(capture, program, error, thing, cells)


def _find_unanswered(capture: Capture, told: set[Thing]) -> Iterator[Finding]:
    """Yield findings for connections that the host saw at both ends of CAPTURE without an answer, unless their peers are TOLD."""
    table = capture.manifest.get("descriptors") or {}
    ends = [
        {(entry["pid"], entry["target"]) for entry in table.get(when) or () if entry["target"].endswith(_UNANSWERED)}
        for when in ("first", "last")
    ]
    times = table.get("time_ns") or {}
    waited = (times.get("last") or 0) - (times.get("first") or 0)
    if waited < _SPAN_NS:
        return
    for pid, target in sorted(ends[0] & ends[1]):
        thing, process = describe_target(target), capture.processes.get(pid)
        if process is None or thing.kind != "peer" or thing in told:
            continue
        told.add(thing)
        yield Finding(
            rule="connections",
            template="{program} got no answer from {object} in the whole trace: it waits for {span} or longer to connect",
            severity=_SEVERITY,
            next=_choose_command(capture, thing),
            program=process.program,
            call="connect",
            object=thing,
            numbers={"span": Number(waited, unit="ns")},
            container_pids=() if process.container_pid is None else (process.container_pid,),
            where=(capture.place,),
            first=capture.format_time(capture.tables.start_ns) if capture.tables.end_ns else None,
            last=capture.format_time(capture.tables.end_ns) if capture.tables.end_ns else None,
            missing=capture.loss,
        )


class _Connected:
    """Addresses and ports that the programs of CAPTURE were connected to."""

    def __init__(self, capture: Capture) -> None:
        self._ports: dict[tuple[str, str], set[str]] = {}
        self.programs: set[str] = set()  # that were connected to any peer
        self._first: dict[tuple[str, Thing], int] = {}  # program and peer → when it was first connected
        for cell in capture.cells:
            is_used = cell.call == "connect" or cell.call in TRANSFERS
            if not is_used or cell.outcome.error or cell.outcome.unfinished or cell.object is None:
                continue
            match = _PEER.match(cell.object.text) if cell.object.kind == "peer" else None
            if match:
                self.programs.add(cell.who.program)
                key = (cell.who.program, cell.object)
                self._first[key] = min(cell.first_ns, self._first.get(key, cell.first_ns))
                self._ports.setdefault((cell.who.program, match["port"]), set()).add(match["address"])

    def is_connected(self, cell: Cell) -> bool:
        """Return True if the program of CELL was connected to the same peer at another time."""
        match = _PEER.match(cell.object.text) if cell.object else None
        return match is not None and match["address"] in self._ports.get((cell.who.program, match["port"]), ())

    def is_first_after(self, peer: Thing, cells: Sequence[Cell]) -> bool:
        """Return True if the programs of CELLS were connected to PEER, and for the first time after the last of CELLS."""
        last: dict[str, int] = {}
        for cell in cells:
            last[cell.who.program] = max(cell.last_ns, last.get(cell.who.program, cell.last_ns))
        return all(self._first.get((program, peer), NEVER) > last_ns for program, last_ns in last.items())

    def is_elsewhere(self, cell: Cell) -> bool:
        """Return True if CELL is one of several tries of which another one connected."""
        match = _PEER.match(cell.object.text) if cell.object else None
        if match is None:
            return False
        others = self._ports.get((cell.who.program, match["port"]), set()) - {match["address"]}
        if cell.outcome.not_connected:
            return bool(others)  # the slower one of two is closed
        if match["address"].startswith(_LOCAL):
            return any(other.startswith(_LOCAL) for other in others)
        is_wide = match["address"].startswith("[")
        return cell.outcome.error in _OF_NO_ROUTE and any(other.startswith("[") != is_wide for other in others)


def _is_spare(cells: Sequence[Cell], tries: int, connected: _Connected) -> bool:
    """Return True if CELLS are the few of all TRIES to reach a peer that its programs, which are connected to it, did not need."""
    count = sum(cell.count for cell in cells)
    return count < _MIN_SHARE * tries and all(connected.is_connected(cell) for cell in cells)


def _has_accepted(cell: Cell, thing: Thing, holdings: Holdings) -> bool:
    """Return True if CELL is about THING, a client whose connection was accepted before the trace: clients leave when they like."""
    return cell.call != "connect" and not cell.outcome.not_connected and holdings.is_client_of(thing.text) is False


def _make_finding(
    capture: Capture, error: str | None, thing: Thing, cells: Sequence[Cell], tries: int, *, is_over: bool
) -> Finding:
    """Return the finding about CELLS, of TRIES, for the peer THING; IS_OVER if all of them were before the first connection to it."""
    programs: Counter[str] = Counter()
    for cell in cells:
        programs[cell.who.program] += cell.count
    program = max(sorted(programs), key=lambda name: programs[name])
    count = sum(programs.values())
    span = max(cell.last_ns for cell in cells) - min(cell.first_ns for cell in cells)
    numbers = {"span": Number(span, unit="ns")} if span >= _SPAN_NS else {}
    text = _NOT_CONNECTED if error is None else _OUTCOMES.get(error, "{program} lost {peer} ({error})")
    is_begun = all(cell.call == "connect" or cell.outcome.not_connected for cell in cells)
    if len(programs) > 1:
        numbers["others"] = Number(len(programs) - 1)
        text = text.replace("{program}", "{program} and {others} more")
    ending = f"{' ({error})' if error else ''}, {{often}}{' within {span}' if 'span' in numbers else ''}"
    ending += ", and was connected after that" if is_over else ""
    severity = _SEVERITY_RESET if error in ("ECONNRESET", "ENETRESET") else _SEVERITY
    severity = _SEVERITY_OVER if is_over else severity
    return capture.make_finding(
        cells,
        rule="connections",
        template=text.replace("{peer}", "{object}").replace(" ({error})", "") + ending,
        severity=_SEVERITY_INFERRED if error is None else severity,
        program=program,
        call="connect" if is_begun else cells[0].call,
        error=error,
        object=thing,
        numbers=numbers,
        of=max(tries, count) if is_begun else None,
        confidence="inferred" if error is None else "certain",
        missing=capture.loss or ("how the attempt ended is not recorded" if error is None else None),
        next=_choose_command(capture, thing),
    )


def _make_unnamed(capture: Capture, program: str, error: str, thing: Thing | None, cells: Sequence[Cell]) -> Finding:
    text = _OUTCOMES.get(error, "{program} lost {peer}")
    kind = "a peer" if thing is None else "{object}"
    return capture.make_finding(
        cells,
        rule="connections",
        template=text.replace("{peer}", kind) + " ({error}), {often}",
        severity=_SEVERITY_UNNAMED,
        program=program,
        call=cells[0].call,
        error=error,
        object=thing,
        confidence="likely",
        missing=capture.loss or "the address of the peer is not recorded",
        next=trace_again(capture.place, paths="true"),
    )


def _is_normal(thing: Thing | None, error: str, cells: Sequence[Cell], connected: _Connected) -> bool:
    """Return True if the failures of CELLS, whose peer is not known, need not matter."""
    if error == "ENOENT":
        # A Unix socket that is not there. libc tries nscd's before it looks up a name, once or twice, and then not for a hundred names.
        tries = Counter(cell.who.pid for cell in cells for _one in range(min(cell.count, _MIN_UNIX)))
        return max(tries.values()) < _MIN_UNIX or (thing is not None and "nscd" in thing.text)
    if cells[0].call != "connect":
        # A client that leaves resets what a server has accepted.
        return error != "ECONNREFUSED" or sum(cell.count for cell in cells) < _MIN_UNNAMED
    if thing is not None and _UNIX.search(thing.text):
        return "nscd" in thing.text or error not in ("ECONNREFUSED", "EAGAIN", "EACCES", "EPERM")
    # libc connects datagram sockets to sort addresses (RFC 6724), and a host without IPv6 has no route to it.
    is_sorted = thing is not None and thing.text.startswith("UDP")
    return error in _OF_NO_ROUTE and (is_sorted or cells[0].who.program in connected.programs)


def _choose_command(capture: Capture, thing: Thing) -> str:
    match = _PEER.match(thing.text)
    if match is None:
        return run_in(capture.place, "ss", "-tanp")
    if match["address"].startswith(_LOCAL):
        return run_in(capture.place, "ss", "-tlnp", "sport", "=", match["port"])
    return run_in(
        capture.place, "socat", "-d", "/dev/null", f"TCP:{match['address']}:{match['port']},connect-timeout=3"
    )


RULE = Rule(name="connections", title="connections that did not come about, or broke", find=find)
