# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a trace to a table: per process and system call how often, with which errors, how long."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Collection, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.call_paths import PathEvents
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT, CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch, Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import FunctionCounts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.tasks import TaskNames

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bools, Ints

_SYS_ENTER = "raw_syscalls:sys_enter"
_SYS_EXIT = "raw_syscalls:sys_exit"
_MAX_ERRNO = 4095
_NO_SYSCALL = -1
_MAX_PATHS = 10  # of a row; a table is to be read
# A child's first event is its exit, with 0, from the call that its parent made.
_CLONES = frozenset({"clone", "clone3", "fork", "vfork"})
# Whatever their entry was called, their exit bears the number of the new program's execve.
_EXECS = frozenset({"execve", "execveat"})
# Beyond what programs see: the kernel restarts these calls, or turns them into EINTR (include/linux/errno.h).
_RESTARTS = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}


@dataclass(frozen=True)
class PathUse:
    """How many calls were given PATH, and how many of them ended with which error."""

    path: str
    calls: int
    errors: dict[str, int]


@dataclass(frozen=True)
class SyscallRow:
    """The use of one system call by a process (PIDS has its number), or by all processes of one name.

    CALLS counts calls that began or ended in the trace, MEASURED those that did both; only these have a time. UNFINISHED are those that
    did not end in it, CONTINUED those that did not begin in it: of a trace that is fetched again and again a call that waits is one of
    the former in one capture and of the latter in a later one.
    """

    name: str
    pids: list[int]
    container_pid: int | None
    syscall: str
    calls: int
    errors: dict[str, int]
    measured: int
    total_ns: int
    p99_ns: int | None
    unfinished: int = 0
    continued: int = 0  # 0 also where no beginnings are recorded, as with errors_only
    compat: bool = False  # a 32-bit program's
    paths: list[PathUse] = field(default_factory=list)  # where they are recorded, those that most calls fail on first

    @property
    def failures(self) -> int:
        """How many calls ended with an error."""
        return sum(self.errors.values())


@dataclass(frozen=True)
class TraceTable:
    """A trace's rows by process, and by name for all processes of a name; most failures first, then most calls.

    Times are nanoseconds of the trace's clock. COUNTS has the number of all events by system:name,
    FUNCTIONS that of calls of the kernel's functions, where these were traced.
    """

    processes: list[SyscallRow]
    programs: list[SyscallRow]
    events: int
    first_time: int
    last_time: int
    counts: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Calls:
    """One entry per call in each column; DURATIONS and RESULTS count where MEASURED and HAS_ENDED say so."""

    tids: Ints
    numbers: Ints
    times: Ints
    durations: Ints
    results: Ints
    has_ended: Bools
    measured: Bools
    paths: Ints  # numbers of PathEvents.names, -1 for none


def name_errno(number: int) -> str:
    """The name of error NUMBER."""
    return errno.errorcode.get(number) or _RESTARTS.get(number) or f"errno {number}"


def summarize(trace: Trace, manifest: dict[str, Any], min_latency_ns: int = 0) -> TraceTable:
    """The table of TRACE; MANIFEST names its system calls and its tasks. Calls shorter than MIN_LATENCY_NS, or of which
    only one end is in the trace, are left out where that is not 0."""
    first_tasks = manifest.get("first_tasks") or []
    last_tasks = manifest.get("tasks") or []
    names = TaskNames([*first_tasks, *last_tasks], trace.head.cmdlines)
    compat = CompatTasks(first_tasks, last_tasks)
    functions = FunctionCounts()
    path_events = PathEvents(trace.formats)
    events: Counter[int] = Counter()
    enters: list[list[Ints]] = []
    exits: list[list[Ints]] = []
    first, last = 1 << 62, 0
    for batch in trace.gen_batches():
        if not batch.times.size:
            continue
        events.update(dict(zip(*(column.tolist() for column in np.unique(batch.types, return_counts=True)))))
        first, last = min(first, int(batch.times.min())), max(last, int(batch.times.max()))
        names.feed(batch, trace.formats)
        compat.feed(batch, trace.formats)
        functions.feed(batch, trace.formats)
        path_events.feed(batch)
        enters.append(_columns(batch, trace, _SYS_ENTER, None))
        exits.append(_columns(batch, trace, _SYS_EXIT, "ret"))
    names.finish()
    compat.finish()
    all_enters, all_exits = _join(enters), _join(exits)
    for tids, times, numbers, _values in (all_enters, all_exits):
        compat.mark(tids, times, numbers)
    syscalls = _read_names(manifest)
    calls = pair_calls(all_enters, all_exits, execs=[number for number, name in syscalls.items() if name in _EXECS])
    calls = replace(calls, paths=path_events.find(calls.tids, calls.times, calls.numbers, syscalls))
    calls = _select(calls, ~_find_births(calls, syscalls) & _find_wanted(calls, manifest))
    if min_latency_ns:
        calls = _select(calls, calls.measured & (calls.durations >= min_latency_ns))
    pids, name_numbers, known_names = _identify(calls, names)
    path_names = path_events.names
    has_entries = not (manifest.get("specification") or {}).get("errors_only")
    tables = []
    for first_key in (pids, np.zeros_like(pids)):
        rows = []
        for members in _gen_groups([first_key, name_numbers, calls.numbers]):
            row = _make_row(calls, members, pids, known_names[name_numbers[members[0]]], names, syscalls, path_names)
            rows.append(row if has_entries else replace(row, continued=0))
        tables.append(sorted(rows, key=lambda row: (-row.failures, -row.calls, row.name, row.pids, row.syscall)))
    by_number = {one.id: name for name, one in trace.formats.items()}
    counts = {by_number.get(number, f"event {number}"): count for number, count in sorted(events.items())}
    called = functions.names(trace.head.kallsyms)
    return TraceTable(tables[0], tables[1], sum(events.values()), first if events else 0, last, counts, called)


