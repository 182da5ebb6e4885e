# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that do not resolve, because the name server does not answer, refuses, or cannot be reached.

A trace does not have the content of packets, so a resolver is known by its pattern: it reads /etc/resolv.conf, makes a UDP socket, sends, and
waits a second or more in vain. How that looks depends on the C library:

- glibc connects the socket, sends by sendto or sendmmsg, and waits by poll for 5 s (`options timeout:` in /etc/resolv.conf). If the server
  refuses, poll returns at once, and glibc closes the socket without reading. Before all that it asks for nscd at a UNIX socket, in vain.
- musl opens /etc/hosts and /etc/resolv.conf, binds the socket, sends by sendto, and waits by poll for 2.5 s at a time (`options timeout:` and
  `attempts:`). It does not hear of a refusal.
- A static Go program connects, writes, reads EAGAIN, and waits for 5 s by its own timers; it closes the socket without an answer, or reads
  ECONNREFUSED. No call of it times out. So silence counts if it made a socket for each question, and nothing came over any.

A lookup that is answered gives no finding, unless an answer came only after a wait that timed out. Names in /etc/hosts need no server. Where
paths are recorded and the process did not look at /etc/resolv.conf, it is no resolver. Where none are, the pattern has to be that of glibc or
musl exactly, since other protocols over UDP wait, too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Collection, Iterator, NamedTuple, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import (
    Capture,
    Cell,
    LongCall,
    Row,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import (
    Holdings,
    read_connection,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import OPENS, RECEIVES, SENDS

_CONFIG = "/etc/resolv.conf"
_UDP = "UDP socket"
_MIN_WAIT_NS, _MAX_WAIT_NS = 900_000_000, 30_000_000_000
_TIMEOUTS_MS = ((4980, 5000), (2480, 2500))  # of glibc and musl; a wait that goes on after a signal is a bit shorter
_MAX_POLLED = 4  # descriptors; musl also waits for the sockets of its requests by TCP
_DNS, _DNS_PEER = 53, ":53 (udp)"
_UNREACHABLE = ("ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM")
_SEVERITY = 82


class _Fault(NamedTuple):
    """Words that lookups of one finding share."""

    program: str
    kind: str  # silent, refused, or the name of an error
    server: str


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program whose lookups of names fail for want of an answer."""
    cells: dict[int, list[Cell]] = defaultdict(list)
    for cell in capture.cells:
        cells[cell.who.pid].append(cell)
    waits: dict[int, list[LongCall]] = defaultdict(list)
    for call in capture.long_calls:
        if _is_vain_wait(call):
            waits[call.who.pid].append(call)
    # The paths of some descriptors are known without those of calls.
    has_paths = any(
        cell.object is not None and cell.object.kind == "path" for cell in capture.cells if cell.call in OPENS
    )
    holdings = Holdings(capture.manifest)
    found: dict[_Fault, list[Row]] = defaultdict(list)
    certain: set[_Fault] = set()
    for pid, own in cells.items():
        reads_config = any(cell.object is not None and cell.object.text == _CONFIG for cell in own)
        servers = _list_servers(holdings, pid)
        if has_paths and not reads_config and not servers:
            continue
        kind, rows = _judge(own, waits[pid], reads_config=reads_config, has_server=bool(servers))
        if kind:
            server = f"the name server {servers[0]}" if servers else f"the name server in {_CONFIG}"
            fault = _Fault(rows[0].who.program, kind, server)
            found[fault] += rows
            if reads_config:
                certain.add(fault)
    for fault, rows in found.items():
        yield _make_finding(capture, fault, rows, is_likely=fault in certain)


def _is_vain_wait(call: LongCall) -> bool:
    """Return True if CALL waited in vain for as long as a resolver does, for as few descriptors.

    A wait that began before the trace does not count, for what it waited for was sent before the trace, too.
    """
    return (
        call.call in ("poll", "ppoll")
        and call.outcome.timed_out
        and not call.outcome.continued
        and _MIN_WAIT_NS <= call.duration_ns <= _MAX_WAIT_NS
        and (not call.args or 0 < call.args[1] <= _MAX_POLLED)
    )


def _is_typical(call: LongCall) -> bool:
    """Return True if CALL has the timeout of a C library's resolver."""
    return call.call == "poll" and bool(call.args) and any(low <= call.args[2] <= high for low, high in _TIMEOUTS_MS)


def _judge(
    cells: Sequence[Cell], waits: Sequence[LongCall], *, reads_config: bool, has_server: bool
) -> tuple[str, list[Row]]:
    """Return what the lookups in CELLS, of one process, suffer from, and the calls that show it; "" where they do not suffer.

    WAITS are those of the process that were in vain. HAS_SERVER is True if it is connected to a name server.
    """
    on_udp = [cell for cell in cells if cell.object is not None and _is_udp(cell.object)]
    # A sender that wants no answer, as those of metrics and logs, hears of a refusal only when it sends again.
    refused = [cell for cell in on_udp if cell.outcome.error == "ECONNREFUSED" and cell.call in RECEIVES]
    sent = [cell for cell in on_udp if cell.call in SENDS and not cell.outcome.error]
    received = [
        cell for cell in on_udp if cell.call in RECEIVES and not cell.outcome.error and not cell.outcome.unfinished
    ]
    if refused and not received:
        return "refused", [*refused]
    threads = {cell.who.tid for cell in sent}
    # A resolver may have other timeouts by resolv.conf.
    is_like_libc = _is_like_glibc(cells, threads) or _is_like_musl(cells, threads)
    is_resolver = reads_config or (not received and (has_server or is_like_libc))
    # After an answer, a thread that also speaks TCP waits for that with timeouts of its own.
    has_others = bool(received) and any(cell.who.tid in threads and _is_tcp(cell.object) for cell in cells)
    vain: list[Row] = [
        wait for wait in waits if wait.who.tid in threads and (_is_typical(wait) or (is_resolver and not has_others))
    ]
    asked = [cell for cell in cells if cell.who.tid in threads and cell.call in SENDS and not cell.outcome.error]
    if vain and len(vain) <= sum(cell.count for cell in asked if _may_be_udp(cell.object)):
        return "silent", vain
    barred = [cell for cell in on_udp if cell.outcome.error in _UNREACHABLE and cell.call in ("connect", *SENDS)]
    # A connect over IPv6 that fails is how getaddrinfo sorts the addresses that it has found.
    barred = [
        cell for cell in barred if cell.call != "connect" or "IPv6" not in (cell.object.text if cell.object else "")
    ]
    if barred and not received and not sent and (reads_config or any(map(_is_typical, waits))):
        return barred[0].outcome.error or "", [*barred]
    if not received and sent and (_is_like_go(on_udp) or _is_like_glibc(cells, threads)):
        return "unanswered", [*sent]
    return "", []


def _is_udp(thing: Thing) -> bool:
    """Return True if THING is a UDP socket that was made in the trace, or one from before it that is connected to a name server."""
    return thing.text.startswith(_UDP) or thing.text.endswith(_DNS_PEER)


def _is_tcp(thing: Thing | None) -> bool:
    return thing is not None and thing.kind == "peer" and thing.text.endswith("(tcp)")


def _may_be_udp(thing: Thing | None) -> bool:
    """Return True if THING is a UDP socket, or may be one: musl's sockets have no peer, so one from before the trace is not known better."""
    return thing is None or _is_udp(thing) or thing.text.startswith("udp ")


def _is_like_go(on_udp: Sequence[Cell]) -> bool:
    """Return True if ON_UDP, calls on UDP sockets, are those of Go's resolver: a connection for each question, and a look for the answer."""
    counts: Counter[str] = Counter()
    for cell in on_udp:
        if cell.call in ("connect", "write") and not cell.outcome.error:
            counts[cell.call] += cell.count
        elif cell.call == "read" and cell.outcome.error == "EAGAIN":
            counts["look"] += cell.count
    return counts["write"] > 1 and counts["write"] <= counts["connect"] and counts["write"] <= counts["look"]


def _is_like_glibc(cells: Sequence[Cell], threads: Collection[int]) -> bool:
    """Return True if CELLS of THREADS, which sent, are those of glibc's resolver: in vain at nscd, and a poll for each question."""
    counts: Counter[str] = Counter()
    for cell in cells:
        if cell.who.tid not in threads or cell.object is None:
            counts["poll"] += cell.count if cell.call == "poll" and cell.who.tid in threads else 0
        elif cell.object.text.startswith("unix") and cell.call == "connect" and cell.outcome.error == "ENOENT":
            counts["nscd"] += cell.count
        elif cell.object.text.startswith(_UDP) and cell.call in ("sendto", "sendmmsg") and not cell.outcome.error:
            counts["sent"] += cell.count
    return counts["nscd"] > 1 and 0 < counts["sent"] <= counts["poll"]


def _is_like_musl(cells: Sequence[Cell], threads: Collection[int]) -> bool:
    """Return True if CELLS of THREADS, which sent, are those of musl's resolver: two files, and a socket that is bound, for each question."""
    counts: Counter[str] = Counter()
    for cell in cells:
        if cell.who.tid in threads and not cell.outcome.error:
            on_udp = cell.object is not None and cell.object.text.startswith(_UDP)
            counts["open" if cell.call in OPENS else cell.call if on_udp else ""] += cell.count
    return 1 < counts["bind"] <= counts["sendto"] and 2 * counts["bind"] <= counts["open"]


def _list_servers(holdings: Holdings, pid: int) -> list[str]:
    """Return the addresses of the name servers that process PID is connected to at the trace's beginning or end."""
    connections = filter(None, map(read_connection, holdings.list_targets(pid)))
    return sorted({one.peer for one in connections if one.protocol == "udp" and one.peer_port == _DNS})


def _make_finding(capture: Capture, fault: _Fault, rows: Sequence[Row], *, is_likely: bool) -> Finding:
    numbers: dict[str, Number] = {}
    if fault.kind == "silent":
        template = "{program} could not resolve names: {server} did not answer within {wait}, {often}"
        longest = max(row.duration_ns for row in rows if isinstance(row, LongCall))
        numbers["wait"] = Number(longest, "max", "ns")
    elif fault.kind == "refused":
        template = (
            "{program} could not resolve names: {server} refuses, so nothing listens there (ECONNREFUSED, {often})"
        )
    elif fault.kind == "unanswered":
        template = "{program} could not resolve names: nothing came from {server}, asked {often}"
    else:
        template = "{program} could not resolve names: no way leads to {server} ({error}, {often})"
    return capture.make_finding(
        rows,
        rule="names",
        template=template,
        severity=_SEVERITY,
        program=fault.program,
        call=None,
        error=fault.kind if fault.kind.startswith("E") else None,
        object=Thing("peer", fault.server),
        words={"server": fault.server},
        numbers=numbers,
        confidence="likely" if is_likely else "inferred",
        next=run_in(capture.place, "cat", _CONFIG),
    )


RULE = Rule(name="names", title="names that do not resolve", find=find)
