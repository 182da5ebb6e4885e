# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Translate between names and numbers of system calls by libseccomp, which every host with runc has.

A machine may also run programs of a second, 32-bit architecture ("compat"), whose system calls have other numbers.
Source: seccomp_syscall_resolve_name(3).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import difflib
import fnmatch
from dataclasses import dataclass
from typing import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_classes import CLASSES, find_class

_LIBRARY = "libseccomp.so.2"
# The highest number in use is below 500; the rest of the range is for kernels to come.
_MAX_NUMBER = 1024
# SCMP_ARCH_* of seccomp.h: x86_64 → x86, aarch64 → arm, s390x → s390. Other 64-bit kernels run no 32-bit programs.
_COMPAT = {0xC000003E: 0x40000003, 0xC00000B7: 0x40000028, 0x80000016: 0x16}
_RETURNS = frozenset({"rt_sigreturn", "sigreturn"})
# Calls through which a 32-bit program may make others, chosen by an argument; the library numbers the others -101… and -201….
_MULTIPLEXERS = {1: "socketcall", 2: "ipc"}


@dataclass(frozen=True)
class SyscallNumbers:
    """A set of system calls by their numbers; both tuples empty means every call."""

    native: tuple[int, ...] = ()  # numbers on this machine's own architecture
    compat: tuple[int, ...] = ()  # numbers on its 32-bit architecture
    has_returns: bool = False  # (rt_)sigreturn is among them: the kernel reports its end under another number


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise FleetError(
            f"{_LIBRARY} is missing on the host: install the package libseccomp2 (or libseccomp)"
        ) from error
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    library.seccomp_arch_native.restype = ctypes.c_uint32
    return library


def find_number(name: str) -> int:
    """Return the number of the system call NAME on this machine; raises FleetError when the machine does not have the call."""
    number = int(_load().seccomp_syscall_resolve_name(name.encode("ascii", "replace")))
    if number < 0:  # -1 for no such name, other negative numbers for names of other architectures
        raise FleetError(f"this machine has no system call {name!r}")
    return number


def list_names() -> dict[int, str]:
    """Return the names of all system calls of this machine by their numbers."""
    library = _load()
    return _list_names(library, library.seccomp_arch_native())


def list_compat_names() -> dict[int, str]:
    """Return the names of all system calls of this machine's 32-bit architecture by their numbers; {} when it has none."""
    library = _load()
    compat = _COMPAT.get(library.seccomp_arch_native())
    return _list_names(library, compat) if compat is not None else {}


def _list_names(library: ctypes.CDLL, architecture: int) -> dict[int, str]:
    libc = ctypes.CDLL(None)
    names = {}
    for number in range(_MAX_NUMBER):
        address = library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(architecture), number)
        if address:
            names[number] = ctypes.string_at(address).decode("ascii")
            libc.free(ctypes.c_void_p(address))
    return names


def find_numbers(patterns: Sequence[str], *, compat: bool, missing_ok: bool = False) -> SyscallNumbers:
    """Return the numbers of the system calls that PATTERNS select; a pattern is a name, a shell glob, or a class of strace (%file).

    The pattern '*' selects every call, which gives empty tuples. Without COMPAT, only calls of this machine's own architecture count.
    Raises FleetError for an unknown class; for a name or glob that selects no call, unless MISSING_OK; and when nothing is selected.
    """
    if "*" in patterns:
        return SyscallNumbers()
    native = list_names()
    second = list_compat_names()
    known = sorted({*native.values(), *second.values()})
    wanted: set[str] = set()
    for pattern in patterns:
        members = find_class(pattern)
        if members is not None:
            wanted.update(members & set(known))  # this machine may lack some members of a class
            continue
        if pattern.startswith("%"):
            raise FleetError(f"there is no class {pattern!r} of system calls: write one of %{', %'.join(CLASSES)}")
        found = fnmatch.filter(known, pattern) if any(c in pattern for c in "*?[") else {pattern} & set(known)
        if not found and not missing_ok:
            near = ", ".join(difflib.get_close_matches(pattern, known)) or "none like it"
            raise FleetError(f"this machine has no system call {pattern!r}; near ones: {near}")
        wanted.update(found)
    multiplexers = _find_multiplexers(wanted) if compat and second else set()
    numbers = SyscallNumbers(
        tuple(sorted(number for number, name in native.items() if name in wanted)),
        tuple(sorted(number for number, name in second.items() if name in wanted | multiplexers)) if compat else (),
        bool(wanted & _RETURNS),
    )
    if not numbers.native and not numbers.compat:
        if wanted & set(second.values()) and not compat:
            raise FleetError(f"only 32-bit programs have {', '.join(sorted(wanted))}: use compat=true")
        raise FleetError(f"this machine has no system call of {', '.join(patterns)}: ask for others")
    return numbers


def join_numbers(parts: Sequence[SyscallNumbers]) -> SyscallNumbers:
    """Return the union of PARTS, the system calls that any of them holds."""
    if any(part == SyscallNumbers() for part in parts):
        return SyscallNumbers()
    return SyscallNumbers(
        tuple(sorted({number for part in parts for number in part.native})),
        tuple(sorted({number for part in parts for number in part.compat})),
        any(part.has_returns for part in parts),
    )


def _find_multiplexers(names: set[str]) -> set[str]:
    library = _load()
    compat = ctypes.c_uint32(_COMPAT[library.seccomp_arch_native()])
    numbers = (int(library.seccomp_syscall_resolve_name_arch(compat, name.encode("ascii"))) for name in names)
    return {_MULTIPLEXERS[-number // 100] for number in numbers if -300 < number < -100 and -number // 100 in (1, 2)}