def _read_names(manifest: dict[str, Any]) -> dict[int, str]:
    """Names of system calls by number, those of 32-bit programs by COMPAT and their number."""
    names = {int(number): name for number, name in (manifest.get("syscalls") or {}).items()}
    names.update({int(number) + COMPAT: name for number, name in (manifest.get("compat_syscalls") or {}).items()})
    return names


def _find_wanted(calls: _Calls, manifest: dict[str, Any]) -> Bools:
    """Which calls were asked for, now or earlier: the kernel's filter knows numbers only, and takes two architectures' for one another."""
    numbers: list[int] = []
    for wanted in ((manifest.get("specification") or {}).get("syscalls") or {}, *manifest.get("earlier_syscalls", [])):
        native, compat = wanted.get("native") or [], wanted.get("compat") or []
        if not native and not compat:
            return np.ones(calls.numbers.size, bool)
        numbers += [*native, *(number + COMPAT for number in compat)]
    kept: Bools = np.isin(calls.numbers, numbers)
    return kept


def _select(calls: _Calls, kept: Bools) -> _Calls:
    return _Calls(**{name: column[kept] for name, column in vars(calls).items()})


def _find_births(calls: _Calls, syscalls: dict[int, str]) -> Bools:
    clones = [number for number, name in syscalls.items() if name in _CLONES]
    births: Bools = np.isin(calls.numbers, clones) & calls.has_ended & ~calls.measured & (calls.results == 0)
    return births


def _columns(batch: Batch, trace: Trace, event: str, value: str | None) -> list[Ints]:
    """Thread, time, system call and VALUE (a field, or zeros) of all events called EVENT."""
    known = trace.formats.get(event)
    events = batch.select(known.id) if known else np.zeros(0, np.int64)
    if known is None or not events.size:
        return [np.zeros(0, np.int64)] * 4
    numbers = batch.integers(events, known.field("id"))
    values = batch.integers(events, known.field(value)) if value else np.zeros(events.size, np.int64)
    return [batch.tids[events], batch.times[events], numbers, values]


def _join(parts: list[list[Ints]]) -> list[Ints]:
    if not parts:
        return [np.zeros(0, np.int64)] * 4
    return [np.concatenate(column) for column in zip(*parts)]


def pair_calls(enters: list[Ints], exits: list[Ints], execs: Collection[int] = ()) -> _Calls:
    """Calls from the events of entry and exit (each: threads, times, numbers, results).

    An exit belongs to the event before it in its thread if that is the entry of the same call, or both are of EXECS (the
    numbers of all calls that bring another program, maybe of another architecture). What finds no partner is
    a call, too: it was under way when the trace began or ended, or its partner was lost. The exit of rt_sigreturn has the
    number -1 and the registers of what the signal had interrupted, so it is no result.
    """
    tids, times, numbers, results = (np.concatenate(pair) for pair in zip(enters, exits))
    is_exit = np.concatenate([np.zeros(enters[0].size, bool), np.ones(exits[0].size, bool)])
    order = np.lexsort((is_exit, times, tids))
    tids, times, numbers, results, is_exit = (column[order] for column in (tids, times, numbers, results, is_exit))
    is_pair = np.zeros(tids.size, bool)  # true at an exit whose entry stands before it
    is_return = is_exit & (numbers == _NO_SYSCALL)
    is_exec = np.isin(numbers, list(execs))
    is_same = (numbers[1:] == numbers[:-1]) | is_return[1:] | (is_exec[1:] & is_exec[:-1])
    is_pair[1:] = is_exit[1:] & ~is_exit[:-1] & (tids[1:] == tids[:-1]) & is_same
    numbers[1:] = np.where(is_pair[1:], numbers[:-1], numbers[1:])
    results = np.where(is_return, 0, results)
    has_partner = np.zeros(tids.size, bool)
    has_partner[:-1] = is_pair[1:]
    is_call = (is_exit & (numbers != _NO_SYSCALL)) | (~is_exit & ~has_partner)
    durations = np.zeros(tids.size, np.int64)
    durations[1:] = times[1:] - times[:-1]
    return _Calls(
        tids=tids[is_call],
        numbers=numbers[is_call],
        times=times[is_call],
        durations=durations[is_call],
        results=results[is_call],
        has_ended=is_exit[is_call],
        measured=is_pair[is_call],
        paths=np.full(int(is_call.sum()), -1, np.int64),
    )


