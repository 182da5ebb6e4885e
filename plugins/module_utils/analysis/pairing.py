# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pair entries and exits of system calls: whole calls, those that were denied, and what the trace has of others."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, Mapping, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bools, Ints

RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
"""Beyond what programs see: a signal came, and the kernel makes the call again, or turns this into EINTR (include/linux/errno.h)."""
NEVER = -(1 << 62)
"""A moment before all others."""
_MAX_ERRNO = 4095
_NO_SYSCALL = -1
# A child's first event is its exit, with 0, from the call that its parent made.
_CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
# Whatever their entry was called, their exit bears the number of the new program's execve.
_EXECS = frozenset({"execve", "execveat"})
# What these return may be below zero and no error: the owner of a descriptor if that is a process group, and the clock's ticks.
# Each has one error of its own (fcntl(2), times(2)).
FCNTLS = frozenset({"fcntl", "fcntl64"})
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


class _Ends(NamedTuple):
    """Events in the order of threads, and of times in each. TIDS are who a call was of at this end, STARTERS at its beginning."""

    tids: Ints
    starters: Ints
    times: Ints
    numbers: Ints
    values: Ints
    is_exit: Bools


class _Spans(NamedTuple):
    """One entry per call: the places of its first and its last event among the ends, and which of its ends those are."""

    first: Ints
    last: Ints
    has_begun: Bools
    has_ended: Bools


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
    ordered = _order(enters, exits, execs, thread_execs)
    spans = _find_spans(ordered, execs)
    results = np.where(spans.has_ended, ordered.values[spans.last], 0)
    last_numbers, numbers = ordered.numbers[spans.last], ordered.numbers[spans.first]
    # A program may call -1, and gets ENOSYS.
    is_return = spans.has_begun & spans.has_ended & (last_numbers == _NO_SYSCALL) & (numbers != _NO_SYSCALL)
    errors = _find_errors(results, numbers, ordered.values[spans.first], names)
    errors[is_return] = 0
    lone = np.flatnonzero(~spans.has_begun)
    is_denied = _find_denied(ordered, spans, scope, moments) & ~(np.isin(numbers[lone], execs) & (results[lone] == 0))
    has_entries = _is_recorded(numbers[lone], scope.enters)
    denied, continued, unfinished = (np.zeros(numbers.size, bool) for _column in range(3))
    denied[lone] = has_entries & is_denied  # who got a program was not denied it
    continued[lone] = has_entries & ~is_denied
    open_ended = np.flatnonzero(~spans.has_ended)
    unfinished[open_ended] = _is_recorded(numbers[open_ended], scope.exits)
    found = PairedCalls(
        tids=ordered.tids[spans.last],
        starters=ordered.starters[spans.last],
        numbers=numbers,
        begins=ordered.times[spans.first],
        ends=ordered.times[spans.last],
        results=results,
        errors=errors,
        has_begun=spans.has_begun,
        has_ended=spans.has_ended,
        denied=denied,
        continued=continued,
        unfinished=unfinished,
    )
    # Of a return from a signal's handler without its entry nobody knows the number.
    is_birth = (results[lone] == 0) & np.isin(numbers[lone], find_numbers(names, _CLONES))
    no_calls = lone[is_birth | (~denied[lone] & (numbers[lone] == _NO_SYSCALL))]
    if no_calls.size:
        found = found.select(np.delete(np.arange(numbers.size), no_calls))
    # Who got another number by an exec belongs among the calls of that.
    return found.select(np.lexsort((found.ends, found.tids))) if thread_execs else found


def _order(enters: Events, exits: Events, execs: list[int], thread_execs: Collection[ThreadExec]) -> _Ends:
    """ENTERS and EXITS as one, without events that two systems have of the same end of a call."""
    starters = np.concatenate([enters.tids, _find_starters(exits, execs, thread_execs)])
    tids, times, numbers, values, is_own = (np.concatenate(pair) for pair in zip(enters, exits))
    is_exit = np.repeat([False, True], [enters.tids.size, exits.tids.size])
    order = np.lexsort((is_exit, times, starters))
    if is_own.any() and not is_own.all():
        order = order[~_find_copies(starters[order], numbers[order], is_exit[order], is_own[order])]
    return _Ends(*(column[order] for column in (tids, starters, times, numbers, values, is_exit)))


def _find_spans(ends: _Ends, execs: list[int]) -> _Spans:
    """Where the calls that ENDS are of begin and end."""
    numbers, is_exit = ends.numbers, ends.is_exit
    is_exec = np.isin(numbers, execs)
    same_thread = ends.starters[1:] == ends.starters[:-1]
    same_call = (numbers[1:] == numbers[:-1]) | (numbers[1:] == _NO_SYSCALL) | (is_exec[1:] & is_exec[:-1])
    is_pair = np.zeros(numbers.size, bool)  # true at an exit whose entry stands before it
    is_pair[1:] = is_exit[1:] & ~is_exit[:-1] & same_thread & same_call
    is_last = np.ones(numbers.size, bool)
    is_last[:-1] = ~is_pair[1:]
    last = np.flatnonzero(is_last)
    return _Spans(last - is_pair[last], last, is_pair[last] | ~is_exit[last], is_exit[last])


def _find_denied(ends: _Ends, spans: _Spans, scope: Scope, moments: Moments | None) -> Bools:
    """For each call without its entry, whether that is because there was none: nothing is missing of its thread before it."""
    places = spans.last[~spans.has_begun]
    previous = np.maximum(places - 1, 0)
    is_same = (places > 0) & (ends.starters[previous] == ends.starters[places])
    before = np.where(is_same, ends.times[previous], NEVER)
    seen = _find_last_moments(moments, ends.starters[places], ends.times[places])
    # Behind an entry without its exit something is missing: in one thread there is no other call between the two.
    before = np.where(ends.is_exit[previous] | (seen > before), np.maximum(seen, before), NEVER)
    found: Bools = (before != NEVER) & (before >= scope.since) & ~_is_in_gap(before, ends.times[places], scope)
    return found


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
            if name in FCNTLS:
                special = special[entry_values[special] == _F_GETOWN]
            errors[special] = 0
    return errors


def find_numbers(names: Mapping[int, str], wanted: Collection[str]) -> list[int]:
    """The numbers of those calls in NAMES whose name is one of WANTED."""
    return [number for number, name in names.items() if name in wanted]


def name_errno(number: int) -> str:
    """The name of error NUMBER."""
    return errno.errorcode.get(number) or RESTARTS.get(number) or f"errno {number}"
