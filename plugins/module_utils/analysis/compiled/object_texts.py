# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe the objects of a pass in words: a kind and a text for each."""

from __future__ import annotations

import ipaddress
import re
from typing import Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import State

_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 262: "mptcp"}
_FAMILIES = {1: "unix", 2: "IPv4", 10: "IPv6", 16: "netlink", 17: "packet", 40: "vsock"}
_TYPES = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket"}
_INTERNET = (2, 10)
_CONNECTION = re.compile(r"(tcp|udp)6? \S+->(\S+)")


class ObjectTexts:
    """The objects of STATE, a pass that may go on, as kind and text. NAMES has the names of system calls by number."""

    def __init__(self, state: State, names: Mapping[int, str]) -> None:
        self._state, self._names = state, names
        self._known: list[tuple[str, str]] = []
        self._used = 0  # bytes of the texts that are known

    def list_all(self) -> list[tuple[str, str]]:
        """Return all objects so far, by number."""
        first, scalars = len(self._known), self._state.scalars
        base, self._used = self._used, int(scalars[codes.ARENA])
        arena = self._state.arena[base : self._used].tobytes()
        for kind, start, size in self._state.objects[first : scalars[codes.OBJECTS]].tolist():
            self._known.append(self._describe(kind, arena[start - base : start - base + size] if size else b""))
        return self._known

    def _describe(self, kind: int, raw: bytes) -> tuple[str, str]:
        if kind in (codes.NOTHING, codes.OTHERS):
            return "", ""
        if kind == codes.PATH_TEXT:
            return "path", raw.decode("utf-8", "replace")
        if kind == codes.PEER:
            return "peer", _describe_peer(raw)
        if kind == codes.SOCKET_KIND:
            return "socket", _describe_socket(raw)
        if kind == codes.MADE:
            return _describe_made(raw, self._names, self._known)
        return _describe_target(raw.decode("utf-8", "replace"))


def _describe_peer(raw: bytes) -> str:
    protocol, port = (int.from_bytes(raw[at : at + 2], "little") for at in (2, 4))
    address = ipaddress.ip_address(raw[6:])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    shown = mapped or address
    where = f"[{shown}]" if isinstance(shown, ipaddress.IPv6Address) else str(shown)
    return f"{where}:{port} ({_PROTOCOLS.get(protocol, f'protocol {protocol}')})"


def _describe_socket(raw: bytes) -> str:
    family, kind = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:4], "little")
    name = _FAMILIES.get(family, f"family {family}")
    if family in _INTERNET and kind in (1, 2):
        return f"{'TCP' if kind == 1 else 'UDP'} socket ({name})"
    return f"{name} {_TYPES.get(kind, f'type {kind}')} socket"


def _describe_made(raw: bytes, names: Mapping[int, str], earlier: list[tuple[str, str]]) -> tuple[str, str]:
    """Return what a call has made of nothing, or of an earlier object, whose number is in RAW, too."""
    number, source = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")
    number = (number & 0x7FFFFFFF) + (codes.COMPAT if number >> 31 else 0)
    name = names.get(number) or f"call {number % codes.COMPAT}"
    if name.startswith("accept"):
        listener = earlier[source][1] if 0 < source < len(earlier) else ""
        return "socket", f"connection accepted at {listener}" if listener else "accepted connection"
    if name.startswith(("open", "creat")):
        return "file", "a file whose path is not recorded"
    return "anon", f"descriptor of {name}"


def _describe_target(text: str) -> tuple[str, str]:
    """Return kind and text of what a descriptor referred to when the trace began, which TEXT describes."""
    connection = _CONNECTION.match(text)
    if connection:
        return "peer", f"{connection[2]} ({connection[1]})"
    if text.startswith("/"):
        return "path", text
    if text.startswith("pipe:"):
        return "pipe", text
    if text.startswith("anon_inode:"):
        return "anon", text
    return "socket", text
