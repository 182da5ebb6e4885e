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
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import RUN, hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.limits import Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private

FOLDER = os.path.join(RUN, "recorder")
RECORDER_LOCK = os.path.join(RUN, "locks", "recorder")
_LOCK = "orders"
_TAKE_S = 20.0
_END_S = 60.0
_LOOK_S = 0.005


@dataclass(frozen=True)
class Order:
    """How the trace instance NAME below ROOT, whose inode tells it from others of that name, is looked after.

    RUN is the folder of its recording, '' for none, GROUP that of the container's control group. ERROR says why it could not be taken on.
    """

    name: str
    root: str
    inode: int
    container: Container
    limits: Limits = field(default_factory=Limits)
    deadline: float | None = None
    run: str = ""
    group: str = ""
    error: str = ""

    @property
    def expires(self) -> float | None:
        """When it ends by its ttl, in seconds since the epoch by the host's clock."""
        return None if self.deadline is None else round(time.time() + self.deadline - read_clock(), 3)


def read_clock() -> float:
    """Now, in seconds of CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def find_deadline(limits: Limits) -> float | None:
    """When a trace that begins now ends by its ttl."""
    return None if limits.ttl_s is None else read_clock() + limits.ttl_s


def find_lock(name: str) -> str:
    """The lock that the recorder holds while it looks after instance NAME."""
    return os.path.join(RUN, "locks", "recorded-" + name)


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
        return Order(**{**record, "container": container, "limits": limits})
    return None


@contextmanager
def hold() -> Iterator[None]:
    """Keep others from writing and dropping."""
    with hold_lock(_LOCK):
        yield


def write_order(order: Order) -> None:
    """Make ORDER the one for its instance."""
    with hold():
        make_folder(FOLDER)
        _write(order)


def _write(order: Order) -> None:
    temporary = os.path.join(FOLDER, "." + order.name)
    with open(temporary, "w", encoding="utf-8", opener=open_private) as file:
        json.dump(asdict(order), file)
    os.rename(temporary, os.path.join(FOLDER, order.name))


def refuse(order: Order, error: str) -> None:
    """Note in ORDER's file, unless somebody has changed it, why it cannot be taken on."""
    with hold():
        if read_order(order.name) == order:
            _write(replace(order, error=error))


def drop_order(name: str, run: str | None = None) -> bool:
    """Forget the order for instance NAME (if it is for the recording in RUN); whether there was one."""
    if not os.path.lexists(os.path.join(FOLDER, name)):
        return False
    with hold(), suppress(FileNotFoundError):
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


def _is_taken_on(name: str) -> bool:
    """The same, and whether it has begun: it tells its pid then, which was another's or none before."""
    pid = find_recorder()
    return pid is not None and locks.find_holder(find_lock(name)) == pid


def find_recorder() -> int | None:
    """The pid of the recorder that runs; None when none does, or when the caller may not see it."""
    return locks.find_holder(RECORDER_LOCK)


def ensure_recorder() -> None:
    """Start a recorder if there is something to look after and nobody does; raises FleetError when it does not start."""
    if not list_orders() or find_recorder() is not None:
        return
    from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import record  # which needs this file

    if not background.start_daemon(record, lambda: find_recorder() is not None):
        raise FleetError("the recorder, which would look after the traces, does not start on this host")


def place(order: Order) -> None:
    """Have the recorder take ORDER on, and return when it has; raises FleetError, and drops ORDER, when it does not."""
    write_order(order)
    try:
        deadline = time.monotonic() + _TAKE_S
        while not _is_taken_on(order.name):
            ensure_recorder()
            written = read_order(order.name)
            if written is not None and written.error:
                raise FleetError(f"the trace of {order.container.name} cannot be looked after: {written.error}")
            if time.monotonic() > deadline:
                raise FleetError(
                    f"the recorder (pid {find_recorder()}) does not take on {order.name}: see what it waits for"
                )
            time.sleep(_LOOK_S)
    except BaseException:
        withdraw(order.name)
        raise


def withdraw(name: str) -> bool:
    """Have nobody look after instance NAME any more, and return when a recording of it is finished; whether there was an order."""
    was_there = drop_order(name)
    deadline = time.monotonic() + _END_S
    while is_taken(name):
        if time.monotonic() > deadline:
            raise FleetError(f"the recorder (pid {find_recorder()}) does not let go of {name}: see what it waits for")
        time.sleep(_LOOK_S)
    return was_there
