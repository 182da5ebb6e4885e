# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarize a trace as a table: number, errors and durations of system calls, per process and call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import name_call
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.pairing import RESTARTS, PairedCalls, name_errno
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.reading import Reading, read_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.tasks import UNKNOWN_NAME, Process, TaskNames

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Bools, Ints

_MAX_PATHS = 10  # of a row, for people have to read the table
_MAX_PIDS = 100  # of a row
_MAX_ROWS = 1000  # of a table; in a longer table, at most half of these rows stay as they are, and the rest is merged
_REST = 1 << 62  # no process, name or system call has this number
# Longer than the kernel lets a thread's name be, so no program has this name.
_OTHER_PROGRAMS = "(other programs)"
_OTHER_CALLS = "(other calls)"
# Answers of seccomp that are no errors; no error has these numbers.
_TRAP = -1
_ANSWERS = {0: "no error", _TRAP: "SIGSYS"}


@dataclass(frozen=True)
class PathUse:
    """The calls that were given one path."""

    path: str
    calls: int  # number of the calls
    errors: dict[str, int]  # number of failed calls by the error's name


@dataclass(frozen=True)
class SyscallRow:
    """The use of one system call by one process, or by several processes of one name.

    A signal interrupts a call: the kernel then makes the call again, which counts as another call, as in strace, or lets it fail with
    EINTR. In a trace that is fetched repeatedly, a waiting call is UNFINISHED in one capture and CONTINUED in a later one.
    """

    name: str  # of the processes
    pids: list[int]  # of the processes, on the host; the lowest 100
    process_count: int
    container_pid: int | None  # of a single process
    syscall: str  # name of the call
    calls: int  # number of calls that began or ended in the trace
    errors: dict[str, int]  # number of failed calls by the error that the program saw
    measured: int  # number of calls that began and ended in the trace; only these have a time
    total_ns: int
    p99_ns: int | None  # None without measured calls
    unfinished: int = 0  # number of calls that did not end in the trace
    continued: int = 0  # number of calls that did not begin in it; 0 where no entries are recorded (errors_only)
    # Number of interrupted calls by the kernel's internal error.
    interrupted: dict[str, int] = field(default_factory=dict)
    # Number of denied calls by seccomp's answer: an error (also in ERRORS), SIGSYS or no error.
    denied: dict[str, int] = field(default_factory=dict)
    compat: bool = False  # the call of a 32-bit program
    paths: list[PathUse] = field(default_factory=list)  # where recorded; the ten paths with most failures, most first

    @property
    def failures(self) -> int:
        """Number of the calls that ended with an error."""
        return sum(self.errors.values())


@dataclass(frozen=True)
class TraceTable:
    """The summary of a trace. Its rows are sorted by number of failures, and then of calls, most first.

    In a table with too many rows, the processes with most failures, and then most calls, keep rows of their own, and the others share
    the rows of their names. If the rows are still too many, names are merged likewise, and then system calls.
    """

    processes: list[SyscallRow]  # one row per process and call
    programs: list[SyscallRow]  # one row per name of processes and call
    events: int  # number of all events
    first_time: int  # nanoseconds of the trace's clock
    last_time: int
    counts: dict[str, int] = field(default_factory=dict)  # number of events by system:name
    functions: dict[str, int] = field(default_factory=dict)  # number of calls of the kernel's functions, where traced
    requests: dict[str, int] = field(default_factory=dict)  # number of requests through io_uring by operation
    has_polled: bool = False  # a kernel thread fetched requests of io_uring, which the trace does not show
    damage: list[str] = field(default_factory=list)  # in words: the file holds other events than the kernel counted


def summarize(trace: Trace, manifest: Mapping[str, Any], min_latency_ns: int = 0) -> TraceTable:
    """Return the table of TRACE; MANIFEST has the names of its system calls, its tasks, and the requested trace.

    With MIN_LATENCY_NS, calls that are shorter, or have only one end in the trace, are left out.
    Raises TraceFileError when the trace cannot be read.
    """
    return tabulate(read_trace(trace, manifest), min_latency_ns)


