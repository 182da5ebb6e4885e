# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to the recorder from a module: start it, hand traces over to it, announce changes of settings, and borrow its readers."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import channel, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.process import record
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

_START_S = background.START_S
_END_S = 60.0
_LOOK_S = 0.005
NOBODY = "nobody watched the trace: no recorder looks after it; where the next fetch says so again, call ftrace_instance with state=started"


def ensure_recorder() -> None:
    """Start a recorder if there are orders and none runs; raises FleetError if it does not start.

    A recorder of an older version of this collection is replaced if it has no recordings. Its rings go on.
    """
    if not orders.list_orders():
        return
    deadline = time.monotonic() + _START_S
    while True:
        pid = orders.find_recorder()
        if pid is None:
            if not background.start_daemon(record, lambda: bool(orders.find_recorder())):
                raise FleetError("the recorder, which looks after traces, does not start on this host")
            return
        if pid and os.path.exists(channel.find_path()):
            return
        if pid:
            _replace_older(pid)
        if time.monotonic() > deadline:
            raise FleetError(f"the recorder (pid {pid}) does not answer: see what it waits for")
        time.sleep(_LOOK_S)


def refuse_other_version() -> None:
    """Raise FleetError if the host's recorder is of another version: a program that stays on the host may be older than it, or newer."""
    pid = orders.find_recorder()
    if pid and not os.path.exists(channel.find_path()):
        raise FleetError(
            f"the recorder (pid {pid}) is of another version of this collection: run the roles start_hook and standing_rules again"
        )


def _replace_older(pid: int) -> None:
    """Kill the recorder PID of another version; raises FleetError if a recording would end with it."""
    recorded = [order.container.name for order in orders.list_orders() if order.run and orders.is_taken(order.name)]
    if recorded:
        raise FleetError(
            f"the recorder (pid {pid}) is of another version of this collection and records {', '.join(recorded)}:"
            " stop these traces (ftrace_instance with state=stopped) and fetch them first"
        )
    with suppress(ProcessLookupError):
        # At SIGTERM the recorder would end its traces; at SIGKILL rings go on.
        os.kill(pid, signal.SIGKILL)


class RecorderGone(FleetError):
    """An error that says that the recorder does not listen, does not answer, or has just ended."""


