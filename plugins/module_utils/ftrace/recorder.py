# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's one recorder: a small process that drains traces to files, and ends traces by their limits, as orders.py tells it.

It belongs to no module and no login, as the watchdog of cart/ does. One thread drains all CPUs of all recordings in turn: reading is
a move of pages, and what bounds it is the disk. Its niceness makes it yield to the host's services, not to the point of loss.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerGoneError,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import (
    clocks,
    following,
    orders,
    recordings,
    records,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.limits import Brake
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recording_writer import Full, RecordingWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import (
    background,
    cgroups,
    locks,
    processes,
    syscalls,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance, TraceError

_TITLE = "crashcart-recorder"
_NICENESS = 5
_TAKE_OVER_S = 5.0  # in which one that is ending has ended
_PACE_S = 0.005  # at least, between two rounds: before Linux 6.1 buffers say at once that something is in them
_LOOK_S = 0.25  # between two looks at limits, at most
_START_S = 10.0  # in which a control group that has come into being has a process
_START_ROUNDS = 10  # the buffers of others wait meanwhile
_DRAIN_S = 5.0  # after which a buffer is drained that is not half full
TTL_IS_OVER, CONTAINER_ENDED = "its ttl is over", "the container ended"
SWITCHED_OFF = "tracing was switched off, by a trigger or by somebody else"


class Keeper:
    """Looks after one trace as ORDER says; holds its lock as long as it does."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._instance = Instance(order.root, order.name)
        self._stack = ExitStack()
        self.writer: RecordingWriter | None = None
        self._drained_s = time.monotonic()
        with ExitStack() as stack:
            lock_fd = stack.enter_context(locks.lock(orders.find_lock(order.name), _TAKE_OVER_S))
            if os.stat(self._instance.path).st_ino != order.inode:
                raise TraceError("the trace instance was removed, and another one has its name")
            # An exit of the first process is the end of the container.
            self._container = order.container
            self._container_fd: int | None = None
            stack.callback(self._let_go)
            self._start_fd: int | None = None
            if order.limits.restarts:
                # From now on, so that no start is missed: a group comes into being in the one above it.
                self._start_fd = syscalls.inotify_watch(os.path.dirname(order.group), syscalls.IN_CREATE)
                stack.callback(os.close, self._start_fd)
            if order.run or order.limits.restarts:
                try:
                    process = stack.enter_context(open_process(order.container))
                    self._container_fd = syscalls.pidfd_open(process.pid)
                    process.read_start_ticks()  # raises when the pid was somebody else's by now
                except (ContainerGoneError, processes.ProcessGone):
                    if not order.limits.restarts:
                        raise
                    self._let_go()
            if order.run:
                about = recordings.read_json(os.path.join(order.run, recordings.ABOUT))
                self.writer = RecordingWriter(self._instance, order.run, order.limits, about["page_size"])
            self._known: set[int] = set()
            self._stirred_s = time.monotonic()
            events, self._lost_before = self._count()
            self._first_events = events
            self._was_on = False
            self._brake = Brake(order.limits.max_rate, time.monotonic(), events) if order.limits.max_rate else None
            stack.callback(os.ftruncate, lock_fd, 0)
            locks.tell_holder(lock_fd)
            self._stack = stack.pop_all()

    def _count(self) -> tuple[int, int]:
        """Events that were recorded since the instance was made, and of these that were lost."""
        counters = recordings.read_counters(self._instance).values()
        lost = sum(one["overrun"] + one["dropped"] + one["commit_overrun"] for one in counters)
        return lost + sum(one["entries"] + one["read"] for one in counters), lost

    @property
    def look_s(self) -> float:
        """Seconds between two looks at it."""
        if self.is_awaiting and time.monotonic() - self._stirred_s < _START_S and os.path.isdir(self.order.group):
            return following.START_LOOK_S
        return following.LOOK_S if self.order.limits.watch else _LOOK_S

    @property
    def is_awaiting(self) -> bool:
        """Whether its container has ended and may start again."""
        return self.order.limits.restarts and self._container_fd is None

    @property
    def turn_fd(self) -> int | None:
        """What is readable when its container ends, or when one has come into being that may be its; None where nobody awaits that."""
        if not self.order.limits.restarts:
            return None
        return self._start_fd if self.is_awaiting else self._container_fd

    def _let_go(self) -> None:
        if self._container_fd is not None:
            os.close(self._container_fd)
            self._container_fd = None

    def _look_for_start(self) -> None:
        """Follow the container that starts, once its first process is there: still the runtime, which is about to become it."""
        with suppress(BlockingIOError):
            if self._start_fd is not None and os.read(self._start_fd, 65536):
                self._stirred_s = time.monotonic()
        first, shim = following.find_starting(self.order.group, self._container.pid)
        if first is None:
            return

        def list_tids() -> set[int]:
            self._known = {first, *cgroups.gen_pids(self.order.group)}
            pids = {*self._known, shim} if shim is not None and self.order.limits.descends else self._known
            return {tid for pid in pids for tid in processes.read_threads(pid)}

        following.add_missing(self._instance, list_tids, rounds=_START_ROUNDS)
        with suppress(ProcessLookupError):
            self._container_fd = syscalls.pidfd_open(first)
            self._container = replace(self._container, pid=first, start_ticks=None)

    def _follow(self, group: str) -> None:
        """Record the threads of processes that have come into the control GROUP since the last look, and are nobody's children there."""
        pids = set(cgroups.gen_pids(group))
        new = pids - self._known
        if new and not self.order.limits.tools:
            new -= following.find_tools(new, pids, processes.read_parent, following.read_comm)
        self._known = pids
        tids = {tid for pid in new for tid in processes.read_threads(pid)}
        if tids:
            self._instance.add_pids(following.EVENT_PIDS, following.find_missing(self._instance, lambda: tids))

    def work(self, *, is_ready: bool, is_due: bool) -> str | None:
        """Drain where IS_READY says so, or time has passed; with IS_DUE see to the limits. Why the trace is to end now, if it is."""
        try:
            if self.writer is not None:
                if is_ready or time.monotonic() - self._drained_s > _DRAIN_S:
                    self.writer.drain()
                    self._drained_s = time.monotonic()
                if is_due:
                    self.writer.tend()
            if is_due and self.is_awaiting:
                self._look_for_start()
            elif is_due and self.order.limits.watch:
                self._follow(self.order.group)
            return self._find_end() if is_due else None
        except Full as full:
            return str(full)
        except (FleetError, OSError) as error:
            return f"the recorder met an error: {error}"

    def _find_end(self) -> str | None:
        limits = self.order.limits
        if self.order.deadline is not None and self.order.deadline <= orders.read_clock():
            return TTL_IS_OVER
        if self._container_fd is not None and select.select([self._container_fd], [], [], 0)[0]:
            if not limits.restarts:
                return CONTAINER_ENDED
            self._let_go()
            self._known = set()
            self._stirred_s = time.monotonic()
        if self.writer is not None and self._is_switched_off():
            return SWITCHED_OFF
        if limits.max_rate is None and limits.max_loss is None:
            return None
        events, lost = self._count()
        if limits.max_loss is not None and lost - self._lost_before > limits.max_loss:
            return f"it lost {lost - self._lost_before} events, more than max_loss ({limits.max_loss}) allows"
        return self._brake.look(time.monotonic(), events) if self._brake else None

    def _is_switched_off(self) -> bool:
        """Whether what has begun to trace does not any more; before, its settings are being written."""
        if self._instance.is_tracing():
            self._was_on = True
            return False
        return self._was_on or self._count()[0] != self._first_events

    def end(self, why: str | None) -> None:
        """Stop the trace, for the reason WHY of its own (None: its order was withdrawn), finish the recording, forget the order."""
        try:
            if why is not None or self.writer is not None:
                self._instance.trace_off()
            if why is not None:
                # Nobody looks after the host's cost any more: system calls that are traced take a slower path.
                self._instance.events_disable()
                self._note(why)
            if self.writer is not None:
                self.writer.close({"why": why, **self._describe_end()})
            if why is not None:
                orders.drop_order(self.order.name, self.order.run)
        finally:
            if self.writer is not None:
                self.writer.close_files()
            self._stack.close()

    def _describe_end(self) -> dict[str, Any]:
        return {
            "time": clocks.measure_offset(self._instance.read_clock()),
            "tasks": list_tasks(self._container),
            "saved_cmdlines": Instance(self._instance.root, "..").read("saved_cmdlines"),
        }

    def _note(self, why: str) -> None:
        record = records.read_record(self._instance)
        end = clocks.measure_offset(self._instance.read_clock())
        with suppress(OSError):
            records.write_record(self._instance, {**record, "end": end, "stopped": why})


class _Terminated(BaseException):
    """The host shuts down, or its root wants this process to end."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


def record(ready_fd: int) -> None:
    """Look after traces until there is no order left; READY_FD gets a byte when this process is the host's recorder."""
    processes.set_title(_TITLE)
    background.leave_control_groups()
    os.nice(_NICENESS)
    keepers: dict[str, Keeper] = {}
    with suppress(locks.LockTimeout), ExitStack() as stack:
        lock_fd = stack.enter_context(locks.lock(orders.RECORDER_LOCK, _TAKE_OVER_S))
        locks.tell_holder(lock_fd)
        changes = syscalls.IN_MOVED_TO | syscalls.IN_DELETE | syscalls.IN_DELETE_SELF | syscalls.IN_MOVE_SELF
        make_folder(orders.FOLDER)
        events_fd = syscalls.inotify_watch(orders.FOLDER, changes)
        background.tell_ready(ready_fd)
        signal.signal(signal.SIGTERM, _terminate)
        try:
            while os.path.isdir(orders.FOLDER):  # a cleanup may have taken it, and wants none of ours made again
                _follow_orders(keepers)
                if not keepers:
                    with suppress(FleetError, OSError), orders.hold():
                        if not orders.list_orders():
                            # In this order: who writes the next one looks after that whether a recorder runs.
                            stack.close()
                            return
                _work(keepers, events_fd)
            why = "everything of ours was cleaned up"
        except _Terminated:
            why = "the recorder was terminated"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for keeper in keepers.values():
            _end(keeper, why)


def _follow_orders(keepers: dict[str, Keeper]) -> None:
    """Take on what is new, and let go of what was withdrawn."""
    found = {order.name: order for order in orders.list_orders()}
    for name, keeper in list(keepers.items()):
        order = found.get(name)
        if order is not None and (order.run, order.inode, order.limits.describe()) == (
            keeper.order.run,
            keeper.order.inode,
            keeper.order.limits.describe(),
        ):
            keeper.order = order  # with more time, maybe
        else:
            _end(keepers.pop(name), None)
    for name, order in found.items():
        if name not in keepers:
            try:
                _take(order, keepers)
            except (FleetError, OSError, TypeError, processes.ProcessGone, locks.LockTimeout) as error:
                orders.refuse(order, str(error))


def _take(order: Order, keepers: dict[str, Keeper]) -> None:
    if not os.path.isdir(os.path.join(order.root, "instances", order.name)):
        orders.drop_order(order.name, order.run)
    elif order.run and recordings.has_begun(order.run):
        # Whoever has begun it died, and tracing stopped with it.
        orders.drop_order(order.name, order.run)
    else:
        keepers[order.name] = Keeper(order)


def _end(keeper: Keeper, why: str | None) -> None:
    with suppress(FleetError, OSError):  # the instance may be gone; the files say what they can
        keeper.end(why)


def _work(keepers: dict[str, Keeper], events_fd: int) -> None:
    """One round: wait until there is something to do, drain, and see to limits."""
    poller = select.poll()
    poller.register(events_fd, select.POLLIN)
    owners = {}
    for name, keeper in keepers.items():
        if keeper.turn_fd is not None:
            poller.register(keeper.turn_fd, select.POLLIN)
        for fd in keeper.writer.sources.values() if keeper.writer else ():
            poller.register(fd, select.POLLIN)
            owners[fd] = name
    until_s = time.monotonic() + min([_LOOK_S, *(keeper.look_s for keeper in keepers.values())])
    is_due = False
    while not is_due:
        ready = {fd for fd, _event in poller.poll(max(0.0, until_s - time.monotonic()) * 1000)}
        is_due = not ready <= set(owners) or time.monotonic() >= until_s
        busy = {owners[fd] for fd in ready if fd in owners}
        for name, keeper in list(keepers.items()):
            why = keeper.work(is_ready=name in busy, is_due=is_due)
            if why is not None:
                _end(keepers.pop(name), why)
                is_due = True  # its files are closed: they must not be polled any more
        if busy and not is_due:
            time.sleep(_PACE_S)
    with suppress(BlockingIOError):
        os.read(events_fd, 65536)
