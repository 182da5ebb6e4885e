# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summarize a trace as a table: number, errors and durations of system calls, per process and call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.results import make_tables
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import decode_name
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture_columns import CaptureTables
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import name_functions
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import (
    RESTARTS,
    name_call,
    name_errno,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import FAMILY_OF_CALL

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_MAX_PATHS = 10  # of a row, for people have to read the table
_MAX_PIDS = 100  # of a row
_MAX_ROWS = 1000  # of a table; in a longer table, at most half of these rows stay as they are, and the rest is merged
_REST = codes.OTHER_CALLS  # no process, name or system call has this number
# Longer than the kernel lets a thread's name be, so no program has this name.
_OTHER_PROGRAMS = "(other programs)"
# Answers of seccomp that are no errors; no error has these numbers.
_TRAP = -1
UNKNOWN_NAME = "?"
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
    # At least 99 of 100 calls took no longer. It is up to 7 % too long, or the longest call where there was no room for a histogram. None if no
    # call was measured.
    p99_ns: int | None
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


class TableMaker:
    """A table of the finished pass FOUND over TRACE, whose tables are TABLES; MANIFEST has the number of events that the kernel counted.

    DAMAGE says, in words, that the file holds other events than the kernel counted; else it is empty.
    """

    def __init__(self, trace: Trace, found: CapturePass, tables: CaptureTables, damage: list[str]) -> None:
        self._trace, self._state, self._tables, self._damage = trace, found.state, tables, damage
        self._names = found.names
        rows = self._state.rows[: self._state.scalars[codes.ROWS]]
        cells = tables.cells
        # Entries are the cells, which count calls, and then the rows, which measure them.
        self._size = len(cells.task)
        task = np.concatenate([cells.task, rows[:, codes.ROW_TASK]])
        self._known_names = sorted(set(tables.tasks.name))
        places = {name: place for place, name in enumerate(self._known_names)}
        self._name = np.array([places[name] for name in tables.tasks.name], np.int64)[task]
        self._process = np.asarray(tables.tasks.process)[task]
        self._number = np.concatenate([cells.number, rows[:, codes.ROW_NUMBER]])
        self._count = np.concatenate([cells.count, np.zeros(len(rows), np.int64)])
        self._outcome = np.concatenate([cells.outcome, np.zeros(len(rows), np.int64)])
        self._object = np.concatenate([cells.object, np.zeros(len(rows), np.int64)])
        self._longest = np.concatenate([cells.max_ns, np.zeros(len(rows), np.int64)])
        self._rows = rows
        self._error = self._outcome & codes.ERRNO_MASK
        self._is_interrupted = np.isin(self._error, list(RESTARTS))
        path_calls = [number for number, name in self._names.items() if name in FAMILY_OF_CALL]
        self._has_path = (self._object > codes.OTHER_OBJECTS) & np.isin(self._number, path_calls)

    def make(self) -> TraceTable:
        """Return the table."""
        kept = self._find_kept()
        is_failed = (self._error != 0) & ~self._is_interrupted
        tables = []
        for first_key in (self._process, np.zeros_like(self._process)):
            keys = [key[kept] for key in (first_key, self._name, self._number)]
            keys = _merge_rest(keys, (is_failed * self._count)[kept], self._count[kept])
            rows = [
                self._make_row(kept[members], int(keys[1][members[0]]), int(keys[2][members[0]]))
                for members in _gen_groups(keys)
            ]
            tables.append(sorted(rows, key=lambda row: (-row.failures, -row.calls, row.name, row.pids, row.syscall)))
        state, scalars = self._state, self._state.scalars
        by_number = {known.id: name for name, known in self._trace.formats.items()}
        seen = np.flatnonzero(state.event_counts).tolist()
        requests = Counter(
            {
                decode_name(state.ring_names[code]) or f"operation {code}": count
                for code, count in enumerate(state.ring_counts.tolist())
                if count
            }
        )
        return TraceTable(
            tables[0],
            tables[1],
            int(scalars[codes.EVENTS]),
            *self._find_times(),
            {by_number.get(number, f"event {number}"): int(state.event_counts[number]) for number in seen},
            name_functions(state.functions[state.functions[:, 1] > 0].tolist(), self._trace.head.kallsyms),
            dict(requests.most_common()),
            bool(scalars[codes.HAS_POLLED]),
            self._damage,
        )

    def _find_times(self) -> tuple[int, int]:
        """Return the times of the first and the last event; without events, when the capture began and ended."""
        scalars = self._state.scalars
        if not scalars[codes.EVENTS]:
            return self._tables.start_ns, self._tables.end_ns
        return int(scalars[codes.START]), int(scalars[codes.END])

    def _find_kept(self) -> Ints:
        """Return the indices of the entries that count.

        In a damaged trace, a wrong number in one event splits a call in two, each with one end.
        """
        if not self._damage or not self._names:
            return np.arange(len(self._number))
        is_lone = self._outcome & codes.ONE_END != 0
        is_strange = ~np.isin(self._number, list(self._names)) | (np.array(self._known_names)[self._name] == "")
        return np.flatnonzero(~(is_lone & is_strange))

    def _make_row(self, members: Ints, name: int, number: int) -> SyscallRow:
        """Return the row of the entries MEMBERS, of the program with index NAME and of call NUMBER; each may be _REST."""
        cells = members[members < self._size]
        counts, outcomes, errors = self._count[cells], self._outcome[cells], self._error[cells]
        is_interrupted = self._is_interrupted[cells]
        failed = np.where(is_interrupted, 0, errors)
        is_denied = outcomes & codes.DENIED != 0
        answers = np.where(outcomes & codes.TRAPPED != 0, _TRAP, errors)
        measured, total, p99 = self._measure(self._rows[members[members >= self._size] - self._size], cells)
        processes = np.unique(self._process[cells])
        pids = sorted({int(self._tables.processes.pid[process]) for process in processes})
        inside = int(self._tables.processes.container_pid[processes[0]]) if len(processes) == 1 else -1
        return SyscallRow(
            name=_OTHER_PROGRAMS if name == _REST else self._known_names[name] or UNKNOWN_NAME,
            pids=pids[:_MAX_PIDS],
            process_count=len(processes),
            container_pid=inside if inside >= 0 else None,
            syscall=name_call(number, self._names),
            calls=int(counts.sum()),
            errors=_count(failed, counts * (failed != 0)),
            measured=measured,
            total_ns=total,
            p99_ns=p99,
            unfinished=int(counts[outcomes & codes.UNFINISHED != 0].sum()),
            continued=int(counts[outcomes & codes.CONTINUED != 0].sum()),
            interrupted=_count(errors, counts * is_interrupted),
            denied=_count(answers, counts * is_denied),
            compat=codes.COMPAT <= number < _REST,
            paths=self._list_paths(cells, failed, counts),
        )

    def _measure(self, rows: Ints, cells: Ints) -> tuple[int, int, int | None]:
        """Return the number of measured calls in ROWS, their total duration and the 99th percentile; CELLS have the longest."""
        measured = int(rows[:, codes.MEASURED].sum())
        if not measured:
            return 0, 0, None
        is_whole = self._outcome[cells] & codes.ONE_END == 0
        longest = int(self._longest[cells][is_whole].max(initial=0))
        places = rows[:, codes.HISTOGRAM]
        histogram = self._state.histograms[places[places >= 0]].sum(axis=0, dtype=np.int64)
        step = int(np.searchsorted(np.cumsum(histogram), -(-measured * 99 // 100)))
        p99 = min(_find_end(step), longest) if step < len(histogram) else longest
        return measured, sum(rows[:, codes.ROW_TOTAL].tolist()), p99  # the sum may need more than 64 bits

    def _list_paths(self, cells: Ints, errors: Ints, counts: Ints) -> list[PathUse]:
        """Return the use of the paths that most calls of CELLS failed on; ERRORS and COUNTS have one entry per cell."""
        is_known = self._has_path[cells]
        uses: dict[str, Counter[int]] = {}
        for thing, error, count in zip(
            *(column[is_known].tolist() for column in (self._object[cells], errors, counts))
        ):
            kind, text = self._tables.objects[thing]
            if kind == "path":
                uses.setdefault(text, Counter())[error] += count
        rows = [
            PathUse(path, sum(use.values()), {name_errno(error): count for error, count in use.most_common() if error})
            for path, use in uses.items()
        ]
        return sorted(rows, key=lambda row: (-sum(row.errors.values()), -row.calls, row.path))[:_MAX_PATHS]


def summarize(trace: Trace, manifest: Mapping[str, Any], min_latency_ns: int = 0) -> TraceTable:
    """Return the table of TRACE; MANIFEST has the names of its system calls, its tasks, and the requested trace.

    With MIN_LATENCY_NS, calls that are shorter, or have only one end in the trace, are left out.
    Raises TraceFileError when the trace cannot be read.
    """
    return make_all_tables(trace, manifest, min_latency_ns)[0]


def make_all_tables(
    trace: Trace, manifest: Mapping[str, Any], min_latency_ns: int = 0
) -> tuple[TraceTable, CaptureTables]:
    """Return the table of TRACE, and the tables that findings look at. MANIFEST describes the trace.

    With MIN_LATENCY_NS, calls that are shorter, or have only one end in the trace, are left out of the first.
    Raises TraceFileError when the trace cannot be read.
    """
    found = CapturePass(trace, manifest)
    damage = find_damage(int(found.run().scalars[codes.EVENTS]), manifest)
    tables = make_tables(found.state, found.names, manifest, is_damaged=bool(damage))
    if not min_latency_ns:
        return TableMaker(trace, found, tables, damage).make(), tables
    slow = CapturePass(trace, manifest, min_latency_ns=min_latency_ns)
    slow.run()
    of_slow = make_tables(slow.state, slow.names, manifest, is_damaged=bool(damage))
    return TableMaker(trace, slow, of_slow, damage).make(), tables


def find_damage(events: int, manifest: Mapping[str, Any]) -> list[str]:
    """Return the damage, in words, when a trace holds another number of EVENTS than MANIFEST says the kernel counted; else []."""
    counted = manifest.get("entries")
    # A manifest without a version has the number of events that waited when the fetch began, which may differ.
    if counted is None or "version" not in manifest or counted == events:
        return []
    return [f"the file holds {events} events, and the kernel counted {counted}"]


def _merge_rest(keys: list[Ints], failures: Ints, counts: Ints) -> list[Ints]:
    """Return KEYS with values replaced by _REST, so that the entries form a bounded number of groups (entries equal in all KEYS).

    FAILURES and COUNTS have the calls of each entry. The values with most failures, and then most calls, stay. The first of KEYS is
    merged first.
    """
    keys = list(keys)
    for place, key in enumerate(keys):
        order, starts = _group(keys)
        if starts.size <= _MAX_ROWS:
            break
        # One entry per group here, and one per value after that.
        values, inverse = np.unique(key[order[starts]], return_inverse=True)
        weights = (np.add.reduceat(column[order], starts) for column in (failures, counts))
        rows, failed, sizes = (np.bincount(inverse, weights=weight) for weight in (None, *weights))
        ranks = np.lexsort((-sizes, -failed))
        # A process that calls made-up numbers must not displace all others.
        ranks = ranks[rows[ranks] <= _MAX_ROWS // 4]
        kept = values[ranks[np.cumsum(rows[ranks]) <= _MAX_ROWS // 2]]
        keys[place] = np.where(np.isin(key, kept), key, _REST)
    return keys


def _find_end(step: int) -> int:
    """Return the longest duration, in nanoseconds, that falls into STEP of a histogram."""
    octave = max(0, step // codes.STEPS - 1)
    return ((step - codes.STEPS * octave + 1) << octave) - 1


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


def _count(errors: Ints, counts: Ints) -> dict[str, int]:
    """Return how often each of ERRORS occurred, by its name, most first. COUNTS has the calls of each; those of 0 do not occur."""
    found: Counter[int] = Counter()
    for number, count in sorted(zip(errors.tolist(), counts.tolist())):
        found[number] += count
    return {_ANSWERS.get(number) or name_errno(number): count for number, count in found.most_common() if count}