def tabulate(reading: Reading, min_latency_ns: int = 0) -> TraceTable:
    """Return the table of READING; with MIN_LATENCY_NS, without calls that are shorter, or have only one end in the trace."""
    calls, paths = reading.calls, reading.paths
    if min_latency_ns:
        kept = calls.measured & (calls.durations >= min_latency_ns)
        calls, paths = calls.select(kept), paths[kept]
    processes, name_numbers, known_names = _identify(calls, reading.tasks)
    if reading.damage and reading.syscalls:
        # In a damaged trace, a wrong number in one event splits a call in two, each with one end.
        strange = ~np.isin(calls.numbers, list(reading.syscalls)) | (
            name_numbers == (known_names.index(UNKNOWN_NAME) if UNKNOWN_NAME in known_names else _REST)
        )
        kept = calls.measured | ~strange
        calls, paths, processes, name_numbers = calls.select(kept), paths[kept], processes[kept], name_numbers[kept]
    is_failed = (calls.errors != 0) & ~np.isin(calls.errors, list(RESTARTS))
    tables = []
    for first_key in (processes, np.zeros_like(processes)):
        rows = []
        _first, names, numbers = keys = _merge_rest([first_key, name_numbers, calls.numbers], is_failed)
        for members in _gen_groups(keys):
            owners = [reading.tasks.processes[number] for number in np.unique(processes[members]).tolist()]
            first = members[0]
            name = _OTHER_PROGRAMS if names[first] == _REST else known_names[names[first]]
            rows.append(_make_row(calls, members, paths[members], owners, name, int(numbers[first]), reading))
        tables.append(sorted(rows, key=lambda row: (-row.failures, -row.calls, row.name, row.pids, row.syscall)))
    return TraceTable(
        tables[0],
        tables[1],
        sum(reading.events.values()),
        reading.first_time,
        reading.last_time,
        reading.events,
        reading.functions,
        dict(reading.requests.requests.most_common()),
        reading.requests.has_polled,
        reading.damage,
    )


