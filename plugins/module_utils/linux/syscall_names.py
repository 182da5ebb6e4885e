# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and numbers of system calls, from libseccomp, which every host of runc has.

Source: seccomp_syscall_resolve_name(3).
"""

from __future__ import annotations

import ctypes
import ctypes.util

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

_LIBRARY = "libseccomp.so.2"
# The highest number in use is below 500; the rest of the range is for kernels to come.
_MAX_NUMBER = 1024


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
    """The number of system call NAME on this machine; raises FleetError for a name it does not have."""
    number = int(_load().seccomp_syscall_resolve_name(name.encode("ascii", "replace")))
    if number < 0:  # -1 for no such name, other negative numbers for names of other architectures
        raise FleetError(f"this machine has no system call {name!r}")
    return number


def list_names() -> dict[int, str]:
    """All system calls of this machine, number → name."""
    library = _load()
    libc = ctypes.CDLL(None)
    native = ctypes.c_uint32(library.seccomp_arch_native())
    names = {}
    for number in range(_MAX_NUMBER):
        address = library.seccomp_syscall_resolve_num_arch(native, number)
        if address:
            names[number] = ctypes.string_at(address).decode("ascii")
            libc.free(ctypes.c_void_p(address))
    return names
