# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read mount tables (/proc/PID/mountinfo) within a limited time: a container can make its table take minutes to read.

To show a mount, the kernel climbs through all mounts that are stacked below it: thirty thousand mounts on one folder take half a
minute. Each read(2) returns some KiB, so a reader can give up between two reads.
"""

from __future__ import annotations

import errno
import os
import time

PROMPT_S = 0.1  # every table may take so long; a hundred mounts take a thousandth of it
EACH_S = 2.0  # the most that one table may take
TOTAL_S = 5.0  # the most that all tables together may take beyond PROMPT_S each
_RENEWED_S = 60.0  # TOTAL_S is fully available again after so long, for some of our processes run for days
_PART = 1 << 16


class TableTooLong(OSError):
    """Reading a mount table has taken too long."""

    def __init__(self, count: int) -> None:
        reason = f"its table of mounts is too long to be read (over {count} mounts): unmount what is stacked there, or stop it"
        super().__init__(errno.E2BIG, reason)


class Patience:
    """The part of TOTAL_S that is left for tables that take longer than PROMPT_S."""

    def __init__(self) -> None:
        self._left_s = TOTAL_S
        self._seen = time.monotonic()

    def read(self, fd: int) -> bytes:
        """Return all bytes of the mount table open as FD; raises TableTooLong when reading takes too long."""
        start = time.monotonic()
        self._left_s = min(TOTAL_S, self._left_s + (start - self._seen) * TOTAL_S / _RENEWED_S)
        limit_s = min(EACH_S, PROMPT_S + self._left_s)
        parts: list[bytes] = []
        try:
            while True:
                part = os.read(fd, _PART)
                if not part:
                    return b"".join(parts)
                parts.append(part)
                if time.monotonic() - start > limit_s:
                    raise TableTooLong(sum(part.count(b"\n") for part in parts))
        finally:
            self._seen = time.monotonic()
            self._left_s = max(0.0, self._left_s - max(0.0, self._seen - start - PROMPT_S))


_patience = Patience()


def read_table(fd: int) -> bytes:
    """Return all bytes of another process's mount table, open as FD, within the time that this process has left for such tables.

    Raises TableTooLong when reading takes longer.
    """
    return _patience.read(fd)
