# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the mount tables of strangers (/proc/PID/mountinfo), who can make them minutes long.

To show a mount the kernel climbs through all that are stacked below it: thirty thousand on one folder take it half a minute. It shows
some KiB to each read(2), so between two of them a reader can give up.
"""

from __future__ import annotations

import errno
import os
import time

PROMPT_S = 0.1  # what any table may take; a hundred mounts take a thousandth of it
EACH_S = 2.0  # what one table may take
TOTAL_S = 5.0  # what all tables together may take beyond PROMPT_S
_RENEWED_S = 60.0  # after so long TOTAL_S is there again: some of our processes last
_PART = 1 << 16


class TableTooLong(OSError):
    """A mount table is given up."""

    def __init__(self, count: int) -> None:
        reason = f"its table of mounts is too long to be read (over {count} mounts): unmount what is stacked there, or stop it"
        super().__init__(errno.E2BIG, reason)


class Patience:
    """What is left of TOTAL_S for the tables that are not prompt."""

    def __init__(self) -> None:
        self._left_s = TOTAL_S
        self._seen = time.monotonic()

    def read(self, fd: int) -> bytes:
        """All bytes of the mount table that is open as FD; raises TableTooLong."""
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
                    raise TableTooLong(sum(one.count(b"\n") for one in parts))
        finally:
            self._seen = time.monotonic()
            self._left_s = max(0.0, self._left_s - max(0.0, self._seen - start - PROMPT_S))


_patience = Patience()


def read_table(fd: int) -> bytes:
    """All bytes of the stranger's mount table that is open as FD, with the patience of the calling process; raises TableTooLong."""
    return _patience.read(fd)
