# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell processes that run a program of the machine's 32-bit architecture, whose system calls have other numbers.

The kernel keeps the auxiliary vector that is read here, so no memory of the program is read. Source: proc_pid_auxv(5), getauxval(3).
"""

from __future__ import annotations

import os
import struct
import sys

_AT_PAGESZ = 6
_MAX_BYTES = 4096


def is_compat_auxv(auxv: bytes) -> bool:
    """Return True if AUXV, an auxiliary vector, is made of 32-bit words: the page size that each vector holds shows it."""
    words = struct.unpack(f"={len(auxv) // 4}I", auxv[: len(auxv) // 4 * 4])
    # In a vector of 64-bit words, the word beside a type is the type's other half, which is 0 and so no page size.
    return any(kind == _AT_PAGESZ and 512 <= value < 1 << 24 for kind, value in zip(words[::2], words[1::2]))


def is_compat(tid: int) -> bool:
    """Return True if thread TID runs a 32-bit program on a 64-bit machine; False for a thread that has ended or has no program."""
    if sys.maxsize < 1 << 32:
        return False
    try:
        fd = os.open(f"/proc/{tid}/auxv", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_compat_auxv(os.read(fd, _MAX_BYTES))
    except OSError:
        return False
    finally:
        os.close(fd)
