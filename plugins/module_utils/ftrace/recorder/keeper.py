# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One trace that the recorder looks after: who is followed, what is drained, when it ends, and who else touches it."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerGoneError,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import Unreadable
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import following, pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.writer import Full, RecordingWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Brake, Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, cgroups, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_TAKE_OVER_S = 5.0  # in which one that is ending has ended
_LOOK_S = 0.25  # between two looks at limits, at most
_WATCH_S = 1.0  # between two looks at what is only watched
_START_S = 10.0  # in which a control group that has come into being has a process
_START_ROUNDS = 10  # the buffers of others wait meanwhile
_DRAIN_S = 5.0  # after which a buffer is drained that is not half full
TTL_IS_OVER, CONTAINER_ENDED = "its ttl is over", "the container ended"
TRIGGERED, SWITCHED_OFF = "a trigger switched tracing off", "somebody else switched tracing off"
REMOVED = "somebody removed the trace instance"


class Keeper:
    """Looks after one trace as ORDER says; holds its lock as long as it does.

    WATCH is that of the keeper before, which has let go; without one WATCHER gets a new one.
    """

    def __init__(self, order: Order, watcher: Watcher, watch: Watch | None = None) -> None:
        self.order = order
        self._limits = Limits() if order.ended else order.limits
        self._instance = Instance(order.root, order.name)
        self._stack = ExitStack()
        self.writer: RecordingWriter | None = None
        self._drained_s = time.monotonic()
        with ExitStack() as failing, ExitStack() as stack:
            lock_fd = stack.enter_context(locks.lock(orders.find_lock(order.name), _TAKE_OVER_S))
            if os.stat(self._instance.path).st_ino != order.inode:
                raise TraceError("the trace instance was removed, and another one has its name")
            # Before anything is read or traced: what another does from now on is seen.
            self.watch = watch or Watch(
                watcher,
                self._instance,
                self._list_events(),
                was_watched=order.watched is not None,
                wanted=None if order.watched is None else metadata.read_wanted(self._instance),
                remember=partial(metadata.write_wanted, self._instance),
            )
            if watch is None:
                failing.callback(self.watch.close)
            # An exit of the first process is the end of the container.
            self._container = order.container
            self._container_fd: int | None = None
            stack.callback(self._let_go)
            self._start_fd: int | None = None
            if self._limits.restarts:
                # From now on, so that no start is missed: a group comes into being in the one above it.
                self._start_fd = syscalls.inotify_watch(os.path.dirname(order.group), syscalls.IN_CREATE)
                stack.callback(os.close, self._start_fd)
            if order.run or self._limits.restarts:
                try:
                    process = stack.enter_context(open_process(order.container))
                    self._container_fd = syscalls.pidfd_open(process.pid)
                    process.read_start_ticks()  # raises when the pid was somebody else's by now
                except (ContainerGoneError, processes.ProcessGone):
                    if not self._limits.restarts:
                        raise
                    self._let_go()
            if order.run:
                about = recordings.read_json(os.path.join(order.run, recordings.ABOUT))
                with self.watch.ours():
                    self.writer = RecordingWriter(
                        self._instance, order.run, self._limits, about["page_size"], self.watch
                    )
            self._known: set[int] = set()
            self._stirred_s = time.monotonic()
            events, self._lost_before = self._count()
            self._first_events = events
            self._was_on = False
            self._brake = Brake(self._limits.max_rate, time.monotonic(), events) if self._limits.max_rate else None
            stack.callback(os.ftruncate, lock_fd, 0)
            locks.tell_holder(lock_fd)
            self._stack = stack.pop_all()
            failing.pop_all()
        orders.note_watched(order.name)

    def _list_events(self) -> list[str]:
        """Return the events that the trace needs, also those that a trigger is to switch on."""
        return list(metadata.read_record(self._instance).get("events", {}))

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
        if self._limits.watch:
            return following.LOOK_S
        return _LOOK_S if self.has_bounds else _WATCH_S

    @property
    def is_awaiting(self) -> bool:
        """Whether its container has ended and may start again."""
        return self._limits.restarts and self._container_fd is None

    @property
    def turn_fd(self) -> int | None:
        """What is readable when its container ends, or when one has come into being that may be its; None where nobody awaits that."""
        if not self._limits.restarts:
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
            pids = {*self._known, shim} if shim is not None and self._limits.descends else self._known
            return {tid for pid in pids for tid in processes.read_threads(pid)}

        with self.watch.ours():
            pid_lists.add_missing(self._instance, list_tids, rounds=_START_ROUNDS)
        with suppress(ProcessLookupError):
            self._container_fd = syscalls.pidfd_open(first)
            self._container = replace(self._container, pid=first, start_ticks=None)

    def _follow(self, group: str) -> None:
        """Record the threads of processes that have come into the control GROUP since the last look, and are nobody's children there."""
        pids = set(cgroups.gen_pids(group))
        new = pids - self._known
        if new and not self._limits.tools:
            new -= following.find_tools(new, pids, processes.read_parent, processes.read_comm)
        self._known = pids
        tids = {tid for pid in new for tid in processes.read_threads(pid)}
        if tids:
            with self.watch.ours():
                self._instance.add_pids(pid_lists.EVENT_PIDS, pid_lists.find_missing(self._instance, lambda: tids))

    def work(self, *, is_ready: bool, is_due: bool) -> str | None:
        """Drain where IS_READY says so, or time has passed; with IS_DUE see to the limits. Why the trace is to end now, if it is."""
        if is_due and self.is_gone:
            return REMOVED
        try:
            if is_due:
                self._look_for_others()
            if self.writer is not None:
                if is_ready or time.monotonic() - self._drained_s > _DRAIN_S:
                    self.writer.drain()
                    self._drained_s = time.monotonic()
                if is_due:
                    self.writer.tend()
            if is_due and self.is_awaiting:
                self._look_for_start()
            elif is_due and self._limits.watch:
                self._follow(self.order.group)
            return self._find_end() if is_due else None
        except (Full, Unreadable) as reason:
            return str(reason)
        except (FleetError, OSError) as error:
            return f"the recorder met an error: {error}"

    @property
    def is_gone(self) -> bool:
        """Whether somebody has removed the instance."""
        try:
            return os.stat(self._instance.path).st_ino != self.order.inode
        except FileNotFoundError:
            return True

    def _look_for_others(self) -> None:
        """See what others have changed without a write, and after a gap in the watch also whether they have changed who is followed."""
        self.watch.compare(is_quick=True)
        if not self.watch.has_gap:
            return
        self.watch.has_gap = False
        if self._container.pid and not self.order.ended:
            try:
                with open_process(self._container) as process:
                    threads = processes.read_threads(process.pid)
            except (FleetError, processes.ProcessGone):
                return  # it has ended
            followed = self._instance.read_pids(pid_lists.EVENT_PIDS)
            # Those that have ended meanwhile were taken off by the kernel.
            if any(tid not in followed and processes.is_alive(tid) for tid in threads):
                self.watch.alter(pid_lists.EVENT_PIDS, f"somebody else changed {pid_lists.EVENT_PIDS}")

    def _find_end(self) -> str | None:
        limits = self._limits
        if self.order.deadline is not None and not self.order.ended and self.order.deadline <= boot.read_clock():
            return TTL_IS_OVER
        if self._container_fd is not None and syscalls.is_readable(self._container_fd):
            if not limits.restarts:
                return CONTAINER_ENDED
            self._let_go()
            self._known = set()
            self._stirred_s = time.monotonic()
        if self.writer is not None and self._is_switched_off():
            is_ours = self.watch.may_stop_itself and not self.watch.has_written("tracing_on")
            return TRIGGERED if is_ours else SWITCHED_OFF
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

    @property
    def has_bounds(self) -> bool:
        """Whether somebody has to be there for the trace to cost no more than was asked for."""
        return self.writer is not None or self._limits != Limits()

    def _switch_off(self, why: str) -> None:
        with self.watch.ours("tracing_on", "set_event"):
            self._instance.trace_off()
            # Nobody looks after the host's cost any more: system calls that are traced take a slower path.
            self._instance.events_disable()
        self._note(why)

    def lend(self, cpus: list[int]) -> tuple[dict[int, int], list[str]]:
        """Return readers of the ring buffers of CPUS, which a module is to drain, and why what they hold may not be complete."""
        self.watch.compare_counters()
        with self.watch.ours():
            readers = drain.open_readers(self._instance, cpus)
        return readers, self.watch.list_reasons()

    def end_change(self) -> None:
        """See the settings that a module has made as those that are wanted."""
        self.watch.end_change(self._list_events())

    def finish(self, why: str) -> None:
        """End the trace of a ring for the reason WHY; its instance is watched until it is gone."""
        self._switch_off(why)
        self._limits = Limits()
        self._brake = None
        orders.note_ended(self.order.name, why)
        self.order = replace(self.order, ended=why)

    def end(self, why: str | None) -> None:
        """Stop the trace, for the reason WHY of its own (None: its order was withdrawn), finish the recording, forget the order."""
        try:
            if why is not None:
                self._switch_off(why)
            elif self.writer is not None:
                with self.watch.ours("tracing_on"):
                    self._instance.trace_off()
            if self.writer is not None:
                self.writer.close({"why": why, **self._describe_end()})
            if why is not None:
                orders.drop_order(self.order.name, self.order.run)
        finally:
            self.close()
            self.watch.close()

    def close(self) -> Watch:
        """Let go of the trace, and return its watch, which goes on."""
        if self.writer is not None:
            self.writer.close_files()
        self._stack.pop_all().close()
        return self.watch

    def _describe_end(self) -> dict[str, Any]:
        return {
            "time": clocks.measure_offset(self._instance.read_clock()),
            "tasks": list_tasks(self._container),
            "saved_cmdlines": Instance(self._instance.root, "..").read("saved_cmdlines"),
        }

    def _note(self, why: str) -> None:
        record = metadata.read_record(self._instance)
        end = clocks.measure_offset(self._instance.read_clock())
        with suppress(OSError):
            metadata.write_record(self._instance, {**record, "end": end, "stopped": why})
