# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pair entries and exits of system calls into calls: complete ones, calls that seccomp denied, and calls with one end in the trace."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Collection, Mapping, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bools, Ints

RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
"""Errors inside the kernel: a signal came, and the kernel makes the call again or turns the error into EINTR (include/linux/errno.h)."""
NEVER = -(1 << 62)
"""A time before all others."""
_MAX_ERRNO = 4095
_NO_SYSCALL = -1
# The first event of a child is an exit with result 0 from the call that its parent made.
_CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
# The exit of these calls has the number of execve in the new program's architecture, whatever number the entry has.
_EXECS = frozenset({"execve", "execveat"})
# These calls may return a negative number that is no error: fcntl (F_GETOWN) a process group that owns a descriptor, times the
# ticks of a clock. Each has one real error (fcntl(2), times(2)).
FCNTLS = frozenset({"fcntl", "fcntl64"})
_F_GETOWN = 9
_OWN_ERRORS = {"fcntl": errno.EBADF, "fcntl64": errno.EBADF, "times": errno.EFAULT}


class Events(NamedTuple):
    """Entries or exits of system calls, as columns with one entry per event."""

    tids: Ints
    times: Ints  # nanoseconds of the trace's clock
    numbers: Ints  # of the calls, with COMPAT added for 32-bit programs
    values: Ints  # of exits, the results; of entries of fcntl, the command; else 0
    is_own: Bools  # events of the system `syscalls`; `raw_syscalls` may have an event for the same end of the call


class Moments(NamedTuple):
    """Times at which threads were born or got a new program: no call of the thread is under way then, except an execve that ends."""

    tids: Ints
    times: Ints  # nanoseconds of the trace's clock


@dataclass(frozen=True)
class ThreadExec:
    """An execve by a thread other than the first of its process: the thread takes the number of the process."""

    time: int  # nanoseconds of the trace's clock
    old: int  # the thread's number before
    new: int  # the number of the process


@dataclass(frozen=True)
class Scope:
    """The events that a trace can be relied on to hold.

    If an exit has no entry, and the time since the thread's event before it begins before SINCE or overlaps a gap, the trace does not
    show whether the call had an entry. Times are nanoseconds of the trace's clock.
    """

    enters: Collection[int] | None = None  # numbers of the calls whose entries are recorded; None for all
    exits: Collection[int] | None = None  # numbers of the calls whose exits are recorded; None for all
    gap_starts: Ints | None = None  # in order
    gap_ends: Ints | None = None  # in order
    since: int = NEVER  # entries before this time may not be recorded


@dataclass(frozen=True)
class PairedCalls:
    """System calls, as columns with one entry per call, sorted by thread and then by the time of their ends."""

    tids: Ints  # threads, as the host numbers them, when the calls ended
    starters: Ints  # threads when the calls began: an execve may give its thread the number of the process
    numbers: Ints  # the kernel's, with COMPAT added for calls by 32-bit programs
    begins: Ints  # nanoseconds of the trace's clock; the time of the exit where the entry is not in the trace
    ends: Ints  # nanoseconds of the trace's clock; the time of the entry where the exit is not in the trace
    results: Ints  # the kernel's return values; 0 where the exit is not in the trace
    errors: Ints  # the numbers of the errors that the results mean, or 0
    has_begun: Bools  # the entry is in the trace
    has_ended: Bools  # the exit is in the trace
    denied: Bools  # seccomp answered the call, which never began
    continued: Bools  # the call began before the trace or in a gap; False where entries are not recorded
    unfinished: Bools  # the call did not end in the trace; False where exits are not recorded

    @property
    def measured(self) -> Bools:
        """Mask of the calls that have both ends in the trace."""
        return self.has_begun & self.has_ended

    @property
    def durations(self) -> Ints:
        """Durations of the calls in nanoseconds; 0 for a call with only one end in the trace."""
        return self.ends - self.begins

    @property
    def is_trap(self) -> Bools:
        """Mask of the calls that seccomp answered by SIGSYS.

        On x86, the result of such a call is its own number. Other architectures give the first argument, so the mask misses them.
        """
        found: Bools = self.denied & (self.results == self.numbers % COMPAT)
        return found

    def select(self, kept: Bools | Ints) -> PairedCalls:
        """Return the calls that KEPT, a mask or indices, selects."""
        return PairedCalls(**{name: column[kept] for name, column in vars(self).items()})


