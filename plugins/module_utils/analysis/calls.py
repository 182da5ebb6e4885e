# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From events of entry and exit to system calls, thread by thread, as `strace -f` would list them.

What differs from strace is listed in docs/calls.md.
Source: the kernel's entry code (syscall_trace_enter, syscall_exit_work) and kernel/seccomp.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Collection, Mapping, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT, CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bools, Ints

RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
"""Beyond what programs see: a signal came, and the kernel makes the call again, or turns this into EINTR (include/linux/errno.h)."""
NEVER = -(1 << 62)
"""A moment before all others."""
_RAW = "raw_syscalls:sys_"
_OWN = "syscalls:sys_"
_OWN_NUMBER = "__syscall_nr"
_MAX_ERRNO = 4095
_NO_SYSCALL = -1
_X32 = 1 << 30
# A child's first event is its exit, with 0, from the call that its parent made.
_CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
# Whatever their entry was called, their exit bears the number of the new program's execve.
_EXECS = frozenset({"execve", "execveat"})
# What these return may be below zero and no error: the owner of a descriptor if that is a process group, and the clock's ticks.
# Each has one error of its own (fcntl(2), times(2)).
_FCNTLS = frozenset({"fcntl", "fcntl64"})
_F_GETOWN = 9
_OWN_ERRORS = {"fcntl": errno.EBADF, "fcntl64": errno.EBADF, "times": errno.EFAULT}


class Events(NamedTuple):
    """One entry per event in each column. VALUES are results of exits; of entries, what tells calls of one number apart.

    IS_OWN are those of the system `syscalls`, which may be of calls that `raw_syscalls` has, too.
    """

    tids: Ints
    times: Ints
    numbers: Ints
    values: Ints
    is_own: Bools


class Moments(NamedTuple):
    """Threads, and the times at which they were born or got a program: their next call, but for execve's end, had not begun by then."""

    tids: Ints
    times: Ints


@dataclass(frozen=True)
class ThreadExec:
    """At TIME thread OLD of process NEW got another program, and with that the number of the process's first thread."""

    time: int
    old: int
    new: int


@dataclass(frozen=True)
class Scope:
    """What of a trace tells the whole of a call.

    ENTERS and EXITS are the numbers of calls whose events of that end are recorded, None for all. Of an exit without its entry that
    is nearer to a gap (GAP_STARTS to GAP_ENDS, in order), or earlier than SINCE, nobody knows whether there was an entry.
    """

    enters: Collection[int] | None = None
    exits: Collection[int] | None = None
    gap_starts: Ints | None = None
    gap_ends: Ints | None = None
    since: int = NEVER


@dataclass(frozen=True)
class PairedCalls:
    """System calls, one entry per call in each column, thread by thread and each thread's in the order of their ends.

    TIDS are the threads (of the host) that the calls were of when they ended, STARTERS when they began: an execve gives its thread the
    number of the process. NUMBERS are the kernel's, with COMPAT added where a 32-bit program made the call. BEGINS and ENDS are nanoseconds
    of the trace's clock, for an end that is not in the trace the other one. RESULTS are what the kernel returned, ERRORS the number of the
    error that this is, or 0. HAS_BEGUN and HAS_ENDED tell what of the call is in the trace. DENIED calls never began: seccomp answered them.
    CONTINUED are those that began before the trace, or in a gap of it, UNFINISHED those that did not end in it, as far as such events are
    recorded at all.
    """

    tids: Ints
    starters: Ints
    numbers: Ints
    begins: Ints
    ends: Ints
    results: Ints
    errors: Ints
    has_begun: Bools
    has_ended: Bools
    denied: Bools
    continued: Bools
    unfinished: Bools

    @property
    def measured(self) -> Bools:
        """Which calls have both ends in the trace."""
        return self.has_begun & self.has_ended

    @property
    def durations(self) -> Ints:
        """Nanoseconds that calls took; 0 where one end is not in the trace."""
        return self.ends - self.begins

    @property
    def is_trap(self) -> Bools:
        """Which calls seccomp answered by SIGSYS: their result is their own number. (So it is on x86; others give the first argument.)"""
        found: Bools = self.denied & (self.results == self.numbers % COMPAT)
        return found

    def select(self, kept: Bools | Ints) -> PairedCalls:
        """The calls that KEPT means."""
        return PairedCalls(**{name: column[kept] for name, column in vars(self).items()})


