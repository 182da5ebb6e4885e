# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the containers that start on the host into a rule's trace instance, and take those out again that the rule does not mean.

A runtime is executed tens of milliseconds before its container's program is. It is put into the list of recorded threads at once, and
its children, which become the container, are recorded, too. A write to the list takes the kernel 20 to 50 ms and has its effect at the
beginning, so several runtimes share one. The container's control group comes into being some ten milliseconds before the program. Its
threads are noted as the container's, and are put into the list where they are missing. Which container it is is found out after that:
a container that is not meant is put into the list of threads that are not recorded, and its events are never fetched.
"""

from __future__ import annotations

import math
import os
import select
import time
from collections import deque
from contextlib import ExitStack
from functools import partial
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import following
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import is_runtimes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules import starts_log
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.groupless import StartsUnderWay
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.identity import (
    Source,
    Sources,
    identify,
    make_unknown,
    may_be_roots,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.list_writer import ListWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.member import Counts, Member, describe_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.new_groups import (
    GroupWatcher,
    find_engine_id,
    is_container,
    is_within_container,
    may_start,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rules.new_runtimes import RuntimeWatcher
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance

NOTRACE_PIDS = "set_event_notrace_pid"  # Linux 5.7
_IDLE_LOOK_S = 1.0
_PARTS = 20
_EMPTY_S = 10.0  # a new control group has its first process within this time
_UNKNOWN_S = 2.0  # an engine has written its files about a container within this time
_ROUNDS = 4
_MAX_LATEST = 20
_TIME_IS_OVER = "the rule traces each container no longer than its max_time"


class RuleStarts:
    """The starts of containers that RULE means, in INSTANCE with the trace clock CLOCK; CAN_DESCEND says if shims are followed.

    EXPECT(file) is called before each write to a control file. Raises FleetError or OSError where no control groups can be watched.
    """

    def __init__(
        self, rule: Rule, instance: Instance, clock: str, *, can_descend: bool, expect: Callable[[str], None]
    ) -> None:
        top = cgroups.find_top()
        if top is None:
            raise FleetError("no hierarchy of control groups is mounted, by which containers that start are found")
        self._rule = rule
        self._matches = rule.make_matcher()
        self._instance = instance
        self._clock = clock
        self._can_descend = can_descend
        self._members: dict[str, Member] = {}
        self._last = 0
        self._new_shims: list[Member] = []
        self._left_out: list[Member] = []
        self._sources = Sources()
        self._log = starts_log.StartsLog()
        self._can_leave_out = os.path.exists(os.path.join(instance.path, NOTRACE_PIDS))
        self.counts = Counts()
        self._latest: deque[dict[str, str]] = deque(maxlen=_MAX_LATEST)
        self._runtimes: set[int] = set()
        with ExitStack() as stack:
            self._poll = stack.enter_context(select.epoll())
            self._groups = GroupWatcher(top, watches=not rule.is_announced)
            stack.callback(self._groups.close)
            self._poll.register(self._groups.fd, select.EPOLLIN)
            # It tells of a start earlier than a new group does. A hook tells in time.
            self._new_runtimes = None if rule.is_announced else RuntimeWatcher(instance)
            if self._new_runtimes:
                stack.callback(self._new_runtimes.close)
                self._poll.register(self._new_runtimes.fd, select.EPOLLIN)
            self._lists = ListWriter(instance, expect)
            stack.callback(self._lists.close)
            self._poll.register(self._lists.fd, select.EPOLLIN)
            self._under_way = StartsUnderWay(
                self._sources,
                lambda container: rule.needs_labels or self._matches(container),
                partial(self._lists.add, file=NOTRACE_PIDS),
            )
            self._stack = stack.pop_all()
        self._busy_s = time.monotonic()

    def describe(self) -> dict[str, Any]:
        """Return the numbers of containers, the names of the latest ones, and the troubles, for results."""
        latest = list(self._latest)
        counts = {**vars(self.counts), "missed": self.counts.missed + self._groups.missed}
        parts = [part for part in (self._groups, self._new_runtimes, self._under_way) if part is not None]
        troubles = [trouble for part in parts for trouble in part.troubles]
        return {**counts, "running": self.running, "latest": latest, "troubles": troubles}

    @property
    def fd(self) -> int:
        """Return the descriptor that is readable when a runtime was executed, a control group is new or gone, or lists were written."""
        return self._poll.fileno()

    @property
    def running(self) -> int:
        """Return how many containers are traced now and are, or may be, meant."""
        wanted = (starts_log.TRACED, starts_log.UNDECIDED)
        return sum(member.verdict in wanted for member in self._members.values())

    @property
    def is_idle(self) -> bool:
        """Return True if no container was there for as long as the rule says, so that it ends."""
        return self._rule.idle_s is not None and time.monotonic() - self._busy_s > self._rule.idle_s

    @property
    def is_writing(self) -> bool:
        """Return True while lists are, or are about to be, written: meanwhile the kernel lets nobody read some files of any instance."""
        return self._lists.is_busy

    @property
    def look_s(self) -> float:
        """Return the seconds until the next look at the containers, at most."""
        live = [member for member in self._members.values() if member.is_traced]
        ages = [time.monotonic() - member.since_s for member in live if member.first is None]
        if ages:
            # A group may stay empty, so what is seen late is late by a small part of its time only.
            return min(following.LOOK_S, max(following.START_LOOK_S, min(ages) / _PARTS))
        if (
            self._left_out
            or self._under_way
            or any(self._is_looked_at(member) or self._awaits_shim(member) for member in live)
            or any(member.number and not member.is_decided for member in self._members.values())
        ):
            return following.LOOK_S
        return _IDLE_LOOK_S

    def begin_segment(self, folder: str) -> None:
        """Note the containers that run now in the new segment FOLDER of the recording."""
        # What is in its group by now belongs to the segment that ends, in which its program's events may be.
        self._look_at_groups()
        self._log.begin(folder)
        now = clocks.read(self._clock) or 0
        self._runtimes = set(filter(processes.is_alive, self._runtimes))
        self._log.write_threads(starts_log.RUNTIMES, now, self._runtimes)
        for member in self._members.values():
            if member.number:
                is_over = member.verdict == starts_log.OVER
                # Of those that have ended since they were put into the list the numbers may be others' by now.
                tids = self._list_threads(member)
                member.tids &= tids
                # From here on nothing of one that was traced long enough is wanted.
                about = {**self._describe(member), **({"verdict": starts_log.UNMEANT} if is_over else {})}
                self._log.write(member.number, **about)
                self._log.write_threads(member.number, now, tids)

    def look(self) -> None:
        """Look for containers that have started or ended, and put their threads into the lists."""
        self._lists.check()
        self._follow_runtimes()
        self._look_at_groups()
        now_s = time.monotonic()
        for member in list(self._members.values()):
            if member.number and member.is_traced:
                self._find_out(member, now_s)
            elif member.number:
                self._decide(member, now_s)
        self._under_way.look()
        self._write_lists()

    def _look_at_groups(self) -> None:
        """Take on the containers whose groups have come into being since the last look, and let go of those whose groups are gone."""
        now_s = time.monotonic()
        if any(member.is_traced for member in self._members.values()):
            self._busy_s = now_s
        for path, is_there in self._groups.read():
            if is_there:
                self._members.setdefault(path, Member(path, now_s))
            else:
                self._end(path)
        # A group that was found to be a container's is not watched any more, so its end is looked for.
        for path, member in list(self._members.items()):
            if not os.path.isdir(path) or (not member.tids and not member.number and now_s - member.since_s > _EMPTY_S):
                self._end(path)
        self._join(now_s)

    def _follow_runtimes(self) -> None:
        """Put the runtimes that were executed since the last look, and are about to start a container, into the list."""
        pids = self._new_runtimes.read(self._is_passed_over) if self._new_runtimes else set()
        if not pids:
            return
        now = clocks.read(self._clock) or 0
        tids = {tid for pid in pids for tid in processes.read_threads(pid)}
        self._lists.add(tids)
        self._log.write_threads(starts_log.RUNTIMES, now, tids)
        self._under_way.add(pids)
        self._runtimes = set(filter(processes.is_alive, self._runtimes | tids))

    def _is_passed_over(self, pid: int, process_cgroup: bytes) -> bool:
        """Return True if process PID is in a container's control group; PROCESS_CGROUP is the text of its /proc/PID/cgroup."""
        groups = (group for group in self._members if find_engine_id(group) is None)
        return is_within_container(process_cgroup) or any(pid in cgroups.gen_pids(group) for group in groups)

    def announce(self, starts: Sequence[tuple[int, str]]) -> list[str | None]:
        """Trace the containers of STARTS from now on; their runtimes hold them before their first programs.

        STARTS has the pid of each container's first process, which is the runtime still, and the container's id. Returns for each why it
        is not traced; None if it is.
        """
        self._look_at_groups()  # those that have ended since the last look make room
        told: list[str | None] = []
        chosen = []
        for pid, identity in starts:
            why = None
            try:
                member = self._find_announced(pid, identity)
                if member.is_traced:
                    chosen.append(member)
                else:
                    why = f"{self.running} containers are traced at once, and max_containers allows no more"
            except (FleetError, processes.ProcessGone) as error:
                self.counts.missed += 1
                why = str(error)
            told.append(why)
        for _round in range(_ROUNDS):  # a thread that comes between look and write may have no followed parent
            if not self._add(chosen):
                break
            self._lists.wait()
        return told

    def _find_announced(self, pid: int, identity: str) -> Member:
        """Return the container IDENTITY with the first process PID; raises FleetError or ProcessGone if it cannot be traced."""
        with processes.Process(pid) as process:
            group = cgroups.find_container_directory(process.read("cgroup"), identity)
        if group is None or identity not in group:
            raise FleetError(
                f"process {pid} is in no control group that has the container's id, by which it is told from others"
            )
        if not may_be_roots(pid):
            raise FleetError(f"process {pid} is in a user namespace that is not root's: its user has names of his own")
        member = self._members.get(group)
        if member is None or member.first != pid:
            self._end(group)  # of an earlier start
            member = self._members[group] = Member(group, time.monotonic(), first=pid)
            member.tasks = describe_tasks(pid)
            self._begin(member, self._sources.find(group, pid))
            self._decide(member, math.inf)  # the files about it are there, and may be gone in a moment
        return member

    def _end(self, path: str) -> None:
        member = self._members.pop(path, None)
        if member is None:
            return
        if member.number:
            if member.first is None and member.verdict != starts_log.REFUSED:
                self._find_first(member)
            self._decide(member, math.inf)
            self._log.write(member.number, ended=time.time())
        elif find_engine_id(path):
            self.counts.missed += 1

    def _join(self, now_s: float) -> None:
        """Put the threads of new containers, and what was exec'ed into those without a shim, into the list."""
        live = [member for member in self._members.values() if member.is_traced and self._is_looked_at(member)]
        for member in live:
            if not member.number:
                self._judge_group(member, now_s)
        self._add([member for member in live if member.number and member.is_traced])

    def _add(self, chosen: list[Member]) -> bool:
        """Put the threads of the CHOSEN into the list, and note whose they are; return True if there may be more."""
        now = clocks.read(self._clock) or 0
        for member in chosen:
            is_written = not self._lists.is_busy
            tids = self._list_threads(member)
            new = tids - member.tids
            member.tids = tids
            self._lists.add(new)
            self._log.write_threads(member.number, now, new)
            # In a container that forks all the time something is always new, which the kernel has put into the list by itself.
            member.rounds += is_written and member.first is not None
            member.is_settled = member.rounds > 0 and (not new or member.rounds >= _ROUNDS)
        return not all(member.is_settled for member in chosen)

    def _is_looked_at(self, member: Member) -> bool:
        return not member.is_settled or (self._can_descend and not self._has_own_shim(member))

    def _awaits_shim(self, member: Member) -> bool:
        """Return True if the shim of MEMBER is to be followed as soon as its program runs."""
        return self._can_descend and member.is_traced and not member.follows_shim and self._has_own_shim(member)

    def _has_own_shim(self, member: Member) -> bool:
        """Return True if all that is exec'ed into MEMBER descends from a shim of its own; the containers of a pod share one."""
        return member.owns_shim and not any(
            other.shim == member.shim for other in self._members.values() if other is not member
        )

    def _list_threads(self, member: Member) -> set[int]:
        pids = following.list_members(member.group, tools=False)
        if member.follows_shim and member.shim is not None:
            pids.add(member.shim)
        return {tid for pid in pids for tid in processes.read_threads(pid)}

    def _judge_group(self, member: Member, now_s: float) -> None:
        """Find out whether the group of MEMBER is a container's, as soon as it has a process."""
        has_id = find_engine_id(member.group) is not None
        # A group above those of containers has no process of its own.
        pids = list(cgroups.gen_pids(member.group) if has_id else cgroups.gen_own_pids(member.group))
        if not pids:
            return
        if not has_id and (is_container(member.group) or not may_start(member.group, pids)):
            del self._members[member.group]  # a monitor's, a service's, or a user's
            return
        source = self._sources.find(member.group, pids[0])
        if source is None and not has_id and now_s - member.since_s <= _UNKNOWN_S:
            return  # the runtime has not written its state yet
        if (source is None and not has_id) or not may_be_roots(pids[0]):
            # Its runtime may have been followed, and all that it has made.
            del self._members[member.group]
            self._left_out.append(member)
            return
        if not has_id:
            self._groups.forget_below(member.group)
        self._begin(member, source)

    def _begin(self, member: Member, source: Source | None) -> None:
        """Take on MEMBER, which is a container, and which SOURCE knows; or refuse it if it is one too many."""
        member.source = source
        self._last += 1
        member.number = self._last
        member.begun_ns = clocks.read(self._clock) or 0
        member.start = clocks.measure_offset(self._clock)
        if self.running >= self._rule.max_containers:
            # It is one too many if the rule means it, which may not be known yet.
            member.verdict = starts_log.REFUSED
            self._left_out.append(member)

    def _find_out(self, member: Member, now_s: float) -> None:
        """Find out who MEMBER is, and follow its shim when its program runs."""
        if member.first is None:
            self._find_first(member)
        self._decide(member, now_s)
        most_s = self._rule.max_time_s
        if member.verdict == starts_log.TRACED and most_s is not None and now_s - member.since_s > most_s:
            self._left_out.append(member)
            member.verdict = starts_log.OVER
            self._log.write(member.number, verdict=member.verdict, stopped=_TIME_IS_OVER)
        if self._awaits_shim(member):
            # Before its program runs, the shim starts nothing but the runtime and its helpers.
            comm = processes.read_comm(member.first) if member.first is not None else ""
            if comm and not is_runtimes(comm):
                member.follows_shim = True
                self._new_shims.append(member)

    def _find_first(self, member: Member) -> None:
        """Find the first process of MEMBER, which may have ended before it was seen in the group.

        Where it was born before the list took effect on its maker's processor, its birth is not in the trace.
        """
        member.first, _shim = following.find_starting(member.group, 0)
        if member.first is None and member.source is not None:
            member.first = member.source.read_first()
        if member.first is not None:
            member.tasks = describe_tasks(member.first)
            if member.first not in member.tids:
                member.tids.add(member.first)
                self._lists.add({member.first})
                self._log.write_threads(member.number, member.begun_ns, {member.first})

    def _decide(self, member: Member, now_s: float) -> None:
        """Find out which container MEMBER is, and whether the rule means it, if that is not known yet."""
        if member.is_decided:
            return
        found = identify(member.group, member.source) if member.source else None
        if found is None and now_s - member.since_s <= _UNKNOWN_S:
            return
        member.is_decided = True
        member.container = found.container if found else make_unknown(member.group)
        if member.verdict == starts_log.REFUSED:
            may_be_meant = found is None or not found.has_labels or self._matches(found.container)
            self.counts.refused += may_be_meant
            self.counts.unmeant += not may_be_meant
            self._set_verdict(member, starts_log.REFUSED if may_be_meant else starts_log.UNMEANT)
        elif found and self._rule.needs_labels and not found.has_labels:
            self._set_verdict(member, starts_log.UNDECIDED)
            self.counts.traced += 1
        elif self._matches(member.container):
            self._set_verdict(member, starts_log.TRACED)
            self.counts.traced += 1
        elif found is None:
            self._left_out.append(member)
            self._set_verdict(member, starts_log.UNMEANT)
            self.counts.missed += 1
        else:
            self._left_out.append(member)
            self._set_verdict(member, starts_log.UNMEANT)
            self.counts.unmeant += 1

    def _describe(self, member: Member) -> dict[str, Any]:
        """Return what the log has of MEMBER, with has_shim: True if all that is exec'ed into it descends from a shim that is followed."""
        return {**member.describe(), "has_shim": member.follows_shim or self._has_own_shim(member)}

    def _set_verdict(self, member: Member, verdict: str) -> None:
        member.verdict = verdict
        if member.source is not None:
            member.source = member.source.without_texts()  # a container may live for years
        self._log.write(member.number, **self._describe(member))
        if member.container is not None:
            self._latest.append({"id": member.container.id, "name": member.container.name, "verdict": verdict})

    def _write_lists(self) -> None:
        """Follow the shims, and leave out the containers, that this look has found."""
        self._add(self._new_shims)
        self._new_shims = []
        if self._lists.is_busy:
            return  # what was added is looked at again when it is in the list
        left_out, self._left_out = self._left_out, []
        for member in left_out if self._can_leave_out else ():
            tids = self._list_threads(member)
            self._lists.add(tids - member.untraced, NOTRACE_PIDS)
            member.untraced_rounds += 1
            if not tids <= member.untraced and member.untraced_rounds < _ROUNDS:
                self._left_out.append(member)  # what they make before the write is looked for when that is done
            member.untraced = tids

    def close(self) -> None:
        """End the watch and the log."""
        self._stack.close()
        self._log.close()
