# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a trace to a table: per process and system call how often, with which errors, how long."""

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

_MAX_PATHS = 10  # of a row; a table is to be read
_MAX_PIDS = 100  # of a row
_MAX_ROWS = 1000  # of a table; where there are more, half as many at most have no share of others
_REST = 1 << 62  # no process, name or system call has this number
# Longer than the kernel lets a name be.
_OTHER_PROGRAMS = "(other programs)"
_OTHER_CALLS = "(other calls)"
# What seccomp answers beside errors; no error has these numbers.
_TRAP = -1
_ANSWERS = {0: "no error", _TRAP: "SIGSYS"}


@dataclass(frozen=True)
class PathUse:
    """How many calls were given PATH, and how many of them ended with which error."""

    path: str
    calls: int
    errors: dict[str, int]


@dataclass(frozen=True)
class SyscallRow:
    """The use of one system call by a process (PIDS has its number), or by several processes of one name.

    PROCESS_COUNT says by how many. PIDS has the lowest numbers of so many as a reader may want.
    CALLS counts calls that began or ended in the trace, MEASURED those that did both; only these have a time. UNFINISHED are those that
    did not end in it, CONTINUED those that did not begin in it: of a trace that is fetched again and again a call that waits is one of
    the former in one capture and of the latter in a later one. ERRORS are what programs saw. INTERRUPTED counts the kernel's words for a signal
    that came: the kernel makes such a call again, which is another one here as it is for strace, or lets it fail with EINTR. DENIED counts by
    its answer what seccomp answered in the kernel's place: an error, which is one of ERRORS, too, or SIGSYS, or no error.
    """

    name: str
    pids: list[int]
    process_count: int
    container_pid: int | None
    syscall: str
    calls: int
    errors: dict[str, int]
    measured: int
    total_ns: int
    p99_ns: int | None
    unfinished: int = 0
    continued: int = 0  # 0 also where no beginnings are recorded, as with errors_only
    interrupted: dict[str, int] = field(default_factory=dict)
    denied: dict[str, int] = field(default_factory=dict)
    compat: bool = False  # a 32-bit program's
    paths: list[PathUse] = field(default_factory=list)  # where they are recorded, those that most calls fail on first

    @property
    def failures(self) -> int:
        """How many calls ended with an error."""
        return sum(self.errors.values())


@dataclass(frozen=True)
class TraceTable:
    """A trace's rows by process, and by name for all processes of a name; most failures first, then most calls.

    Where a table had too many rows the processes with most failures, then most calls, have rows of their own, and the others share those of
    their name; so it goes on with names, and with system calls.
    Times are nanoseconds of the trace's clock. COUNTS has the number of all events by system:name,
    FUNCTIONS that of calls of the kernel's functions, where these were traced. REQUESTS are those that were made through io_uring, by operation.
    HAS_POLLED tells of requests by io_uring that no trace of the program's threads has, since a thread of the kernel fetches them.
    DAMAGE says in words that the file holds other events than the kernel counted.
    """

    processes: list[SyscallRow]
    programs: list[SyscallRow]
    events: int
    first_time: int
    last_time: int
    counts: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    has_polled: bool = False
    damage: list[str] = field(default_factory=list)


def summarize(trace: Trace, manifest: Mapping[str, Any], min_latency_ns: int = 0) -> TraceTable:
    """The table of TRACE; MANIFEST names its system calls and its tasks. Calls shorter than MIN_LATENCY_NS, or of which
    only one end is in the trace, are left out where that is not 0."""
    reading = read_trace(trace, manifest)
    calls, paths = reading.calls, reading.paths
    if min_latency_ns:
        kept = calls.measured & (calls.durations >= min_latency_ns)
        calls, paths = calls.select(kept), paths[kept]
    processes, name_numbers, known_names = _identify(calls, reading.tasks)
    if reading.damage and reading.syscalls:
        # A number that is wrong in one event makes two calls of one, each with one end.
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
    """KEYS, with _REST in the place of so many of their values that entries equal in all of them make a bounded number of groups.

    The values that most failures are of, then most entries, stay. The first of KEYS is merged first.
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
        rows, failures, sizes = (np.bincount(inverse, weights=one) for one in (None, failures, sizes))
        ranks = np.lexsort((-sizes, -failures))
        ranks = ranks[rows[ranks] <= _MAX_ROWS // 4]  # one that makes calls up must not take the place of all others
        kept = values[ranks[np.cumsum(rows[ranks]) <= _MAX_ROWS // 2]]
        keys[place] = np.where(np.isin(key, kept), key, _REST)
    return keys


def _gen_groups(keys: list[Ints]) -> Iterator[Ints]:
    """Indices of the entries that are equal in all KEYS, group by group."""
    order, starts = _group(keys)
    if order.size:
        yield from np.split(order, starts[1:])


def _group(keys: list[Ints]) -> tuple[Ints, Ints]:
    """Indices of all entries in the order of KEYS, and where among these the groups begin that are equal in all KEYS."""
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
    """The row of the MEMBERS of CALLS, all of one NUMBER or of the rest, which were given PATHS; OWNERS are the processes, called NAME."""
    errors = calls.errors[members]
    is_interrupted = np.isin(errors, list(RESTARTS))
    failed = np.where(is_interrupted, 0, errors)
    measured = members[calls.has_begun[members] & calls.has_ended[members]]
    durations = calls.ends[measured] - calls.begins[measured]
    denied = calls.select(members[calls.denied[members]])
    return SyscallRow(
        name=name,
        pids=sorted({one.pid for one in owners})[:_MAX_PIDS],
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
    """Name → number of ERRORS, most first."""
    numbers, counts = np.unique(errors, return_counts=True)
    found = Counter(dict(zip(numbers.tolist(), counts.tolist())))
    return {_ANSWERS.get(number) or name_errno(number): count for number, count in found.most_common()}


def _list_paths(paths: Ints, errors: Ints, names: list[str]) -> list[PathUse]:
    """The use of each of PATHS (numbers of NAMES), one entry per call; ERRORS are numbers, or 0."""
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
    """Per call the number of its process, and that of the process's name; and the names."""
    processes = np.zeros(calls.tids.size, np.int64)
    name_numbers = np.zeros(calls.tids.size, np.int64)
    known: dict[str, int] = {}
    for tid in np.unique(calls.tids).tolist():
        # Calls are ordered by thread and time, so each thread's are one slice, cut where its name or its owner changed.
        start, end = np.searchsorted(calls.tids, [tid, tid + 1])
        cuts = np.searchsorted(calls.ends[start:end], tasks.list_changes(tid)) + start
        bounds = [int(start), *cuts.tolist(), int(end)]
        for first, last in zip(bounds, bounds[1:]):
            if first < last:
                time = int(calls.ends[first])
                processes[first:last] = tasks.find_process(tid, time).number
                name_numbers[first:last] = known.setdefault(tasks.find_name(tid, time), len(known))
    return processes, name_numbers, list(known)