def name_errno(number: int) -> str:
    """The name of error NUMBER."""
    return errno.errorcode.get(number) or RESTARTS.get(number) or f"errno {number}"


def read_names(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Names of system calls by number, those of 32-bit programs by COMPAT and their number, as MANIFEST has them."""
    names = {int(number): name for number, name in (manifest.get("syscalls") or {}).items()}
    names.update({int(number) + COMPAT: name for number, name in (manifest.get("compat_syscalls") or {}).items()})
    if manifest.get("arch") == "x86_64":
        # The third way in, which few kernels have: below 512 its numbers are the usual ones and a bit.
        names.update({number + _X32: f"{name} (x32)" for number, name in names.items() if number < 512})
    return names


def name_call(number: int, names: Mapping[int, str]) -> str:
    """The name of call NUMBER, or as strace writes a number that is none: programs may make up any."""
    return names.get(number) or f"syscall_{(number % COMPAT if number >= COMPAT else number) & (1 << 64) - 1:#x}"


def find_numbers(names: Mapping[int, str], wanted: Collection[str]) -> list[int]:
    """The numbers of those calls in NAMES whose name is one of WANTED."""
    return [number for number, name in names.items() if name in wanted]


class CallEvents:
    """The entries and exits of a trace. Feed it all batches, then `pair` them.

    NAMES are those of system calls by number; FORMATS the trace's. SPECIFICATION is what was asked for, EARLIER_SYSCALLS what was before that,
    as the manifest has them.
    """

    def __init__(
        self,
        formats: Mapping[str, EventFormat],
        names: Mapping[int, str],
        specification: Mapping[str, Any] | None,
        earlier_syscalls: Collection[Mapping[str, Any]] = (),
    ) -> None:
        self._names = names
        self._specification = specification
        self._selections = [(specification or {}).get("syscalls") or {}, *earlier_syscalls]
        self._fcntls = sorted({number % COMPAT for number in find_numbers(names, _FCNTLS)})
        self._raw = {end: formats.get(f"{_RAW}{end}") for end in ("enter", "exit")}
        self._own = {end: _list_own(formats, end, specification) for end in ("enter", "exit")}
        fcntl = formats.get(f"{_OWN}enter_fcntl")
        self._fcntl_command = fcntl.fields.get("cmd") if fcntl else None
        self._exec = formats.get("sched:sched_process_exec")
        self._newtask = formats.get("task:task_newtask")
        self._parts: dict[str, list[Events]] = {"enter": [], "exit": []}
        self._moments: list[Moments] = []
        self._thread_execs: list[ThreadExec] = []
        self._last_times: dict[int, int] = {}
        self._first_times: dict[int, int] = {}
        self._gaps: list[tuple[int, int]] = []

    def feed(self, batch: Batch) -> None:
        """Take the events of BATCH into account."""
        if not batch.times.size:
            return
        last = self._last_times.get(batch.cpu, NEVER)
        for gap in batch.gaps.tolist():
            self._gaps.append((int(batch.times[gap - 1]) if gap else last, int(batch.times[gap])))
        self._last_times[batch.cpu] = int(batch.times[-1])
        self._first_times.setdefault(batch.cpu, int(batch.times[0]))
        for end, parts in self._parts.items():
            raw = self._raw[end]
            if raw:
                parts.append(self._read(batch, batch.select(raw.id), raw, end))
            if self._own[end]:
                known = self._own[end][0]
                events = np.flatnonzero(np.isin(batch.types, [event.id for event in self._own[end]]))
                parts.append(self._read(batch, events, known, end))
        if self._newtask:
            events = batch.select(self._newtask.id)
            self._moments.append(Moments(batch.integers(events, self._newtask.field("pid")), batch.times[events]))
        if self._exec and "old_pid" in self._exec.fields:
            events = batch.select(self._exec.id)
            self._moments.append(Moments(batch.tids[events], batch.times[events]))
            old, new = (batch.integers(events, self._exec.field(name)) for name in ("old_pid", "pid"))
            moved = old != new
            rows = zip(batch.times[events][moved].tolist(), old[moved].tolist(), new[moved].tolist())
            self._thread_execs += [ThreadExec(*row) for row in rows]

    def _read(self, batch: Batch, events: Ints, known: EventFormat, end: str) -> Events:
        is_own = known.system == "syscalls"
        # An int in the kernel, whatever the event has room for.
        numbers = batch.integers(events, known.field(_OWN_NUMBER if is_own else "id")).astype(np.int32).astype(np.int64)
        if end == "exit":
            values = batch.integers(events, known.field("ret"))
        else:
            values = np.zeros(events.size, np.int64)
            command = self._fcntl_command if is_own else _find_second_argument(known)
            if command and self._fcntls:
                special = np.flatnonzero(np.isin(numbers, self._fcntls))
                values[special] = batch.integers(events[special], command) & 0xFFFFFFFF
        return Events(batch.tids[events], batch.times[events], numbers, values, np.full(events.size, is_own))

    def pair(
        self, compat: CompatTasks, *, is_complete: bool, is_damaged: bool = False, since: int = NEVER
    ) -> PairedCalls:
        """The calls that were asked for. COMPAT knows which threads ran 32-bit programs when.

        Where the trace IS_COMPLETE no CPU's begin is a gap of it; what came before SINCE was recorded by other settings. Where it IS_DAMAGED
        events may be missing or wrong anywhere.
        """
        enters, exits = _join(self._parts["enter"]), _join(self._parts["exit"])
        for events in (enters, exits):
            compat.mark(events.tids, events.times, events.numbers)
        gaps = list(self._gaps)
        if not is_complete:
            gaps += [(NEVER, first) for first in self._first_times.values()]
        if is_damaged:
            gaps.append((NEVER, -NEVER))
        gap_starts, gap_ends = _merge_gaps(gaps)
        if enters.times.size:
            since = max(since, int(enters.times.min()))
        wanted = self._specification or {}
        is_raw = wanted.get("syscalls") is not None if "syscalls" in wanted else self._raw["enter"] is not None
        recorded = []
        for events in (enters, exits):
            is_whole = (is_raw or bool((~events.is_own).any())) and not wanted.get("errors_only")
            recorded.append(None if is_whole else np.unique(events.numbers[events.is_own]).tolist())
        scope = Scope(
            enters=recorded[0],
            exits=recorded[1],
            gap_starts=gap_starts,
            gap_ends=gap_ends,
            since=since,
        )
        moments = Moments(*map(np.concatenate, zip(*self._moments))) if self._moments else None
        calls = pair_calls(enters, exits, self._names, scope, moments, self._thread_execs)
        selected = self._list_selected()
        if not selected:
            return calls
        own = np.concatenate([events.numbers[events.is_own] for events in (enters, exits)])
        return calls.select(np.isin(calls.numbers, [*selected, *np.unique(own).tolist()]))

    def _list_selected(self) -> list[int]:
        """Numbers of the calls that were asked for, now or earlier, none for all: the kernel's filter knows numbers only, and takes two
        architectures' for one another."""
        numbers: list[int] = []
        for selection in self._selections:
            native, compat = selection.get("native") or [], selection.get("compat") or []
            if not native and not compat:
                return []
            numbers += [*native, *(number + COMPAT for number in compat)]
        return numbers


def _list_own(
    formats: Mapping[str, EventFormat], end: str, specification: Mapping[str, Any] | None
) -> list[EventFormat]:
    """The events `syscalls:sys_END_…` that somebody asked for: others are there for what else they tell."""
    asked = None if specification is None else specification.get("events") or ()
    found = [
        known
        for name, known in formats.items()
        if name.startswith(f"{_OWN}{end}_") and _OWN_NUMBER in known.fields and (asked is None or name in asked)
    ]
    # The kernel makes all of them from one pattern; what does not follow it cannot be read with the rest.
    return [known for known in found if _describe_place(known) == _describe_place(found[0])]


def _describe_place(known: EventFormat) -> tuple[Field | None, Field | None]:
    return known.fields.get(_OWN_NUMBER), known.fields.get("ret")


def _find_second_argument(known: EventFormat) -> Field | None:
    arguments = known.fields.get("args")
    return Field("", arguments.offset + 8, 8, False, False, False) if arguments and arguments.size >= 16 else None


def _join(parts: list[Events]) -> Events:
    empty = np.zeros(0, np.int64)
    if not parts:
        return Events(empty, empty, empty, empty, np.zeros(0, bool))
    return Events(*(np.concatenate(column) for column in zip(*parts)))


def _merge_gaps(gaps: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    """Starts and ends of the spans that GAPS cover, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(gaps):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return np.array([gap[0] for gap in merged], np.int64), np.array([gap[1] for gap in merged], np.int64)


def pair_calls(
    enters: Events,
    exits: Events,
    names: Mapping[int, str],
    scope: Scope = Scope(),
    moments: Moments | None = None,
    thread_execs: Collection[ThreadExec] = (),
) -> PairedCalls:
    """Calls from the events of entry and exit, in whatever order.

    An exit belongs to the event before it in its thread if that is the entry of the same call, or both are of calls that bring another
    program, maybe of another architecture. The exit of rt_sigreturn has the number -1. What finds no partner is a call, too: it was
    under way when the trace began or ended, or its partner was lost; or it was denied, for the kernel asks seccomp before it tells of an entry,
    and tells of the exit all the same.
    """
    execs = find_numbers(names, _EXECS)
    starters = np.concatenate([enters.tids, _find_starters(exits, execs, thread_execs)])
    times = np.concatenate([enters.times, exits.times])
    numbers = np.concatenate([enters.numbers, exits.numbers])
    is_exit = np.repeat([False, True], [enters.tids.size, exits.tids.size])
    order = np.lexsort((is_exit, times, starters))
    is_own = np.concatenate([enters.is_own, exits.is_own])
    if is_own.any() and not is_own.all():
        order = order[~_find_copies(starters[order], numbers[order], is_exit[order], is_own[order])]
    starters, times, numbers, is_exit = starters[order], times[order], numbers[order], is_exit[order]
    # One entry per event from here on, thread by thread; after that one per call, which is where its last event is.
    is_exec = np.isin(numbers, execs)
    same_thread = starters[1:] == starters[:-1]
    same_call = (numbers[1:] == numbers[:-1]) | (numbers[1:] == _NO_SYSCALL) | (is_exec[1:] & is_exec[:-1])
    is_pair = np.zeros(starters.size, bool)  # true at an exit whose entry stands before it
    is_pair[1:] = is_exit[1:] & ~is_exit[:-1] & same_thread & same_call
    is_last = np.ones(starters.size, bool)
    is_last[:-1] = ~is_pair[1:]
    calls = np.flatnonzero(is_last)
    has_begun, has_ended = is_pair[calls] | ~is_exit[calls], is_exit[calls]
    begun = calls - is_pair[calls]
    begins, ends = times[begun], times[calls]
    lone = np.flatnonzero(~has_begun)
    previous = np.maximum(calls[lone] - 1, 0)
    before = np.where((calls[lone] > 0) & (starters[previous] == starters[calls[lone]]), times[previous], NEVER)
    seen = _find_last_moments(moments, starters[calls[lone]], ends[lone])
    # Behind an entry without its exit something is missing: in one thread there is no other call between the two.
    before = np.where(is_exit[previous] | (seen > before), np.maximum(seen, before), NEVER)
    values = np.concatenate([enters.values, exits.values])
    results = np.where(has_ended, values[order[calls]], 0)
    entry_values = values[order[begun]]
    tids = np.concatenate([enters.tids, exits.tids])[order[calls]]
    is_return = is_pair[calls] & (numbers[calls] == _NO_SYSCALL)
    starters, numbers = starters[calls], numbers[begun]
    is_return &= numbers != _NO_SYSCALL  # a program may call -1, and gets ENOSYS
    errors = _find_errors(results, numbers, entry_values, names)
    errors[is_return] = 0
    has_entries = _is_recorded(numbers[lone], scope.enters)
    is_known = (before != NEVER) & (before >= scope.since) & ~_is_in_gap(before, ends[lone], scope)
    denied, continued = np.zeros(calls.size, bool), np.zeros(calls.size, bool)
    is_known &= ~(np.isin(numbers[lone], execs) & (results[lone] == 0))  # who got a program was not denied it
    denied[lone] = has_entries & is_known
    continued[lone] = has_entries & ~is_known
    open_ended = np.flatnonzero(~has_ended)
    unfinished = np.zeros(calls.size, bool)
    unfinished[open_ended] = _is_recorded(numbers[open_ended], scope.exits)
    # Of a return from a signal's handler without its entry nobody knows the number.
    is_birth = (results[lone] == 0) & np.isin(numbers[lone], find_numbers(names, _CLONES))
    no_calls = lone[is_birth | (~denied[lone] & (numbers[lone] == _NO_SYSCALL))]
    found = PairedCalls(
        tids=tids,
        starters=starters,
        numbers=numbers,
        begins=begins,
        ends=ends,
        results=results,
        errors=errors,
        has_begun=has_begun,
        has_ended=has_ended,
        denied=denied,
        continued=continued,
        unfinished=unfinished,
    )
    if no_calls.size:
        found = found.select(np.delete(np.arange(calls.size), no_calls))
    # Who got another number by an exec belongs among the calls of that.
    return found.select(np.lexsort((found.ends, found.tids))) if thread_execs else found


def _find_last_moments(moments: Moments | None, tids: Ints, times: Ints) -> Ints:
    """For each of TIMES the last of the MOMENTS of the thread in TIDS before it; NEVER where there is none."""
    found = np.full(tids.size, NEVER)
    if moments is None or not tids.size:
        return found
    # One line for each thread: its moments, and the times that are asked for.
    wanted = np.isin(moments.tids, tids)
    all_tids = np.concatenate([moments.tids[wanted], tids])
    all_times = np.concatenate([moments.times[wanted], times])
    is_asked = np.repeat([False, True], [all_tids.size - tids.size, tids.size])
    order = np.lexsort((is_asked, all_times, all_tids))
    places = np.maximum.accumulate(np.where(is_asked[order], -1, np.arange(order.size)))
    last = order[places]
    is_mine = (places >= 0) & is_asked[order] & (all_tids[last] == all_tids[order])
    found[order[is_mine] - (order.size - tids.size)] = all_times[last[is_mine]]
    return found


def _find_starters(exits: Events, execs: list[int], thread_execs: Collection[ThreadExec]) -> Ints:
    """The thread that the call of each of EXITS was begun by."""
    starters = exits.tids
    if thread_execs:
        starters = starters.copy()
        is_exec = np.isin(exits.numbers, execs)
        for moved in thread_execs:
            for is_own in (False, True):
                mine = is_exec & (exits.is_own == is_own) & (exits.tids == moved.new) & (exits.times >= moved.time)
                ends = np.flatnonzero(mine)
                if ends.size:
                    starters[ends[np.argmin(exits.times[ends])]] = moved.old
    return starters


def _find_copies(tids: Ints, numbers: Ints, is_exit: Bools, is_own: Bools) -> Bools:
    """Which events of the system `syscalls` stand beside the one of `raw_syscalls` for the same end of the same call."""
    is_copy = np.zeros(tids.size, bool)
    same = (tids[1:] == tids[:-1]) & (numbers[1:] == numbers[:-1]) & (is_exit[1:] == is_exit[:-1])
    is_copy[1:] |= same & is_own[1:] & ~is_own[:-1]
    is_copy[:-1] |= same & is_own[:-1] & ~is_own[1:]
    return is_copy


def _is_recorded(numbers: Ints, recorded: Collection[int] | None) -> Bools:
    found: Bools = np.ones(numbers.size, bool) if recorded is None else np.isin(numbers, list(recorded))
    return found


def _is_in_gap(starts: Ints, ends: Ints, scope: Scope) -> Bools:
    """Which of the spans from STARTS to ENDS have a part of a gap in them."""
    if scope.gap_starts is None or scope.gap_ends is None or not scope.gap_ends.size:
        return np.zeros(starts.size, bool)
    nearest = np.searchsorted(scope.gap_ends, starts, side="right")
    is_there = nearest < scope.gap_ends.size
    begins = scope.gap_starts[np.minimum(nearest, scope.gap_ends.size - 1)]
    found: Bools = is_there & (begins < ends)
    return found


def _find_errors(results: Ints, numbers: Ints, entry_values: Ints, names: Mapping[int, str]) -> Ints:
    """The error that each of RESULTS is, 0 for none."""
    errors: Ints = np.where((results < 0) & (results >= -_MAX_ERRNO), -results, 0)
    for number, name in names.items():
        if name in _OWN_ERRORS:
            special = np.flatnonzero((numbers == number) & (errors != 0) & (errors != _OWN_ERRORS[name]))
            if name in _FCNTLS:
                special = special[entry_values[special] == _F_GETOWN]
            errors[special] = 0
    return errors
