# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's one recorder: a small process that watches all traces, drains some to files, and ends them by their limits, as orders.py tells.

It belongs to no module and no login, as the watchdog of cart/ does. One thread drains all CPUs of all recordings in turn: reading is
a move of pages, and what bounds it is the disk. Its niceness makes it yield to the host's services, not to the point of loss.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import channel, orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.keeper import Keeper
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RECORDER_LOCK, RECORDER_TITLE

_NICENESS = 5
_TAKE_OVER_S = 5.0  # in which one that is ending has ended
_PACE_S = 0.005  # at least, between two rounds: before Linux 6.1 buffers say at once that something is in them
_LOOK_S = 1.0  # between two looks at anything, at most
_ANSWER_S = 5.0  # in which a module takes what it has asked for


class _Terminated(BaseException):
    """The host shuts down, or its root wants this process to end."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


@dataclass
class _Host:
    """All that the recorder looks after: KEEPERS by the names of their instances, and the modules that talk to it, by descriptor.

    CHANGING and LENDING have for a module's descriptor the instance whose settings it changes, or whose buffers it drains.
    """

    watcher: Watcher
    server: socket.socket
    events_fd: int
    keepers: dict[str, Keeper] = field(default_factory=dict)
    clients: dict[int, socket.socket] = field(default_factory=dict)
    changing: dict[int, str] = field(default_factory=dict)
    lending: dict[int, str] = field(default_factory=dict)


def record(ready_fd: int) -> None:
    """Look after traces until there is no order left; READY_FD gets a byte when this process is the host's recorder."""
    processes.set_title(RECORDER_TITLE)
    background.leave_control_groups()
    os.nice(_NICENESS)
    # Each event of a trace takes a descriptor.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with suppress(locks.LockTimeout), ExitStack() as stack:
        lock_fd = stack.enter_context(locks.lock(RECORDER_LOCK, _TAKE_OVER_S))
        os.ftruncate(lock_fd, 0)
        changes = syscalls.IN_MOVED_TO | syscalls.IN_DELETE | syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF
        make_folder(orders.FOLDER)
        server = stack.enter_context(channel.listen())
        watcher = Watcher()
        stack.callback(watcher.close)
        host = _Host(watcher, server, syscalls.inotify_watch(orders.FOLDER, changes))
        signal.signal(signal.SIGTERM, _terminate)
        try:
            _follow_all(host)
            # Only now: a recorder that has told its pid and does not listen is of an older version, and a fetch that comes before it
            # looks after a trace would be a stranger to it.
            locks.tell_holder(lock_fd)
            background.tell_ready(ready_fd)
            while _follow_orders(host):
                if not host.keepers and not host.clients:
                    with suppress(FleetError, OSError), orders.hold():
                        if not orders.list_orders():
                            # In this order: who writes the next one looks after that whether a recorder runs.
                            os.unlink(channel.find_path())
                            stack.close()
                            return
                _work(host)
            why = "everything of ours was cleaned up"
        except _Terminated:
            why = "the recorder was terminated"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for keeper in host.keepers.values():
            if keeper.has_bounds:
                _end(keeper, why)


def _follow_orders(host: _Host) -> bool:
    """Take on what is new, and let go of what was withdrawn, where the folder of orders has changed.

    Return False where a cleanup has taken it: it wants none of ours made again.
    """
    for _number, events, name in syscalls.inotify_read(host.events_fd):
        if events & syscalls.IN_Q_OVERFLOW:
            _follow_all(host)
        elif not name:
            return False
        elif not name.startswith("."):
            _follow(host, name)
    return True


def _follow_all(host: _Host) -> None:
    for name in {*host.keepers, *(order.name for order in orders.list_orders())}:
        _follow(host, name)


def _follow(host: _Host, name: str) -> None:
    """Look after instance NAME as its order says now."""
    order = orders.read_order(name)
    if order is not None and order.error:
        order = None
    keeper = host.keepers.get(name)
    if order is not None and keeper is not None and _describe(order) == _describe(keeper.order):
        keeper.order = order  # with more time, maybe
        return
    watch = None
    if keeper is not None:
        del host.keepers[name]
        if order is not None and keeper.writer is None and order.inode == keeper.order.inode:
            watch = keeper.close()
        else:
            _end(keeper, None)
    if order is not None:
        _take(order, host, watch)


def _describe(order: Order) -> tuple[Any, ...]:
    """Return what makes another keeper of ORDER's instance necessary when it differs."""
    return order.run, order.inode, order.limits.describe(), order.ended, order.group


def _take(order: Order, host: _Host, watch: Watch | None = None) -> None:
    try:
        is_there = os.path.isdir(os.path.join(order.root, "instances", order.name))
        # Whoever has begun a recording died, and tracing stopped with it.
        if not is_there and not order.run:
            metadata.note_removed(Instance(order.root, order.name))
        if not is_there or (order.run and recordings.has_begun(order.run)):
            orders.drop_order(order.name, order.run)
        else:
            host.keepers[order.name] = Keeper(order, host.watcher, watch)
            watch = None
    except (FleetError, OSError, TypeError, processes.ProcessGone, locks.LockTimeout) as error:
        orders.refuse(order, str(error))
    finally:
        if watch is not None:
            watch.close()


