# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments that end by themselves: for each a file that says when, and one watchdog for the host that sees to it.

The file is written before the image is mounted, so whatever a killed module has done ends in time. Times are CLOCK_BOOTTIME,
which no clock setting moves, and which begins anew with the host, as /run does.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN, WATCHDOG_LOCK
from ansible_collections.crashcart.fleet.plugins.module_utils.units import format_time

FOLDER = os.path.join(RUN, "expiry")
_LOCK = "expiry"


@dataclass(frozen=True)
class Expiry:
    """When the attachment at PATH in CONTAINER ends: DEADLINE in seconds of CLOCK_BOOTTIME. ERROR says why it did not."""

    container: Container
    path: str
    deadline: float
    error: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.container.short_id}-{hashlib.sha256(self.path.encode()).hexdigest()[:8]}"

    @property
    def place(self) -> tuple[str, str]:
        """Of the attachment: the container's id and the path in it."""
        return self.container.id, self.path

    @property
    def expires(self) -> float:
        """When it ends, in seconds since the epoch by the host's clock."""
        return find_time(self.deadline)

    def as_result(self) -> dict[str, Any]:
        """What modules return of it."""
        return {
            "container": self.container.name,
            "path": self.path,
            "expires": self.expires,
            "expires_at": format_time(self.expires),
            "error": self.error,
        }


def find_time(deadline: float) -> float:
    """DEADLINE, of CLOCK_BOOTTIME, in seconds since the epoch by the host's clock."""
    return round(time.time() + deadline - boot.read_clock(), 3)


def list_expiries() -> list[Expiry]:
    """All that there are, the next one first; files that nobody of us has written are passed over."""
    try:
        names = [name for name in os.listdir(FOLDER) if not name.startswith(".")]
    except (FileNotFoundError, PermissionError):
        return []
    return sorted(filter(None, map(_read, names)), key=lambda one: one.deadline)


def _read(name: str) -> Expiry | None:
    with suppress(OSError, ValueError, TypeError, KeyError), open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        record = json.load(file)
        return Expiry(**{**record, "container": Container(**record["container"])})
    return None


@contextmanager
def hold() -> Iterator[None]:
    """Keep others from writing and dropping."""
    with hold_lock(_LOCK):
        yield


def write(expiries: Sequence[Expiry]) -> None:
    """Make these what holds for their attachments from now on."""
    with hold():
        make_folder(FOLDER)
        for one in expiries:
            _write(one)


def _write(one: Expiry) -> None:
    temporary = os.path.join(FOLDER, "." + one.name)
    with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
        json.dump(asdict(one), file)
    os.rename(temporary, os.path.join(FOLDER, one.name))


def drop(expiries: Sequence[Expiry]) -> None:
    """Let these attachments stay, or be gone already. What was settled anew since is left as it is."""
    if not expiries:
        return
    with hold():
        for one in expiries:
            if _read(one.name) == one:
                os.unlink(os.path.join(FOLDER, one.name))


def postpone(one: Expiry, delay_s: float, error: str) -> None:
    """Have it ended in DELAY_S at the earliest, since ERROR has kept it from that; unless it was settled anew since."""
    with hold():
        if _read(one.name) == one:
            _write(replace(one, deadline=max(one.deadline, boot.read_clock() + delay_s), error=error))


def find_watchdog() -> int | None:
    """The pid of the watchdog that runs; None when none does, or when the caller may not see it."""
    return locks.find_holder(WATCHDOG_LOCK)
