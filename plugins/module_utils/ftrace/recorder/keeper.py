# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look after one trace within the recorder: follow the container, drain the buffers, apply the limits, and watch for foreign access."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerGoneError,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import Unreadable
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import following, pid_lists
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.foreign_access import Watch, Watcher
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.orders import Order
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.writer import Full, RecordingWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.limits import Brake, Limits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.starts import NOTRACE_PIDS, RuleStarts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, cgroups, locks, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_TAKE_OVER_S = 5.0  # an earlier keeper of the instance ends within this time
_LOOK_S = 0.25  # between two looks at limits, at most
_WATCH_S = 1.0  # between two looks at a trace that is only watched
# Longer than between two comparisons of a rule that has nothing to do, so that the first start after a pause does not wait for one.
_UNCOMPARED_S = 3.0
_START_S = 10.0  # a new control group has its first process within this time
_START_ROUNDS = 10  # other traces' buffers are not drained meanwhile
_DRAIN_S = 5.0  # after this time a buffer is drained even if it is not half full
TTL_IS_OVER, CONTAINER_ENDED = "its ttl is over", "the container ended"
TRIGGERED, SWITCHED_OFF = "a trigger switched tracing off", "somebody else switched tracing off"
REMOVED = "somebody removed the trace instance"
IDLE = "none of its containers ran any more"
_ENDED = "the trace has ended"