class _Ends(NamedTuple):
    """Entries and exits, sorted by STARTERS and then by time."""

    tids: Ints  # threads at this end of the call
    starters: Ints  # threads at the beginning of the call
    times: Ints
    numbers: Ints
    values: Ints
    is_exit: Bools


class _Spans(NamedTuple):
    """The events of each call, as columns with one entry per call."""

    first: Ints  # index of the call's first event among the _Ends
    last: Ints  # index of its last event, which may be the same
    has_begun: Bools  # the first event is an entry
    has_ended: Bools  # the last event is an exit


def pair_calls(
    enters: Events,
    exits: Events,
    names: Mapping[int, str],
    scope: Scope = Scope(),
    moments: Moments | None = None,
    thread_execs: Collection[ThreadExec] = (),
) -> PairedCalls:
    """Return the system calls that the events ENTERS and EXITS, each in any order, belong to; NAMES has the calls' names by number.

    An exit belongs to the event before it in its thread if that event is an entry with the same number. Two exceptions: an execve may
    exit with the number of another architecture, and rt_sigreturn exits with -1. An event without a partner makes a call, too. Such a
    call was under way when the trace began or ended, or its other event was lost. Or seccomp denied the call: the kernel asks seccomp
    before it records the entry, and records the exit even if seccomp denies the call.
    """
    execs = find_numbers(names, _EXECS)
    ordered = _order(enters, exits, execs, thread_execs)
    spans = _find_spans(ordered, execs)
    results = np.where(spans.has_ended, ordered.values[spans.last], 0)
    last_numbers, numbers = ordered.numbers[spans.last], ordered.numbers[spans.first]
    # A program may also call the number -1 itself, which fails with ENOSYS.
    is_return = spans.has_begun & spans.has_ended & (last_numbers == _NO_SYSCALL) & (numbers != _NO_SYSCALL)
    errors = _find_errors(results, numbers, ordered.values[spans.first], names)
    errors[is_return] = 0
    lone = np.flatnonzero(~spans.has_begun)
    # An execve that succeeded was not denied.
    is_denied = _find_denied(ordered, spans, scope, moments) & ~(np.isin(numbers[lone], execs) & (results[lone] == 0))
    has_entries = _is_recorded(numbers[lone], scope.enters)
    denied, continued, unfinished = (np.zeros(numbers.size, bool) for _column in range(3))
    denied[lone] = has_entries & is_denied
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
    # Without its entry, a return from a signal's handler has no number but -1, and is left out. So are the births of children.
    is_birth = (results[lone] == 0) & np.isin(numbers[lone], find_numbers(names, _CLONES))
    no_calls = lone[is_birth | (~denied[lone] & (numbers[lone] == _NO_SYSCALL))]
    if no_calls.size:
        found = found.select(np.delete(np.arange(numbers.size), no_calls))
    # The calls are sorted by starters. Where an exec has changed a thread's number, the order by tids differs.
    return found.select(np.lexsort((found.ends, found.tids))) if thread_execs else found


def _order(enters: Events, exits: Events, execs: list[int], thread_execs: Collection[ThreadExec]) -> _Ends:
    """Return ENTERS and EXITS in one table, with one event where both `syscalls` and `raw_syscalls` have the same end of a call."""
    starters = np.concatenate([enters.tids, _find_starters(exits, execs, thread_execs)])
    tids, times, numbers, values, is_own = (np.concatenate(pair) for pair in zip(enters, exits))
    is_exit = np.repeat([False, True], [enters.tids.size, exits.tids.size])
    order = np.lexsort((is_exit, times, starters))
    if is_own.any() and not is_own.all():
        order = order[~_find_copies(starters[order], numbers[order], is_exit[order], is_own[order])]
    return _Ends(*(column[order] for column in (tids, starters, times, numbers, values, is_exit)))


