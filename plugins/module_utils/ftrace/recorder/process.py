# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the host's one recorder: a process that watches all traces, drains recordings to files, and ends traces by their limits.

orders.py says which traces it looks after. The recorder belongs to no module and no login, like the watchdog of cart/. One thread drains
all CPUs of all recordings in turn: a read only moves pages, and the disk bounds the speed. Each rule has another thread, which waits while
the kernel takes lists of threads. The recorder's niceness lets the host's services go first, but not so much that events are lost.
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
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import channel, orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.keeper import Keeper
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import (
    RECORDER_LOCK,
    RECORDER_TITLE,
    RECORDER_UNKNOWN,
)

_NICENESS = 5
_RULES_NICENESS = -10  # a container that starts may be over in some milliseconds, and a look takes less than one
_TAKE_OVER_S = 5.0  # an earlier recorder ends within this time
_PACE_S = 0.005  # between two rounds, at least: before Linux 6.1 a buffer is readable as soon as it has one event
_LOOK_S = 1.0  # between two looks at anything, at most
_ANSWER_S = 5.0  # a module reads the reply to its request within this time


class _Terminated(BaseException):
    """A SIGTERM: the host shuts down, or root wants this process to end."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


@dataclass(frozen=True)
class _Start:
    """A start of a container that a hook has announced.

    FD: descriptor of the hook's connection.
    KEEPER: the trace of the rule that it is for.
    PID, IDENTITY: the first process of the container, and its id.
    """

    fd: int
    keeper: Keeper
    pid: int
    identity: str


@dataclass
class _Host:
    """The state of the recorder.

    WATCHER, SERVER: the inotify queue of all traces; the socket for modules.
    EVENTS_FD: tells changes in the folder of orders.
    KEEPERS: instance name → keeper.
    CLIENTS: descriptor → connection of a module.
    CHANGING: descriptor → name of the instance whose settings the module changes.
    LENDING: descriptor → name of the instance whose buffers the module drains.
    STARTING: the starts that hooks have announced in this round; those of one rule are put into its list with one write.
    NICENESS: that of this process, or the one that the host did not allow.
    """

    watcher: Watcher
    server: socket.socket
    events_fd: int
    keepers: dict[str, Keeper] = field(default_factory=dict)
    clients: dict[int, socket.socket] = field(default_factory=dict)
    changing: dict[int, str] = field(default_factory=dict)
    lending: dict[int, str] = field(default_factory=dict)
    starting: list[_Start] = field(default_factory=list)
    niceness: int = _NICENESS


def record(ready_fd: int) -> None:
    """Run as the host's recorder until no order is left; READY_FD gets a byte when it looks after the traces.

    The function returns without any work if another recorder runs and does not end soon.
    """
    processes.set_title(RECORDER_TITLE)
    background.leave_control_groups()
    os.nice(_NICENESS)
    # A hook's runtime is spared when memory is short, and this process is not to be.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")
    # The watch of a trace keeps a descriptor for each event.
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
            # The pid is told only now. A client takes a recorder that has told its pid but does not listen for one of an older version. And
            # a fetch that came before the recorder looks after its trace would count as foreign access.
            locks.tell_holder(lock_fd)
            background.tell_ready(ready_fd)
            while _follow_orders(host):
                _set_priority(host)
                if not host.keepers and not host.clients:
                    with suppress(FleetError, OSError), orders.hold():
                        if not orders.list_orders():
                            # The lock of orders is held until the recorder's end is visible: a module writes an order under that lock, and
                            # looks for a recorder afterwards.
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


def _set_priority(host: _Host) -> None:
    """Go before the host's services while a rule awaits starts, and after them otherwise."""
    niceness = _RULES_NICENESS if any(keeper.order.rule for keeper in host.keepers.values()) else _NICENESS
    for tid in processes.read_threads(os.getpid()):
        with suppress(OSError):  # the host may not allow it
            if os.getpriority(os.PRIO_PROCESS, tid) != niceness:
                os.setpriority(os.PRIO_PROCESS, tid, niceness)
    if niceness != host.niceness:
        host.niceness = niceness
        # Where sessions are scheduled as groups, the niceness of the group counts (sched(7)).
        with suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(niceness))