class Keeper:
    """One trace that the recorder looks after, as ORDER says; it holds the instance's lock until close() or end().

    WATCH is taken over from an earlier keeper, which was closed; None makes a new one on WATCHER.
    Raises TraceError, ContainerGoneError, ProcessGone, LockTimeout or OSError if the trace cannot be taken on.
    """

    def __init__(self, order: Order, watcher: Watcher, watch: Watch | None = None) -> None:
        self.order = order
        self._limits = Limits() if order.ended else order.limits
        self._instance = Instance(order.root, order.name)
        self._stack = ExitStack()
        self.writer: RecordingWriter | None = None
        self._drained_s = self._compared_s = time.monotonic()
        self._told: dict[str, Any] = {}  # what the files of a rule's recording tell of its starts
        with ExitStack() as failing, ExitStack() as stack:
            lock_fd = stack.enter_context(locks.lock(orders.find_lock(order.name), _TAKE_OVER_S))
            if os.stat(self._instance.path).st_ino != order.inode:
                raise TraceError("the trace instance was removed, and another one has its name")
            # The watch begins before anything is read or traced, so that it sees all foreign access from now on.
            self.watch = watch or Watch(
                watcher,
                self._instance,
                self._list_events(),
                was_watched=order.watched is not None,
                wanted=None if order.watched is None else metadata.read_wanted(self._instance),
                remember=partial(metadata.write_wanted, self._instance),
                uncompared=(NOTRACE_PIDS,) if order.rule else (),
            )
            if watch is None:
                failing.callback(self.watch.close)
            # The container ends with its first process.
            self._container = order.container
            self._container_fd: int | None = None
            stack.callback(self._let_go)
            self._start_fd: int | None = None
            if self._limits.restarts:
                # The folder above the control group is watched from now on, so that no start is missed.
                self._start_fd = syscalls.inotify_watch(os.path.dirname(order.group), syscalls.IN_CREATE)
                stack.callback(os.close, self._start_fd)
            self._rule_starts = self._follow_rule(stack)
            if (order.run or self._limits.restarts) and order.rule is None:
                self._hold_process(stack)
            if order.run:
                about = recordings.read_json(os.path.join(order.run, recordings.ABOUT))
                with self.watch.ours():
                    begun = self._rule_starts.begin_segment if self._rule_starts else lambda _folder: None
                    self.writer = RecordingWriter(
                        self._instance, order.run, self._limits, about["page_size"], self.watch, begun
                    )
            self._known: set[int] = set()
            self._stirred_s = time.monotonic()
            self._first_events, self._lost_before = self._count()
            self._was_on = False
            self._brake = (
                Brake(self._limits.max_rate, time.monotonic(), self._first_events) if self._limits.max_rate else None
            )
            stack.callback(os.ftruncate, lock_fd, 0)
            locks.tell_holder(lock_fd)
            self._stack = stack.pop_all()
            failing.pop_all()
        orders.note_watched(order.name)

    def _hold_process(self, stack: ExitStack) -> None:
        """Hold the container's first process until STACK is closed; raises ContainerGoneError or ProcessGone if no next start is awaited."""
        try:
            process = stack.enter_context(open_process(self.order.container))
            self._container_fd = syscalls.pidfd_open(process.pid)
            process.read_start_ticks()  # raises if another process has the pid by now
        except (ContainerGoneError, processes.ProcessGone):
            if not self._limits.restarts:
                raise
            self._let_go()

    def _follow_rule(self, stack: ExitStack) -> RuleStarts | None:
        """Return the starts of the rule's containers, which STACK closes; None for the trace of one container, or one that has ended."""
        if self.order.rule is None or self.order.ended:
            return None
        clock, descends = self._instance.read_clock(), self._limits.descends
        starts = RuleStarts(self.order.rule, self._instance, clock, can_descend=descends, expect=self.watch.await_write)
        stack.callback(starts.close)
        return starts

    def _look_for_rule(self, starts: RuleStarts) -> None:
        starts.look()
        told = starts.describe()
        if told != self._told:
            with suppress(OSError):
                recordings.write_json(os.path.join(self.order.run, recordings.STARTS), told)
            self._told = told

    def awaits(self, name: str) -> bool:
        """Return True if this is the trace of the rule NAME, if hooks announce its containers, and if it records."""
        rule = self.order.rule
        return rule is not None and rule.is_announced and rule.name == name and self._instance.is_tracing()

    def announce(self, starts: Sequence[tuple[int, str]]) -> list[str | None]:
        """Have containers traced, STARTS with the pid of the first process and the id of each; return for each why it is not, None if it is."""
        if self._rule_starts is None or self.writer is None:
            return [_ENDED] * len(starts)
        return self._rule_starts.announce(starts)

    def _list_events(self) -> list[str]:
        """Return the events that the trace needs, also those that a trigger switches on."""
        return list(metadata.read_record(self._instance).get("events", {}))

    def _count(self) -> tuple[int, int]:
        """Return how many events were recorded since the instance was made, and how many of these were lost."""
        counters = recordings.read_counters(self._instance).values()
        lost = sum(cpu["overrun"] + cpu["dropped"] + cpu["commit_overrun"] for cpu in counters)
        return lost + sum(cpu["entries"] + cpu["read"] for cpu in counters), lost

    @property
    def look_s(self) -> float:
        """Return the seconds between two looks at the trace."""
        if self._rule_starts is not None:
            return min(_LOOK_S, self._rule_starts.look_s)
        if self.is_awaiting and time.monotonic() - self._stirred_s < _START_S and os.path.isdir(self.order.group):
            return following.START_LOOK_S
        if self._limits.watch:
            return following.LOOK_S
        return _LOOK_S if self.has_bounds else _WATCH_S

    @property
    def is_awaiting(self) -> bool:
        """Return True if the container has ended and its next start is awaited."""
        return self._limits.restarts and self._container_fd is None

    @property
    def turn_fd(self) -> int | None:
        """Return a descriptor that is readable when the container ends, or when its next start may have begun.

        None if neither restarts nor a rule are followed.
        """
        if self._rule_starts is not None:
            return self._rule_starts.fd
        if not self._limits.restarts:
            return None
        return self._start_fd if self.is_awaiting else self._container_fd

    def _let_go(self) -> None:
        if self._container_fd is not None:
            os.close(self._container_fd)
            self._container_fd = None

    def _look_for_start(self) -> None:
        """Follow the starting container as soon as its first process exists: that is the runtime, which becomes the container's program."""
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
        """Record the threads of processes that have come into the control GROUP since the last look.

        The kernel follows the children of a followed process by itself, but a process of the runtime enters the group from outside.
        """
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
        """Do one round of work, and return why the trace has to end now; None if it goes on.

        With IS_READY, or after some time, the buffers are drained. With IS_DUE foreign access, starts, new processes and limits are checked.
        """
        if is_due and self.is_gone:
            return REMOVED
        try:
            if is_due and self._rule_starts is not None:
                self._look_for_rule(self._rule_starts)  # first of all: a container may live for some milliseconds only
            if is_due and self._may_compare():
                self._look_for_others()
                self._compared_s = time.monotonic()
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

    def _may_compare(self) -> bool:
        """Return False for some seconds at most while the kernel takes a list of threads: it lets nobody read some other files meanwhile."""
        is_writing = self._rule_starts is not None and self._rule_starts.is_writing
        return not is_writing or time.monotonic() - self._compared_s > _UNCOMPARED_S

    def drain(self) -> None:
        """Write to the recording, if there is one, what its buffers hold now. What prevents that ends the trace in the next round."""
        if self.writer is not None:
            with suppress(Full, Unreadable):
                self.writer.drain()
                self._drained_s = time.monotonic()

    @property
    def is_gone(self) -> bool:
        """Return True if somebody has removed the instance."""
        try:
            return os.stat(self._instance.path).st_ino != self.order.inode
        except FileNotFoundError:
            return True

    def _look_for_others(self) -> None:
        """Check for settings that others changed without a write; after a gap in the watch also for changes of the followed threads."""
        self.watch.compare(is_quick=True)
        if not self.watch.has_gap:
            return
        self.watch.has_gap = False
        if self._container.pid and not self.order.ended:
            try:
                with open_process(self._container) as process:
                    threads = processes.read_threads(process.pid)
            except (FleetError, processes.ProcessGone):
                return  # the container has ended
            followed = self._instance.read_pids(pid_lists.EVENT_PIDS)
            # A thread that has ended meanwhile is missing because the kernel has removed it.
            if any(tid not in followed and processes.is_alive(tid) for tid in threads):
                self.watch.alter(pid_lists.EVENT_PIDS, f"somebody else changed {pid_lists.EVENT_PIDS}")

    def _find_end(self) -> str | None:
        limits = self._limits
        if self.order.deadline is not None and not self.order.ended and self.order.deadline <= boot.read_clock():
            return TTL_IS_OVER
        if self._rule_starts is not None and self._rule_starts.is_idle:
            return IDLE
        if self._container_fd is not None and syscalls.is_readable(self._container_fd):
            if not limits.restarts:
                return CONTAINER_ENDED
            self._let_go()
            self._known = set()
            self._stirred_s = time.monotonic()
        if self.writer is not None and self._is_switched_off():
            is_ours = self.watch.may_stop_itself and not self.watch.has_written("tracing_on")
            return TRIGGERED if is_ours else SWITCHED_OFF
        return None if limits.max_rate is None and limits.max_loss is None else self._find_excess()

    def _find_excess(self) -> str | None:
        """Return which limit of events or of losses the trace exceeds; None for none."""
        limits = self._limits
        events, lost = self._count()
        if limits.max_loss is not None and lost - self._lost_before > limits.max_loss:
            return f"it lost {lost - self._lost_before} events, more than max_loss ({limits.max_loss}) allows"
        return self._brake.look(time.monotonic(), events) if self._brake else None

    def _is_switched_off(self) -> bool:
        """Return True if tracing was on and is off now; a trace that was never on is still being set up."""
        if self._instance.is_tracing():
            self._was_on = True
            return False
        return self._was_on or self._count()[0] != self._first_events

    @property
    def has_bounds(self) -> bool:
        """Return True if the trace has a recording or limits, so that it must not go on without a recorder."""
        return self.writer is not None or self._limits != Limits()

    def _switch_off(self, why: str) -> None:
        with self.watch.ours("tracing_on", "set_event"):
            self._instance.trace_off()
            # Events are switched off, too: system calls with events take a slower path, and no limit bounds that cost any more.
            self._instance.events_disable()
        self._note(why)

    def lend(self, cpus: list[int]) -> tuple[dict[int, int], list[str]]:
        """Return readers (CPU → descriptor) of the ring buffers of CPUS, and the reasons why their content may not be complete.

        A module drains the readers.
        """
        self.watch.compare_counters()
        with self.watch.ours():
            readers = drain.open_readers(self._instance, cpus)
        return readers, self.watch.list_reasons()

    def end_change(self) -> None:
        """Take the present settings, which a module has written, for the wanted ones."""
        self.watch.end_change(self._list_events())

    def finish(self, why: str) -> None:
        """End the trace of a ring for the reason WHY; from then on the ring is only watched until it is gone."""
        self._switch_off(why)
        self._limits = Limits()
        self._brake = None
        orders.note_ended(self.order.name, why)
        self.order = replace(self.order, ended=why)

    def end(self, why: str | None) -> None:
        """Stop the trace, finish its recording, and close it.

        WHY is the reason for which the trace ends by itself, and its order is removed; None if the order was withdrawn.
        """
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
        """Let go of the trace, and return its watch, which stays open for the next keeper."""
        if self.writer is not None:
            self.writer.close_files()
        self._stack.pop_all().close()
        return self.watch

    def _describe_end(self) -> dict[str, Any]:
        return {
            "time": clocks.measure_offset(self._instance.read_clock()),
            "tasks": list_tasks(self._container),
            metadata.HOLDINGS: collect(self._container),
            "saved_cmdlines": Instance(self._instance.root, "..").read("saved_cmdlines"),
        }

    def _note(self, why: str) -> None:
        record = metadata.read_record(self._instance)
        end = clocks.measure_offset(self._instance.read_clock())
        with suppress(OSError):
            ended = {"end": end, "stopped": why, metadata.LAST_HOLDINGS: collect(self._container)}
            metadata.write_record(self._instance, {**record, **ended})
