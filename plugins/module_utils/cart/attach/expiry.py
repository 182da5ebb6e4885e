# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments that end by themselves: a file for each says when, and one watchdog on the host ends them.

The file is written before the image is mounted, so an attachment ends in time even where the module is killed. Times are CLOCK_BOOTTIME,
which no change of the clock moves. It starts anew when the host boots, and so does the content of /run.
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
    """The end of the attachment at PATH in CONTAINER.

    DEADLINE: in seconds of CLOCK_BOOTTIME. ERROR: the reason why the attachment did not end in time.
    """

    container: Container
    path: str
    deadline: float
    error: str = ""

    @property
    def name(self) -> str:
        """Return the name of the expiry's file."""
        return f"{self.container.short_id}-{hashlib.sha256(self.path.encode()).hexdigest()[:8]}"

    @property
    def place(self) -> tuple[str, str]:
        """Return the attachment's place: the container's id and the path in it."""
        return self.container.id, self.path

    @property
    def expires(self) -> float:
        """Return when the attachment ends, in seconds since the epoch by the host's clock."""
        return find_time(self.deadline)

    def as_result(self) -> dict[str, Any]:
        """Return the fields that modules report of an expiry."""
        return {
            "container": self.container.name,
            "path": self.path,
            "expires": self.expires,
            "expires_at": format_time(self.expires),
            "error": self.error,
        }


def find_time(deadline: float) -> float:
    """Return DEADLINE (of CLOCK_BOOTTIME) in seconds since the epoch by the host's clock."""
    return round(time.time() + deadline - boot.read_clock(), 3)


def list_expiries() -> list[Expiry]:
    """Return all expiries, the next one first; files of another form are ignored."""
    try:
        names = [name for name in os.listdir(FOLDER) if not name.startswith(".")]
    except (FileNotFoundError, PermissionError):
        return []
    return sorted(filter(None, map(_read, names)), key=lambda expiry: expiry.deadline)


def _read(name: str) -> Expiry | None:
    with suppress(OSError, ValueError, TypeError, KeyError), open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        record = json.load(file)
        return Expiry(**{**record, "container": Container(**record["container"])})
    return None


@contextmanager
def hold() -> Iterator[None]:
    """Keep other processes from writing and dropping expiries; raises ContainerError where one holds the lock for too long."""
    with hold_lock(_LOCK):
        yield


def write(expiries: Sequence[Expiry]) -> None:
    """Replace the expiries of the same attachments by EXPIRIES."""
    with hold():
        make_folder(FOLDER)
        for expiry in expiries:
            _write(expiry)


def _write(expiry: Expiry) -> None:
    temporary = os.path.join(FOLDER, "." + expiry.name)
    with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
        json.dump(asdict(expiry), file)
    os.rename(temporary, os.path.join(FOLDER, expiry.name))


def drop(expiries: Sequence[Expiry]) -> None:
    """Remove EXPIRIES, whose attachments are to stay or have gone; an expiry that was written anew since then is kept."""
    if not expiries:
        return
    with hold():
        for expiry in expiries:
            if _read(expiry.name) == expiry:
                os.unlink(os.path.join(FOLDER, expiry.name))


def postpone(expiry: Expiry, delay_s: float, error: str) -> None:
    """Move the deadline of EXPIRY to DELAY_S from now at the earliest, with ERROR as the reason, unless EXPIRY was written anew since then."""
    with hold():
        if _read(expiry.name) == expiry:
            _write(replace(expiry, deadline=max(expiry.deadline, boot.read_clock() + delay_s), error=error))


def find_watchdog() -> int | None:
    """Return the pid of the running watchdog; None where none runs, or where the caller may not see it."""
    return locks.find_holder(WATCHDOG_LOCK)
