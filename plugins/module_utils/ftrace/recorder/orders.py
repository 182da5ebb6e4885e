# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the orders of the recorder: a file for each trace that says how the host's one recorder process looks after the trace.

A file is an intention, no state. The recorder holds a lock for each order that it has taken on, and the kernel drops the lock with the
process. Times are CLOCK_BOOTTIME, which begins anew when the host boots, as /run does.
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
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.names import LOCKS, RECORDER_FOLDER, RECORDER_LOCK

FOLDER = RECORDER_FOLDER
_LOCK = "orders"


@dataclass(frozen=True)
class Order:
    """An order to the recorder to look after one trace instance.

    NAME, ROOT: the instance's name, and its tracefs.
    INODE: the instance's inode, which tells it from a later instance of the same name.
    CONTAINER, LIMITS: the traced container, and the limits of the trace.
    DEADLINE: when its ttl ends, in seconds of CLOCK_BOOTTIME; None if it has none.
    RUN: the folder of its recording; '' for a ring.
    GROUP: the folder of the container's control group; '' if that is not known.
    WATCHED: since when the recorder watches it, in seconds of CLOCK_BOOTTIME; None if it does not yet.
    ENDED: why the trace ended; after that its ring is only watched, and no limit applies. '' before.
    ERROR: why the recorder could not take the order on; '' if it could.
    RULE: the standing rule whose containers the instance records; None for the trace of one container.
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
    rule: Rule | None = None

    @property
    def expires(self) -> float | None:
        """Return when the ttl ends, in seconds since the epoch by the host's clock; None if it has none or the trace has ended."""
        if self.deadline is None or self.ended:
            return None
        return round(time.time() + self.deadline - boot.read_clock(), 3)


def find_deadline(limits: Limits) -> float | None:
    """Return when the ttl of a trace that begins now ends, in seconds of CLOCK_BOOTTIME; None if it has none."""
    return None if limits.ttl_s is None else boot.read_clock() + limits.ttl_s


def find_lock(name: str) -> str:
    """Return the path of the lock that the recorder holds while it looks after instance NAME."""
    return os.path.join(LOCKS, "recorded-" + name)


def list_orders() -> list[Order]:
    """Return all orders without an error; files of another kind are passed over."""
    try:
        names = sorted(name for name in os.listdir(FOLDER) if not name.startswith("."))
    except (FileNotFoundError, PermissionError):
        return []
    return [order for order in map(read_order, names) if order is not None and not order.error]


def read_order(name: str) -> Order | None:
    """Return the order for instance NAME; None if there is none, or if its file is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError), open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        record: dict[str, Any] = json.load(file)
        container, limits = Container(**record["container"]), Limits(**record["limits"])
        rule = None if record.get("rule") is None else rules.from_json(record["rule"])
        # Orders from before version 0.2 have no `watched`, because the recorder did not watch then.
        return Order(**{"watched": 0.0, **record, "container": container, "limits": limits, "rule": rule})
    return None


@contextmanager
def hold(*, is_first: bool = False) -> Iterator[None]:
    """Hold the lock for writing and dropping orders.

    With IS_FIRST the folder of locks is made if it is missing. Without, FileNotFoundError says that a cleanup has removed it.
    """
    with hold_lock(_LOCK, may_make_folder=is_first):
        yield


def write_order(order: Order) -> None:
    """Write ORDER in place of an earlier one for its instance; `watched` of the earlier one is kept."""
    with hold(is_first=True):
        make_folder(FOLDER)
        before = read_order(order.name)
        if before is not None and before.inode == order.inode:
            order = replace(order, watched=before.watched)
        _write(order)


def note_watched(name: str) -> None:
    """Note in the order for instance NAME that the recorder watches the instance from now on."""
    with suppress(FileNotFoundError), hold():
        present = read_order(name)
        if present is not None:
            _write(replace(present, watched=boot.read_clock()))


def note_ended(name: str, why: str) -> None:
    """Note in the order for instance NAME that the trace has ended for the reason WHY, and that its ring is only watched."""
    with suppress(FileNotFoundError), hold():
        present = read_order(name)
        if present is not None:
            _write(replace(present, ended=why))


def _write(order: Order) -> None:
    temporary = os.path.join(FOLDER, "." + order.name)
    with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
        json.dump({**asdict(order), "rule": order.rule and order.rule.describe()}, file)
    os.rename(temporary, os.path.join(FOLDER, order.name))


def refuse(order: Order, error: str) -> None:
    """Note in ORDER's file the ERROR for which the recorder cannot take it on, unless the file has changed meanwhile."""
    with suppress(FileNotFoundError), hold():
        present = read_order(order.name)
        if present is not None and replace(present, watched=order.watched) == order:
            _write(replace(order, error=error))


def drop_order(name: str, run: str | None = None) -> bool:
    """Remove the order for instance NAME, and return True if there was one.

    Unless RUN is None, an order for another recording than RUN is left alone.
    """
    if not os.path.lexists(os.path.join(FOLDER, name)):
        return False
    with suppress(FileNotFoundError), hold():
        order = read_order(name)
        if run is None or order is None or order.run == run:
            os.unlink(os.path.join(FOLDER, name))
            return True
    return False


def is_taken(name: str) -> bool:
    """Return True if the recorder looks after instance NAME now."""
    return locks.find_holder(find_lock(name)) is not None


def list_abandoned() -> list[Order]:
    """Return the orders of rings that no recorder looks after, because it was killed; a recording ends with its recorder."""
    return [order for order in list_orders() if not order.run and not is_taken(order.name)]


def find_recorder() -> int | None:
    """Return the recorder's pid; None if none runs, or if the caller may not see it."""
    return locks.find_holder(RECORDER_LOCK)
