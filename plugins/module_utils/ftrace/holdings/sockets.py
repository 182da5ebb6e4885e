# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell what sockets are: parse /proc/PID/net/tcp, tcp6, udp, udp6 and unix. Sources: proc(5), net/ipv4/tcp_ipv4.c, net/unix/af_unix.c."""

from __future__ import annotations

import ipaddress
import os
import struct
from typing import AbstractSet, Callable, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import Until, decode
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_MAX_LINES = 65536  # of one namespace
_PART = 1 << 16
_LISTEN = "LISTEN"
_STATES = (
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", _LISTEN, "CLOSING", "NEW_SYN_RECV"),
)


def parse_address(text: str) -> str:
    """Return address and port of TEXT, such as 0100007F:1F90, in the form 127.0.0.1:8080; IPv6 has brackets.

    The kernel prints the words of an address as numbers of the machine's byte order. An IPv4 address within IPv6 is given as IPv4.
    Raises ValueError for another form.
    """
    digits, _colon, port = text.partition(":")
    words = [int(digits[place : place + 8], 16) for place in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    if len(packed) == 4:
        return f"{ipaddress.IPv4Address(packed)}:{int(port, 16)}"
    address = ipaddress.IPv6Address(packed)
    if address.ipv4_mapped is not None:
        return f"{address.ipv4_mapped}:{int(port, 16)}"
    return f"[{address}]:{int(port, 16)}"


def parse_inet(protocol: str, line: bytes) -> tuple[int, str]:
    """Return inode and description of a socket by LINE of /proc/net/tcp or its kin; PROTOCOL is tcp or udp.

    Raises ValueError and IndexError for a line of another form, such as the headline.
    """
    words = line.decode("ascii").split()
    local, remote = parse_address(words[1]), parse_address(words[2])
    peer = "" if remote.endswith(":0") else f"->{remote}"
    state = f" {_STATES[int(words[3], 16)]}" if protocol == "tcp" else ""
    return int(words[9]), f"{protocol} {local}{peer}{state}"


def parse_unix(line: bytes) -> tuple[int, str]:
    """Return inode and description of a socket by LINE of /proc/net/unix; an abstract name begins with @.

    Raises ValueError and IndexError for a line of another form.
    """
    words = line.split(None, 7)
    if not words[0].endswith(b":"):
        raise ValueError("no line of a socket")
    inode = int(words[6])
    return inode, f"unix {decode(words[7])}" if len(words) > 7 else f"unix:[{inode}]"


_FILES: Mapping[str, Callable[[bytes], tuple[int, str]]] = {
    "tcp": lambda line: parse_inet("tcp", line),
    "tcp6": lambda line: parse_inet("tcp", line),
    "udp": lambda line: parse_inet("udp", line),
    "udp6": lambda line: parse_inet("udp", line),
    "unix": parse_unix,
}


def describe_sockets(process: Process, inodes: AbstractSet[int], until: Until) -> dict[int, str]:
    """Return inode → description for those of INODES that are sockets of the network namespace of PROCESS, as far as UNTIL permits.

    Raises ProcessGone.
    """
    left = _MAX_LINES
    found: dict[int, str] = {}
    forged = set()
    for name, parse in _FILES.items():
        for line in _gen_lines(process, f"net/{name}"):
            left -= 1
            # A name of a UNIX socket can hold line breaks, and so pretend to be a line of another socket: all of these lines are looked at.
            if left < 0 or until.is_over() or (name != "unix" and len(found) == len(inodes)):
                break
            try:
                inode, text = parse(line)
            except (ValueError, IndexError):
                continue
            if inode in inodes and found.setdefault(inode, text) != text:
                forged.add(inode)
    return {inode: text for inode, text in found.items() if inode not in forged}


def _gen_lines(process: Process, name: str) -> Iterator[bytes]:
    """Yield the lines of /proc/PID/NAME of PROCESS; none where the kernel lacks the file. Raises ProcessGone."""
    try:
        fd = process.open(name)
    except ProcessGone:
        process.read("stat")  # raises if the process has ended, and not the file is missing
        return
    rest = b""
    try:
        while True:
            part = os.read(fd, _PART)
            if not part:
                return
            *lines, rest = (rest + part).split(b"\n")
            yield from lines
    finally:
        os.close(fd)