def _merge_rest(keys: list[Ints], is_failed: Bools) -> list[Ints]:
    """Return KEYS with values replaced by _REST, so that the entries form a bounded number of groups (entries equal in all KEYS).

    The values with most failures, and then most entries, stay. The first of KEYS is merged first.
    """
    keys = list(keys)
    for place, key in enumerate(keys):
        order, starts = _group(keys)
        if starts.size <= _MAX_ROWS:
            break
        # One entry per group here, and one per value after that.
        failures = np.add.reduceat(is_failed[order].astype(np.int64), starts)
        sizes = np.diff(starts, append=order.size)
        values, inverse = np.unique(key[order[starts]], return_inverse=True)
        rows, failures, sizes = (np.bincount(inverse, weights=weights) for weights in (None, failures, sizes))
        ranks = np.lexsort((-sizes, -failures))
        # A process that calls made-up numbers must not displace all others.
        ranks = ranks[rows[ranks] <= _MAX_ROWS // 4]
        kept = values[ranks[np.cumsum(rows[ranks]) <= _MAX_ROWS // 2]]
        keys[place] = np.where(np.isin(key, kept), key, _REST)
    return keys


def _gen_groups(keys: list[Ints]) -> Iterator[Ints]:
    """Yield the groups of entries that are equal in all KEYS, each as indices."""
    order, starts = _group(keys)
    if order.size:
        yield from np.split(order, starts[1:])


def _group(keys: list[Ints]) -> tuple[Ints, Ints]:
    """Return the indices of all entries sorted by KEYS, and the places in them where groups of entries equal in all KEYS begin."""
    order = np.lexsort(keys[::-1])
    is_first = np.ones(order.size, bool)
    if order.size:
        is_first[1:] = False
        for key in keys:
            column = key[order]
            is_first[1:] |= column[1:] != column[:-1]
    return order, np.flatnonzero(is_first)


def _make_row(
    calls: PairedCalls,
    members: Ints,
    paths: Ints,
    owners: list[Process],
    name: str,
    number: int,
    reading: Reading,
) -> SyscallRow:
    """Return the row of MEMBERS, the indices of CALLS of one NUMBER (or of _REST) with PATHS; OWNERS are the processes, called NAME."""
    errors = calls.errors[members]
    is_interrupted = np.isin(errors, list(RESTARTS))
    failed = np.where(is_interrupted, 0, errors)
    measured = members[calls.has_begun[members] & calls.has_ended[members]]
    durations = calls.ends[measured] - calls.begins[measured]
    denied = calls.select(members[calls.denied[members]])
    return SyscallRow(
        name=name,
        pids=sorted({owner.pid for owner in owners})[:_MAX_PIDS],
        process_count=len(owners),
        container_pid=owners[0].container_pid if len(owners) == 1 else None,
        syscall=_OTHER_CALLS if number == _REST else name_call(number, reading.syscalls),
        calls=int(members.size),
        errors=_count(failed[failed != 0]),
        measured=int(durations.size),
        total_ns=int(durations.sum()),
        p99_ns=int(np.percentile(durations, 99)) if durations.size else None,
        unfinished=int(calls.unfinished[members].sum()),
        continued=int(calls.continued[members].sum()),
        interrupted=_count(errors[is_interrupted]),
        denied=_count(np.where(denied.is_trap, _TRAP, denied.errors)),
        compat=COMPAT <= number < _REST,
        paths=_list_paths(paths, failed, reading.path_names),
    )


def _count(errors: Ints) -> dict[str, int]:
    """Return the number of each of ERRORS by its name, most first."""
    numbers, counts = np.unique(errors, return_counts=True)
    found = Counter(dict(zip(numbers.tolist(), counts.tolist())))
    return {_ANSWERS.get(number) or name_errno(number): count for number, count in found.most_common()}


def _list_paths(paths: Ints, errors: Ints, names: list[str]) -> list[PathUse]:
    """Return the use of the paths that most calls failed on; PATHS (indices of NAMES, or -1) and ERRORS have one entry per call."""
    is_known = paths >= 0
    if not is_known.any():
        return []
    uses: dict[int, Counter[int]] = {}
    pairs, counts = np.unique(np.stack([paths[is_known], errors[is_known]]), axis=1, return_counts=True)
    for path, error, count in zip(*pairs.tolist(), counts.tolist()):
        uses.setdefault(path, Counter())[error] += count
    rows = [
        PathUse(
            names[path],
            sum(use.values()),
            {name_errno(error): count for error, count in use.most_common() if error},
        )
        for path, use in uses.items()
    ]
    return sorted(rows, key=lambda row: (-sum(row.errors.values()), -row.calls, row.path))[:_MAX_PATHS]


def _identify(calls: PairedCalls, tasks: TaskNames) -> tuple[Ints, Ints, list[str]]:
    """Return for each call the number of its process, and the index of the process's name; and the names."""
    processes = np.zeros(calls.tids.size, np.int64)
    name_numbers = np.zeros(calls.tids.size, np.int64)
    known: dict[str, int] = {}
    for tid in np.unique(calls.tids).tolist():
        # Calls are sorted by thread and time, so the calls of a thread are one slice. It is cut where the name or the process changed.
        start, end = np.searchsorted(calls.tids, [tid, tid + 1])
        cuts = np.searchsorted(calls.ends[start:end], tasks.list_changes(tid)) + start
        bounds = [int(start), *cuts.tolist(), int(end)]
        for first, last in zip(bounds, bounds[1:]):
            if first < last:
                time = int(calls.ends[first])
                processes[first:last] = tasks.find_process(tid, time).number
                name_numbers[first:last] = known.setdefault(tasks.find_name(tid, time), len(known))
    return processes, name_numbers, list(known)
