# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what descriptors of a container's processes referred to at the beginning and at the end of a capture, by its manifest."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import AbstractSet, Any, Mapping, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Thing

_CONNECTION = re.compile(r"(tcp|udp) (\S+):([0-9]{1,5})->(\S+:([0-9]{1,5}))(?: |\Z)")
_LISTENER = re.compile(r"tcp \S+:([0-9]{1,5}) LISTEN\Z")
_MAX_SHARERS = 2  # programs that have a file open; more of them say nothing
_FIRST_PASSING_PORT = 32768  # ports from here on are those that the kernel gives to clients


class Connection(NamedTuple):
    """A socket with a peer."""

    protocol: str
    local_port: int
    peer: str  # address and port
    peer_port: int


class Holdings:
    """The descriptors that MANIFEST lists, by process (its number on the host) and descriptor."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        table = manifest.get("descriptors") or {}
        self._targets: dict[str, dict[tuple[int, int], str]] = {"first": {}, "last": {}}
        self._holders: dict[str, set[int]] = defaultdict(set)  # at the end
        self._ports: set[int] = set()
        self._peers: dict[str, list[Connection]] = defaultdict(list)
        for when, targets in self._targets.items():
            for entry in table.get(when) or []:
                self._add(when, targets, entry["pid"], entry["fd"], entry["target"])
        left_out = (table.get("left_out") or {}).get("last")
        self.is_whole = table.get("last") is not None and not left_out

    def _add(self, when: str, targets: dict[tuple[int, int], str], pid: int, fd: int, target: str) -> None:
        targets[pid, fd] = target
        if when == "last":
            self._holders[target].add(pid)
        listener = _LISTENER.match(target)
        if listener:
            self._ports.add(int(listener[1]))
        connection = read_connection(target)
        if connection:
            self._peers[f"{connection.peer} ({connection.protocol})"].append(connection)

    def find_target(self, pid: int, fd: int, *, at_end: bool) -> str | None:
        """Return what descriptor FD of process PID referred to at the end, or else at the beginning; None where that is not known."""
        return self._targets["last" if at_end else "first"].get((pid, fd))

    def list_targets(self, pid: int) -> list[str]:
        """Return what descriptors of process PID referred to at the end and at the beginning."""
        return [
            target for targets in self._targets.values() for (owner, _fd), target in targets.items() if owner == pid
        ]

    def list_holders(self, target: str) -> set[int]:
        """Return the processes that hold TARGET at the end."""
        return self._holders.get(target, set())

    def is_client_of(self, peer: str) -> bool | None:
        """Return True if the containers's side began the connections to PEER, such as "10.0.0.7:5432 (tcp)"; None where nobody knows.

        A side whose port is listened on, or whose port is low and its peer's high, has accepted the connection.
        """
        connections = self._peers.get(peer)
        if not connections:
            return None
        return not any(
            one.local_port in self._ports or (one.local_port < _FIRST_PASSING_PORT <= one.peer_port)
            for one in connections
        )


def read_connection(target: str) -> Connection | None:
    """Return the Connection that TARGET, the text of a socket in a manifest, describes; None for other texts."""
    found = _CONNECTION.match(target)
    return Connection(found[1], int(found[3]), found[4], int(found[5])) if found else None


def describe_target(target: str) -> Thing:
    """Return TARGET, the text of a descriptor in a manifest, as the object of a finding."""
    connection = read_connection(target)
    if connection:
        return Thing("peer", f"{connection.peer} ({connection.protocol})")
    if target.startswith("/"):
        return Thing("path", target)
    for kind in ("pipe", "anon_inode"):
        if target.startswith(f"{kind}:"):
            return Thing("pipe" if kind == "pipe" else "anon", target)
    return Thing("socket", target)


def find_sharers(capture: Capture, holdings: Holdings, thing: Thing | None, waiters: AbstractSet[int]) -> str:
    """Return the programs of CAPTURE that have the file THING open at its end, by HOLDINGS, without the processes WAITERS.

    "" is for none, for more than two, and where nobody knows. No event of the kernel tells which one has a lock of that file.
    """
    pids = holdings.list_holders(thing.text) if thing is not None and holdings.is_whole else set()
    programs = {who.program for who in capture.threads if who.pid in pids - waiters}
    return " and ".join(sorted(programs)) if len(programs) <= _MAX_SHARERS else ""


def say_sharers(sharers: str) -> str:
    """Return what a template says of SHARERS, which is also one of its words; nothing for ""."""
    if not sharers:
        return ""
    return "; {sharers} have it open, too" if " and " in sharers else "; {sharers} has it open, too"
