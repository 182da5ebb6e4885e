# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the capability sets of a process from /proc, and give the calling process such sets.

A set is a number whose bit N stands for capability N. Source: capabilities(7).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Container, Iterable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

# fmt: off
# In the order of their numbers in the kernel's header (linux/capability.h).
NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)
# fmt: on
ALL = (1 << 64) - 1
_OF_NAMESPACES = {"SYS_PTRACE": "pid", "KILL": "pid", "IPC_OWNER": "ipc"}

_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECBIT_NO_SETUID_FIXUP = 4
_BITS = 64


@dataclass(frozen=True)
class CapabilitySets:
    """The five capability sets of a process."""

    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int


NONE = CapabilitySets(0, 0, 0, 0, 0)


def parse_names(names: Iterable[str]) -> int:
    """Return the set of the capabilities NAMES, given with or without CAP_ and in any case.

    Raises ValueError, with the name, for a capability that Linux does not have.
    """
    found = 0
    for name in names:
        plain = name.strip().upper()
        plain = plain[4:] if plain.startswith("CAP_") else plain
        if plain not in NAMES:
            raise ValueError(name)
        found |= 1 << NAMES.index(plain)
    return found


def find_namespace(name: str) -> str:
    """Return the kind of namespace, as named in /proc/PID/ns, that the capability NAME (without CAP_) acts on; `user` by default."""
    return "net" if name.startswith("NET_") else _OF_NAMESPACES.get(name, "user")


def select(kinds: Container[str]) -> int:
    """Return the set of the capabilities that act on namespaces of KINDS, as named in /proc/PID/ns."""
    return sum(1 << number for number, name in enumerate(NAMES) if find_namespace(name) in kinds)


def list_names(capabilities: int) -> list[str]:
    """Return the names, with CAP_, of the capabilities in the set CAPABILITIES."""
    return [f"CAP_{name}" for number, name in enumerate(NAMES) if capabilities >> number & 1]


def parse_sets(status: Mapping[str, str]) -> CapabilitySets:
    """Return the capability sets in STATUS, the fields of /proc/PID/status."""
    return CapabilitySets(*(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")))


def drop_bounding(keep: int) -> None:
    """Remove all capabilities but KEEP from the calling thread's bounding set; needs CAP_SETPCAP."""
    for number in range(_BITS):
        if not keep >> number & 1:
            try:
                syscalls.prctl(_PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:  # the kernel has no capability of this number or above
                    return
                raise


def keep_over_setuid(keep: bool) -> None:
    """Set whether a change of user leaves the calling thread's capabilities unchanged (KEEP); needs CAP_SETPCAP."""
    syscalls.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP if keep else 0)


def take(sets: CapabilitySets) -> None:
    """Give the calling thread the capabilities SETS, except the bounding set."""
    syscalls.capset(sets.effective, sets.permitted, sets.inheritable)
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(_BITS):
        if sets.ambient >> number & 1:
            syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)