def _follow_orders(host: _Host) -> bool:
    """Take on new orders and let go of withdrawn ones, by the changes in the folder of orders.

    Returns False if a cleanup has removed the folder: then nothing must be made again.
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
        keeper.order = order  # its deadline may have changed
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
    """Return the parts of ORDER whose change makes a new keeper necessary."""
    return order.run, order.inode, order.limits.describe(), order.ended, order.group, order.rule


def _take(order: Order, host: _Host, watch: Watch | None = None) -> None:
    try:
        exists = os.path.isdir(os.path.join(order.root, "instances", order.name))
        if not exists and not order.run:
            metadata.note_removed(Instance(order.root, order.name))
        # A recording that has begun already lost its recorder, and tracing stopped with it.
        if not exists or (order.run and recordings.has_begun(order.run)):
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
    with suppress(FleetError, OSError):  # the instance may be gone; the files of a recording stay as they are then
        keeper.end(why)


def _end_or_finish(host: _Host, name: str, why: str) -> None:
    """End the trace in instance NAME for the reason WHY; a ring is watched until it is gone."""
    keeper = host.keepers[name]
    if keeper.writer is None and not keeper.is_gone:
        with suppress(FleetError, OSError):
            keeper.finish(why)
            return
    _end(host.keepers.pop(name), why)
    # If the instance was removed by somebody, the order may still exist.
    _follow(host, name)


def _work(host: _Host) -> None:
    """Do one round: wait until there is something to do, drain buffers, check limits, and answer modules."""
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
                is_due = True  # the poller has descriptors that are closed now, so this round has to end
        if busy and not is_due and not talking:
            time.sleep(_PACE_S)
    for fd in talking & set(host.clients):
        _answer(host, fd)
    _announce(host)
    if host.server.fileno() in talking:
        with suppress(OSError):  # of which one says that nobody waits any more
            while True:
                client, _address = host.server.accept()
                client.settimeout(_ANSWER_S)
                host.clients[client.fileno()] = client


def _answer(host: _Host, fd: int) -> None:
    """Carry out the request of the module on descriptor FD, or clean up after a module that is gone."""
    client = host.clients[fd]
    try:
        request, strange = channel.receive(client)
        for number in strange:
            os.close(number)
        if request.get("do") == "start":
            if not _note_start(host, fd, str(request.get("name")), request["state"]):
                channel.send(client, {"error": RECORDER_UNKNOWN})
            return
        if request:
            reply, fds = _do(host, fd, str(request.get("do")), str(request.get("name")), request)
            try:
                channel.send(client, reply, fds)
            finally:
                for number in fds:
                    os.close(number)
            return
    except Exception:  # pylint: disable=broad-exception-caught # the other end is gone, or its request is nonsense of any kind
        pass
    _end_change(host, fd)
    lender = host.keepers.get(host.lending.pop(fd, ""))
    if lender is not None:
        with suppress(FleetError, OSError):  # the instance may be gone
            lender.watch.rebase_counters()
    del host.clients[fd]
    client.close()


def _note_start(host: _Host, fd: int, rule: str, state: dict[str, Any]) -> bool:
    """Note that the hook on descriptor FD has announced the container with STATE for RULE; return False if no such trace runs (yet)."""
    pid, identity = int(state["pid"]), str(state["id"])
    for keeper in host.keepers.values():
        if keeper.awaits(rule):
            host.starting.append(_Start(fd, keeper, pid, identity))
            return True
    return False


def _announce(host: _Host) -> None:
    """Have the containers traced that hooks have announced, and answer the hooks."""
    starting, host.starting = host.starting, []
    for keeper in {id(start.keeper): start.keeper for start in starting}.values():
        chosen = [start for start in starting if start.keeper is keeper]
        told: Sequence[str | None]
        try:
            told = keeper.announce([(start.pid, start.identity) for start in chosen])
        except Exception as error:  # pylint: disable=broad-exception-caught # one start costs no recording
            told = [str(error)] * len(chosen)
        for start, why in zip(chosen, told):
            with suppress(OSError):  # the hook is gone, because its time is over
                channel.send(host.clients[start.fd], {"ok": True} if why is None else {"error": why})


def _do(host: _Host, fd: int, what: str, name: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    if what == "take":
        _follow(host, name)
    keeper = host.keepers.get(name)
    if what == "done":
        _end_change(host, fd)
    elif keeper is None:
        # The order's file tells why it was not taken on.
        return {"ok": False} if what == "take" else {"error": RECORDER_UNKNOWN}, []
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
            elif what == "drain":
                keeper.drain()
            elif what == "settle":
                keeper.watch.settle(_list_peers(host))
            else:
                return {"error": f"it does not know what {what} is"}, []
        except (FleetError, OSError) as error:
            return {"error": str(error)}, []
    return {"ok": True}, []


def _list_peers(host: _Host) -> set[int]:
    """Return the pids of the connected modules, which may have readers that the recorder has lent them."""
    size = struct.calcsize("3i")
    found = (client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size) for client in host.clients.values())
    return {struct.unpack("3i", credentials)[0] for credentials in found}


def _end_change(host: _Host, fd: int) -> None:
    keeper = host.keepers.get(host.changing.pop(fd, ""))
    if keeper is not None:
        with suppress(FleetError, OSError):  # the instance may be gone
            keeper.end_change()
