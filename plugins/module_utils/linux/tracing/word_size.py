# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a process runs a program of the machine's 32-bit architecture, whose system calls have other numbers.

Source: proc_pid_auxv(5), getauxval(3). The kernel keeps the auxiliary vector itself: nothing of the program is read.
"""

from __future__ import annotations

import os
import struct
import sys

_AT_PAGESZ = 6
_MAX_BYTES = 4096


def is_compat_auxv(auxv: bytes) -> bool:
    """Whether AUXV is made of 32-bit words. Every program has a page size there, which is not 0."""
    words = struct.unpack(f"={len(auxv) // 4}I", auxv[: len(auxv) // 4 * 4])
    # Of 64-bit words a type's neighbour is its own other half, which is 0.
    return any(kind == _AT_PAGESZ and 512 <= value < 1 << 24 for kind, value in zip(words[::2], words[1::2]))


def is_compat(tid: int) -> bool:
    """Whether thread TID runs a 32-bit program on a 64-bit machine; False for one that is gone or has no program."""
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
