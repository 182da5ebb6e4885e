# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules' side of the recorder: see that it runs, hand traces over, change them under its eyes, and borrow its readers."""

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

_START_S = 20.0
_END_S = 60.0
_LOOK_S = 0.005
NOBODY = "nobody watched the trace: no recorder looks after it; where the next fetch says so again, call ftrace_instance with state=started"


def ensure_recorder() -> None:
    """Start a recorder if there is something to look after and nobody does; raises FleetError when it does not start.

    One of an older version of this collection gives way where it looks after rings alone: these go on.
    """
    if not orders.list_orders():
        return
    deadline = time.monotonic() + _START_S
    while True:
        pid = orders.find_recorder()
        if pid is None:
            if not background.start_daemon(record, lambda: bool(orders.find_recorder())):
                raise FleetError("the recorder, which would look after the traces, does not start on this host")
            return
        if pid and os.path.exists(channel.find_path()):
            return
        if pid:
            _replace_older(pid)
        if time.monotonic() > deadline:
            raise FleetError(f"the recorder (pid {pid}) does not answer: see what it waits for")
        time.sleep(_LOOK_S)


def _replace_older(pid: int) -> None:
    """End the recorder PID, which does not listen as ours does; raises FleetError where a recording would end with it."""
    recorded = [order.container.name for order in orders.list_orders() if order.run and orders.is_taken(order.name)]
    if recorded:
        raise FleetError(
            f"the recorder (pid {pid}) is of another version of this collection and records {', '.join(recorded)}:"
            " stop these traces (ftrace_instance with state=stopped) and fetch them first"
        )
    with suppress(ProcessLookupError):
        # Not SIGTERM: it would end the traces that it looks after.
        os.kill(pid, signal.SIGKILL)


class RecorderGone(FleetError):
    """Nobody listens where the recorder should, or it has just ended."""


class Change:
    """What a module does to the settings of instance NAME while the recorder does not take it for somebody else's doing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._connection: socket.socket | None = None

    def begin(self) -> None:
        """Tell the recorder, where it looks after the instance."""
        if orders.is_taken(self._name):
            with suppress(OSError, FleetError):  # it ends just now: nobody takes anything for anything
                self._ask("change")

    def place(self, order: Order) -> None:
        """Have the recorder take ORDER on; raises FleetError, and forgets ORDER, when it does not."""
        orders.write_order(order)
        with ExitStack() as undo:
            undo.callback(withdraw, order.name)
            self._have_taken()
            written = orders.read_order(order.name)
            if written is None or written.error:
                why = written.error if written is not None else "somebody has withdrawn it meanwhile"
                raise FleetError(f"the trace of {order.container.name} cannot be looked after: {why}")
            undo.pop_all()

    def _have_taken(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            ensure_recorder()
            try:
                return self._ask("take")
            except RecorderGone:
                # It had nothing to do any more just now: the next one has, but for an order that was refused.
                written = orders.read_order(self._name)
                if written is None or written.error:
                    return None
                if time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)

    def end(self) -> None:
        """Tell the recorder that the settings are as they are meant to be."""
        try:
            if self._connection is not None:
                with suppress(OSError, FleetError):
                    self._ask("done")
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the recorder, which then takes what it sees for meant."""
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
    """Say that the recorder does not answer, and what to do."""
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
    """Change the settings of instance NAME under the recorder's eyes."""
    changing = Change(name)
    changing.begin()
    try:
        yield changing
    finally:
        changing.end()


def withdraw(name: str) -> bool:
    """Have nobody look after instance NAME any more, and return when a recording of it is finished; whether there was an order."""
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
    """Readers of the ring buffers of an instance: CPU → descriptor of trace_pipe_raw, opened by who watches it.

    REASONS tells why what the buffers hold may not be complete.
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
        """Return why what was read up to now may not be complete."""
        if self._connection is not None:
            try:
                reply, _fds = _exchange(self._connection, {"do": "account", "name": self._instance.name})
                self.reasons = reply["reasons"]
            except (OSError, FleetError):
                self.reasons = [*self.reasons, NOBODY]
                self._connection = None
        return self.reasons

    def settle(self) -> None:
        """What was read and told is in a capture that is safe."""
        if self._connection is not None:
            with suppress(OSError, FleetError):
                _exchange(self._connection, {"do": "settle", "name": self._instance.name})


def _wait_taken(name: str) -> bool:
    """Return whether the recorder looks after instance NAME, maybe the next one in a moment: what is read under its eyes is nobody else's."""
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
    """Borrow the readers of INSTANCE for a while; where nobody looks after it they are opened here."""
    with ExitStack() as stack:
        connection = None
        if _wait_taken(instance.name):
            with suppress(OSError):
                connection = channel.connect()
                stack.callback(connection.close)
        yield Loan(instance, connection, stack)