class Change:
    """A module's change of the settings of instance NAME, announced to the recorder so that it is not taken for foreign access."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._connection: socket.socket | None = None

    def begin(self) -> None:
        """Announce the change to the recorder, if it looks after the instance."""
        if orders.is_taken(self._name):
            with suppress(OSError, FleetError):  # a recorder that ends just now watches nothing any more
                self._ask("change")

    def place(self, order: Order) -> None:
        """Have the recorder take ORDER on; if it does not, remove ORDER and raise FleetError."""
        orders.write_order(order)
        with ExitStack() as undo:
            undo.callback(withdraw, order.name)
            self._have_taken()
            written = orders.read_order(order.name)
            if written is None or written.error:
                why = written.error if written is not None else "somebody has withdrawn its order meanwhile"
                raise FleetError(f"the recorder cannot look after the trace of {order.container.name}: {why}")
            undo.pop_all()

    def _have_taken(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            ensure_recorder()
            try:
                return self._ask("take")
            except RecorderGone:
                # A recorder without orders has ended just now. The next one takes the order on, unless the order was refused.
                written = orders.read_order(self._name)
                if written is None or written.error:
                    return None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)

    def end(self) -> None:
        """Tell the recorder that the change is finished, and that the present settings are the wanted ones."""
        try:
            if self._connection is not None:
                with suppress(OSError, FleetError):
                    self._ask("done")
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the recorder then takes the present settings for the wanted ones."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, what: str) -> None:
        try:
            if self._connection is None:
                self._connection = channel.connect()
            _exchange(self._connection, {"do": what, "name": self._name})
        except OSError as error:
            self.close()
            if isinstance(error, socket.timeout):
                raise RecorderGone(describe_silence()) from error
            raise RecorderGone(f"the recorder of this host does not answer: {error.strerror or error}") from error


def describe_silence() -> str:
    """Return a sentence that says that the recorder does not answer, and what to do."""
    pid = orders.find_recorder()
    return (
        f"the recorder of this host (pid {pid}) does not answer: see what it waits for (ps -o stat,wchan {pid}), have it go on, and"
        " fetch again"
    )


def _exchange(connection: socket.socket, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    channel.send(connection, request)
    reply, fds = channel.receive(connection)
    if not reply:
        raise ConnectionResetError(errno.ECONNRESET, "it has ended")
    if "ok" not in reply:
        for fd in fds:
            os.close(fd)
        raise FleetError(f"the recorder refuses to {request['do']} {request['name']}: {reply.get('error')}")
    return reply, fds


@contextmanager
def change(name: str) -> Iterator[Change]:
    """Announce to the recorder that the settings of instance NAME change in the context."""
    changing = Change(name)
    changing.begin()
    try:
        yield changing
    finally:
        changing.end()


def withdraw(name: str) -> bool:
    """Withdraw the order for instance NAME, wait until its recording is finished, and return True if there was an order.

    Raises FleetError if the recorder does not let go of the instance.
    """
    was_there = orders.drop_order(name)
    deadline = time.monotonic() + _END_S
    while orders.is_taken(name):
        if time.monotonic() > deadline:
            raise FleetError(
                f"the recorder (pid {orders.find_recorder()}) does not let go of {name}: see what it waits for"
            )
        time.sleep(_LOOK_S)
    return was_there


class Loan:
    """The readers of an instance's ring buffers, opened by the recorder that watches it, or here if none does.

    FDS: CPU → descriptor of trace_pipe_raw.
    ERRORS: CPU → why its buffer could not be opened.
    REASONS: why, in words, the buffers' content may not be complete.
    """

    def __init__(self, instance: Instance, connection: socket.socket | None, stack: ExitStack) -> None:
        self._instance = instance
        self._connection = connection
        self.reasons: list[str] = [] if connection is not None else [NOBODY]
        self.fds: dict[int, int] = {}
        self.errors: dict[int, str] = {}
        cpus = instance.list_cpus()
        for start in range(0, len(cpus), channel.MAX_FDS):
            some = cpus[start : start + channel.MAX_FDS]
            found = self._borrow(connection, some) if connection is not None else drain.open_readers(instance, some)
            for _cpu, fd in found.items():
                stack.callback(os.close, fd)
            self.fds.update(found)
        self.errors = {cpu: "its buffer cannot be opened" for cpu in cpus if cpu not in self.fds}

    def _borrow(self, connection: socket.socket, cpus: list[int]) -> dict[int, int]:
        try:
            reply, fds = _exchange(connection, {"do": "lend", "name": self._instance.name, "cpus": cpus})
        except socket.timeout as error:
            raise FleetError(describe_silence()) from error
        except OSError as error:
            raise RecorderGone("the recorder of this host has just ended: fetch again") from error
        self.reasons = reply["reasons"]
        return dict(zip(reply["cpus"], fds))

    def account(self) -> list[str]:
        """Return the reasons, in words, why the events that were read up to now may not be complete."""
        if self._connection is not None:
            try:
                reply, _fds = _exchange(self._connection, {"do": "account", "name": self._instance.name})
                self.reasons = reply["reasons"]
            except (OSError, FleetError):
                self.reasons = [*self.reasons, NOBODY]
                self._connection = None
        return self.reasons

    def settle(self) -> None:
        """Tell the recorder that a safe capture has the events and the reasons."""
        if self._connection is not None:
            with suppress(OSError, FleetError):
                _exchange(self._connection, {"do": "settle", "name": self._instance.name})


def drain_recording(name: str) -> bool:
    """Have the recorder write to the recording of instance NAME what its buffers hold now; return False if it does not.

    A recorder of an earlier version does so within seconds by itself.
    """
    try:
        with channel.connect() as connection:
            _exchange(connection, {"do": "drain", "name": name})
    except (OSError, FleetError, ValueError):
        return False
    return True


def _wait_taken(name: str) -> bool:
    """Return True if a recorder looks after instance NAME, maybe after a moment in which a new one starts.

    A recorder that has lent the readers does not take their reads for foreign access.
    """
    deadline = time.monotonic() + _START_S
    while not orders.is_taken(name):
        order = orders.read_order(name)
        if order is None or order.error or time.monotonic() > deadline:
            return False
        try:
            ensure_recorder()
        except FleetError:
            return False
        time.sleep(_LOOK_S)
    return True


@contextmanager
def borrow(instance: Instance) -> Iterator[Loan]:
    """Borrow readers of the ring buffers of INSTANCE from the recorder; without a recorder they are opened here.

    Raises FleetError if the recorder does not answer.
    """
    with ExitStack() as stack:
        connection = None
        if _wait_taken(instance.name):
            with suppress(OSError):
                connection = channel.connect()
                stack.callback(connection.close)
        yield Loan(instance, connection, stack)