def _end(keeper: Keeper, why: str | None) -> None:
    with suppress(FleetError, OSError):  # the instance may be gone; the files say what they can
        keeper.end(why)


def _end_or_finish(host: _Host, name: str, why: str) -> None:
    """End the trace called NAME for the reason WHY; a ring is watched until it is gone."""
    keeper = host.keepers[name]
    if keeper.writer is None and not keeper.is_gone:
        with suppress(FleetError, OSError):
            keeper.finish(why)
            return
    _end(host.keepers.pop(name), why)
    # Where the instance went under it the order is still there.
    _follow(host, name)


def _work(host: _Host) -> None:
    """One round: wait until there is something to do, drain, answer modules, and see to limits."""
    poller = select.poll()
    poller.register(host.events_fd, select.POLLIN)
    poller.register(host.server, select.POLLIN)
    for fd in host.clients:
        poller.register(fd, select.POLLIN)
    owners = {}
    for name, keeper in host.keepers.items():
        if keeper.turn_fd is not None:
            poller.register(keeper.turn_fd, select.POLLIN)
        for fd in keeper.writer.sources.values() if keeper.writer else ():
            poller.register(fd, select.POLLIN)
            owners[fd] = name
    until_s = time.monotonic() + min([_LOOK_S, *(keeper.look_s for keeper in host.keepers.values())])
    is_due = False
    talking: set[int] = set()
    while not is_due and not talking:
        ready = {fd for fd, _event in poller.poll(max(0.0, until_s - time.monotonic()) * 1000)}
        talking = ready & {host.events_fd, host.server.fileno(), *host.clients}
        is_due = not ready - talking <= set(owners) or time.monotonic() >= until_s
        busy = {owners[fd] for fd in ready if fd in owners}
        if is_due:
            host.watcher.update()
        for name, keeper in list(host.keepers.items()):
            why = keeper.work(is_ready=name in busy, is_due=is_due)
            if why is not None:
                _end_or_finish(host, name, why)
                is_due = True  # its files are closed: they must not be polled any more
        if busy and not is_due and not talking:
            time.sleep(_PACE_S)
    for fd in talking & set(host.clients):
        _answer(host, fd)
    if host.server.fileno() in talking:
        with suppress(OSError):
            client, _address = host.server.accept()
            client.settimeout(_ANSWER_S)
            host.clients[client.fileno()] = client


def _answer(host: _Host, fd: int) -> None:
    """Do what the module with descriptor FD asks for, or notice that it has gone."""
    client = host.clients[fd]
    try:
        request, strange = channel.receive(client)
        for number in strange:
            os.close(number)
        if request:
            reply, fds = _do(host, fd, str(request.get("do")), str(request.get("name")), request)
            try:
                channel.send(client, reply, fds)
            finally:
                for number in fds:
                    os.close(number)
            return
    except (OSError, ValueError, AttributeError):
        pass  # it has gone, or is none of ours
    _end_change(host, fd)
    lender = host.keepers.get(host.lending.pop(fd, ""))
    if lender is not None:
        with suppress(FleetError, OSError):  # the instance may be gone
            lender.watch.rebase_counters()
    del host.clients[fd]
    client.close()


def _do(host: _Host, fd: int, what: str, name: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    if what == "take":
        _follow(host, name)
    keeper = host.keepers.get(name)
    if what == "done":
        _end_change(host, fd)
    elif keeper is None:
        # Why an order was not taken on stands in its file.
        return {"ok": False} if what == "take" else {"error": "it is not looked after"}, []
    else:
        try:
            if what in ("take", "change"):
                host.changing[fd] = name
                keeper.watch.begin_change()
            elif what == "lend":
                host.lending[fd] = name
                readers, reasons = keeper.lend([int(cpu) for cpu in request["cpus"]])
                return {"ok": True, "reasons": reasons, "cpus": list(readers)}, list(readers.values())
            elif what == "account":
                return {"ok": True, "reasons": keeper.watch.list_reasons()}, []
            elif what == "settle":
                keeper.watch.settle(_list_peers(host))
            else:
                return {"error": f"it does not know what {what} is"}, []
        except (FleetError, OSError) as error:
            return {"error": str(error)}, []
    return {"ok": True}, []


def _list_peers(host: _Host) -> set[int]:
    """Return the pids of the modules that talk to the recorder: they may have readers that it has lent them."""
    size = struct.calcsize("3i")
    found = (one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size) for one in host.clients.values())
    return {struct.unpack("3i", credentials)[0] for credentials in found}


def _end_change(host: _Host, fd: int) -> None:
    keeper = host.keepers.get(host.changing.pop(fd, ""))
    if keeper is not None:
        with suppress(FleetError, OSError):  # the instance may be gone
            keeper.end_change()
