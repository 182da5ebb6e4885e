# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Name the system calls and the errors of a capture, by the numbers of the machine that recorded it."""

from __future__ import annotations

import errno
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.codes import COMPAT, OTHER_CALLS

RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
"""Errors inside the kernel: a signal came, and the kernel makes the call again or turns the error into EINTR (include/linux/errno.h)."""
OTHER_CALLS_NAME = "(other calls)"
_X32 = 1 << 30


def read_names(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of system calls in MANIFEST by number; COMPAT is added to the numbers of 32-bit programs."""
    names = {int(number): name for number, name in (manifest.get("syscalls") or {}).items()}
    names.update({int(number) + COMPAT: name for number, name in (manifest.get("compat_syscalls") or {}).items()})
    if manifest.get("arch") == "x86_64":
        # x32, a third kind of programs that few kernels run: below 512, its numbers are the usual ones with one more bit.
        names.update({number + _X32: f"{name} (x32)" for number, name in names.items() if number < 512})
    return names


def name_call(number: int, names: Mapping[int, str]) -> str:
    """Return the name of call NUMBER from NAMES; for a number without a name, which programs may call, the text that strace writes."""
    if number == OTHER_CALLS:
        return OTHER_CALLS_NAME
    return names.get(number) or f"syscall_{(number % COMPAT if number >= COMPAT else number) & (1 << 64) - 1:#x}"


def name_errno(number: int) -> str:
    """Return the name of error NUMBER, such as ENOENT, or of one of RESTARTS; 'errno N' when it has none."""
    return errno.errorcode.get(number) or RESTARTS.get(number) or f"errno {number}"