def _gen_groups(keys: list[Ints]) -> Iterator[Ints]:
    """Indices of the entries that are equal in all KEYS, group by group."""
    order = np.lexsort(keys[::-1])
    if not order.size:
        return
    is_first = np.zeros(order.size, bool)
    for key in keys:
        column = key[order]
        is_first[1:] |= column[1:] != column[:-1]
    yield from np.split(order, np.flatnonzero(is_first))


def _make_row(
    calls: _Calls,
    members: Ints,
    pids: Ints,
    name: str,
    names: TaskNames,
    syscalls: dict[int, str],
    path_names: list[str],
) -> SyscallRow:
    number = int(calls.numbers[members[0]])
    results = calls.results[members]
    failed = calls.has_ended[members] & (results < 0) & (results >= -_MAX_ERRNO)
    durations = calls.durations[members][calls.measured[members]]
    own_pids = np.unique(pids[members]).tolist()
    return SyscallRow(
        name=name,
        pids=own_pids,
        container_pid=names.find_container_pid(own_pids[0]) if len(own_pids) == 1 else None,
        syscall=syscalls.get(number, f"syscall {number % COMPAT}"),
        calls=int(members.size),
        errors=dict(Counter(name_errno(-value) for value in results[failed].tolist()).most_common()),
        measured=int(durations.size),
        total_ns=int(durations.sum()),
        p99_ns=int(np.percentile(durations, 99)) if durations.size else None,
        unfinished=int((~calls.has_ended[members]).sum()),
        continued=int((calls.has_ended[members] & ~calls.measured[members]).sum()),
        compat=number >= COMPAT,
        paths=_list_paths(calls.paths[members], np.where(failed, results, 0), path_names),
    )


def _list_paths(paths: Ints, results: Ints, names: list[str]) -> list[PathUse]:
    """The use of each of PATHS (numbers of NAMES), one entry per call; RESULTS are errors, or 0."""
    is_known = paths >= 0
    if not is_known.any():
        return []
    uses: dict[int, Counter[int]] = {}
    pairs, counts = np.unique(np.stack([paths[is_known], results[is_known]]), axis=1, return_counts=True)
    for path, result, count in zip(*pairs.tolist(), counts.tolist()):
        uses.setdefault(path, Counter())[result] += count
    rows = [
        PathUse(
            names[path],
            sum(use.values()),
            {name_errno(-result): count for result, count in use.most_common() if result},
        )
        for path, use in uses.items()
    ]
    return sorted(rows, key=lambda row: (-sum(row.errors.values()), -row.calls, row.path))[:_MAX_PATHS]


def _identify(calls: _Calls, names: TaskNames) -> tuple[Ints, Ints, list[str]]:
    """Per call its process and the number of its process's name; and the names."""
    pids = np.zeros(calls.tids.size, np.int64)
    name_numbers = np.zeros(calls.tids.size, np.int64)
    known: dict[str, int] = {}
    for tid in np.unique(calls.tids).tolist():
        # Calls are ordered by thread and time, so each thread's are one slice, cut where its name changed.
        start, end = np.searchsorted(calls.tids, [tid, tid + 1])
        cuts = np.searchsorted(calls.times[start:end], names.list_renames(tid)) + start
        bounds = [int(start), *cuts.tolist(), int(end)]
        pids[start:end] = names.find_process(tid)
        for first, last in zip(bounds, bounds[1:]):
            if first < last:
                name = names.find_name(tid, int(calls.times[first]))
                name_numbers[first:last] = known.setdefault(name, len(known))
    return pids, name_numbers, list(known)
