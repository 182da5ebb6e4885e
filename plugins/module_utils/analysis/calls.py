# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the system calls of a trace from its events of entry and exit, thread by thread, as `strace -f` would list them.

docs/calls.md lists the differences from strace.
Source: the kernel's entry code (syscall_trace_enter, syscall_exit_work) and kernel/seccomp.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Collection, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compat import COMPAT, CompatTasks
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Batch
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, Field
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.pairing import (
    FCNTLS,
    NEVER,
    Events,
    Moments,
    PairedCalls,
    Scope,
    ThreadExec,
    find_numbers,
    pair_calls,
)

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_RAW = "raw_syscalls:sys_"
_OWN = "syscalls:sys_"
_OWN_NUMBER = "__syscall_nr"
_X32 = 1 << 30


def read_names(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of system calls in MANIFEST by number; COMPAT is added to the numbers of 32-bit programs."""
    names = {int(number): name for number, name in (manifest.get("syscalls") or {}).items()}
    names.update({int(number) + COMPAT: name for number, name in (manifest.get("compat_syscalls") or {}).items()})
    if manifest.get("arch") == "x86_64":
        # x32, a third kind of programs that few kernels run: below 512, its numbers are the usual ones with one more bit.
        names.update({number + _X32: f"{name} (x32)" for number, name in names.items() if number < 512})
    return names


def name_call(number: int, names: Mapping[int, str]) -> str:
    """Return the name of call NUMBER from NAMES; for a number without a name, which programs may call, the text that strace writes."""
    return names.get(number) or f"syscall_{(number % COMPAT if number >= COMPAT else number) & (1 << 64) - 1:#x}"


class CallEvents:
    """The entries and exits of system calls in a trace. Call `feed` with all batches, then `pair`.

    FORMATS are the trace's event formats by system:name, NAMES the names of system calls by number. SPECIFICATION is the requested
    trace, and EARLIER_SYSCALLS the calls that were requested before it was changed, as the manifest has them.
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
        self._fcntls = sorted({number % COMPAT for number in find_numbers(names, FCNTLS)})
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
        """Add the events of BATCH; the batches of one CPU have to come in order."""
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
        # The number is an int in the kernel, even where the event's field is longer.
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
        """Return the requested calls; COMPAT (after `finish`) knows which threads ran 32-bit programs when.

        IS_COMPLETE means that no events were lost before a CPU's first event. Events before SINCE, in nanoseconds of the trace's clock,
        were recorded by other settings. IS_DAMAGED means that events may be missing or wrong anywhere.
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
        """Return the numbers of the calls that were requested, now or earlier; [] for all.

        The kernel's filter compares numbers only: it also lets calls of the other architecture pass that have the same numbers.
        """
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
    """Return the formats of the requested events `syscalls:sys_END_…`: a trace holds others to find programs and paths."""
    asked = None if specification is None else specification.get("events") or ()
    found = [
        known
        for name, known in formats.items()
        if name.startswith(f"{_OWN}{end}_") and _OWN_NUMBER in known.fields and (asked is None or name in asked)
    ]
    # The kernel lays all of them out alike. An event with another layout cannot be read together with the rest.
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
    """Return the starts and the ends, in order, of the spans that GAPS cover; spans that overlap become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(gaps):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return np.array([gap[0] for gap in merged], np.int64), np.array([gap[1] for gap in merged], np.int64)
