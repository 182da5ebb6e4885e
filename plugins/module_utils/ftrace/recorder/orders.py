# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces that somebody looks after: for each a file that says how, and one recorder process for the host that does.

A file is an intention, no state. That the recorder has taken it on is told by a lock, which the kernel drops with the process.
Times are CLOCK_BOOTTIME, which begins anew with the host, as /run does.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.names import LOCKS, RECORDER_LOCK, RUN

FOLDER = os.path.join(RUN, "recorder")
_LOCK = "orders"


@dataclass(frozen=True)
class Order:
    """How the trace instance NAME below ROOT, whose inode tells it from others of that name, is looked after.

    RUN is the folder of its recording, '' for none, GROUP that of the container's control group. WATCHED is since when the recorder
    watches it, None where it does not yet. ENDED says why a ring is only watched any more, and no limit holds. ERROR says why the order
    could not be taken on.
    """

    name: str
    root: str
    inode: int
    container: Container
    limits: Limits = field(default_factory=Limits)
    deadline: float | None = None
    run: str = ""
    group: str = ""
    watched: float | None = None
    ended: str = ""
    error: str = ""

    @property
    def expires(self) -> float | None:
        """When it ends by its ttl, in seconds since the epoch by the host's clock."""
        if self.deadline is None or self.ended:
            return None
        return round(time.time() + self.deadline - boot.read_clock(), 3)


def find_deadline(limits: Limits) -> float | None:
    """When a trace that begins now ends by its ttl."""
    return None if limits.ttl_s is None else boot.read_clock() + limits.ttl_s


def find_lock(name: str) -> str:
    """The lock that the recorder holds while it looks after instance NAME."""
    return os.path.join(LOCKS, "recorded-" + name)


def list_orders() -> list[Order]:
    """All that can be looked after; files that nobody of us has written are passed over."""
    try:
        names = sorted(name for name in os.listdir(FOLDER) if not name.startswith("."))
    except (FileNotFoundError, PermissionError):
        return []
    return [order for order in map(read_order, names) if order is not None and not order.error]


def read_order(name: str) -> Order | None:
    """The order for instance NAME; None when there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError), open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        record: dict[str, Any] = json.load(file)
        container, limits = Container(**record["container"]), Limits(**record["limits"])
        # Before version 0.2 nobody watched.
        return Order(**{"watched": 0.0, **record, "container": container, "limits": limits})
    return None


@contextmanager
def hold(*, is_first: bool = False) -> Iterator[None]:
    """Keep others from writing and dropping. Unless this IS_FIRST, where there may be no folder yet, FileNotFoundError tells of a cleanup."""
    with hold_lock(_LOCK, may_make_folder=is_first):
        yield


def write_order(order: Order) -> None:
    """Make ORDER the one for its instance. Since when the instance is watched stays as it is."""
    with hold(is_first=True):
        make_folder(FOLDER)
        before = read_order(order.name)
        if before is not None and before.inode == order.inode:
            order = replace(order, watched=before.watched)
        _write(order)


def note_watched(name: str) -> None:
    """Note in the order for instance NAME that it is watched from now on."""
    with suppress(FileNotFoundError), hold():
        present = read_order(name)
        if present is not None:
            _write(replace(present, watched=boot.read_clock()))


def note_ended(name: str, why: str) -> None:
    """Note in the order for instance NAME that its trace has ended for the reason WHY, and is only watched any more."""
    with suppress(FileNotFoundError), hold():
        present = read_order(name)
        if present is not None:
            _write(replace(present, ended=why))


def _write(order: Order) -> None:
    temporary = os.path.join(FOLDER, "." + order.name)
    with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
        json.dump(asdict(order), file)
    os.rename(temporary, os.path.join(FOLDER, order.name))


def refuse(order: Order, error: str) -> None:
    """Note in ORDER's file, unless somebody has changed it, why it cannot be taken on."""
    with suppress(FileNotFoundError), hold():
        present = read_order(order.name)
        if present is not None and replace(present, watched=order.watched) == order:
            _write(replace(order, error=error))


def drop_order(name: str, run: str | None = None) -> bool:
    """Forget the order for instance NAME (if it is for the recording in RUN); whether there was one."""
    if not os.path.lexists(os.path.join(FOLDER, name)):
        return False
    with suppress(FileNotFoundError), hold():
        order = read_order(name)
        if run is None or order is None or order.run == run:
            os.unlink(os.path.join(FOLDER, name))
            return True
    return False


def is_taken(name: str) -> bool:
    """Whether the recorder looks after instance NAME now."""
    return locks.find_holder(find_lock(name)) is not None


def list_abandoned() -> list[Order]:
    """Orders of rings whose recorder was killed. Recordings end with theirs."""
    return [order for order in list_orders() if not order.run and not is_taken(order.name)]


def find_recorder() -> int | None:
    """The pid of the recorder that runs; None when none does, or when the caller may not see it."""
    return locks.find_holder(RECORDER_LOCK)