def _find_spans(ends: _Ends, execs: list[int]) -> _Spans:
    """Return the calls that ENDS belong to, by the places of their events in ENDS."""
    numbers, is_exit = ends.numbers, ends.is_exit
    is_exec = np.isin(numbers, execs)
    same_thread = ends.starters[1:] == ends.starters[:-1]
    same_call = (numbers[1:] == numbers[:-1]) | (numbers[1:] == _NO_SYSCALL) | (is_exec[1:] & is_exec[:-1])
    is_pair = np.zeros(numbers.size, bool)  # true at an exit directly behind its entry
    is_pair[1:] = is_exit[1:] & ~is_exit[:-1] & same_thread & same_call
    is_last = np.ones(numbers.size, bool)
    is_last[:-1] = ~is_pair[1:]
    last = np.flatnonzero(is_last)
    return _Spans(last - is_pair[last], last, is_pair[last] | ~is_exit[last], is_exit[last])


def _find_denied(ends: _Ends, spans: _Spans, scope: Scope, moments: Moments | None) -> Bools:
    """Return, for each call without an entry, True if the call had none: no event of its thread can be missing before it."""
    places = spans.last[~spans.has_begun]
    previous = np.maximum(places - 1, 0)
    is_same = (places > 0) & (ends.starters[previous] == ends.starters[places])
    before = np.where(is_same, ends.times[previous], NEVER)
    seen = _find_last_moments(moments, ends.starters[places], ends.times[places])
    # A thread makes one call at a time. If the previous event is an entry, its exit is missing, and other events may be missing, too.
    before = np.where(ends.is_exit[previous] | (seen > before), np.maximum(seen, before), NEVER)
    found: Bools = (before != NEVER) & (before >= scope.since) & ~_is_in_gap(before, ends.times[places], scope)
    return found


def _find_last_moments(moments: Moments | None, tids: Ints, times: Ints) -> Ints:
    """Return, for each of TIMES, the time of the last of MOMENTS of its thread (TIDS) before it; NEVER where there is none."""
    found = np.full(tids.size, NEVER)
    if moments is None or not tids.size:
        return found
    # Sort each thread's moments together with the wanted times. The last moment before each wanted time is then a running maximum.
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
    """Return, for each of EXITS, the thread that began the call, before an execve may have changed its number."""
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
    """Return a mask of the events of `syscalls` that stand beside the event of `raw_syscalls` for the same end of the same call."""
    is_copy = np.zeros(tids.size, bool)
    same = (tids[1:] == tids[:-1]) & (numbers[1:] == numbers[:-1]) & (is_exit[1:] == is_exit[:-1])
    is_copy[1:] |= same & is_own[1:] & ~is_own[:-1]
    is_copy[:-1] |= same & is_own[:-1] & ~is_own[1:]
    return is_copy


def _is_recorded(numbers: Ints, recorded: Collection[int] | None) -> Bools:
    found: Bools = np.ones(numbers.size, bool) if recorded is None else np.isin(numbers, list(recorded))
    return found


def _is_in_gap(starts: Ints, ends: Ints, scope: Scope) -> Bools:
    """Return a mask of the spans from STARTS to ENDS that overlap a gap of SCOPE."""
    if scope.gap_starts is None or scope.gap_ends is None or not scope.gap_ends.size:
        return np.zeros(starts.size, bool)
    nearest = np.searchsorted(scope.gap_ends, starts, side="right")
    is_there = nearest < scope.gap_ends.size
    begins = scope.gap_starts[np.minimum(nearest, scope.gap_ends.size - 1)]
    found: Bools = is_there & (begins < ends)
    return found


def _find_errors(results: Ints, numbers: Ints, entry_values: Ints, names: Mapping[int, str]) -> Ints:
    """Return the number of the error that each of RESULTS means, 0 for none; ENTRY_VALUES are the commands of fcntl."""
    errors: Ints = np.where((results < 0) & (results >= -_MAX_ERRNO), -results, 0)
    for number, name in names.items():
        if name in _OWN_ERRORS:
            special = np.flatnonzero((numbers == number) & (errors != 0) & (errors != _OWN_ERRORS[name]))
            if name in FCNTLS:
                special = special[entry_values[special] == _F_GETOWN]
            errors[special] = 0
    return errors


def find_numbers(names: Mapping[int, str], wanted: Collection[str]) -> list[int]:
    """Return the numbers in NAMES (number → name of a call) whose names are in WANTED."""
    return [number for number, name in names.items() if name in wanted]


def name_errno(number: int) -> str:
    """Return the name of error NUMBER, such as ENOENT, or of one of RESTARTS; 'errno N' when it has none."""
    return errno.errorcode.get(number) or RESTARTS.get(number) or f"errno {number}"
