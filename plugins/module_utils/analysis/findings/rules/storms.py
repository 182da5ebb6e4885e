# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Storms: what a program does so often that it hurts, or shows a fault.

- Births: a program's processes are born at 50 per second and more for two seconds and more, and most of them live longer than a second. A
  script that starts programs one after the other is no storm. Births that fail are for the rule `limits`.
- Starts: one process starts the same program 50 times per second and more, one after the other, for five seconds and more.
- Closes of descriptors that are not open: a program closes all numbers up to its limit, which may be a billion.
- Retries: a call fails on the same object at a steady rate of five per second and more, and does not succeed after that. It is steady if the
  thread sleeps about as often, or if each try is made by another process. Failures that follow the load, such as a missing file that
  clients ask for, are none.
- Polls: a thread asks 10,000 times per second and more if there is something to do, without waiting, and mostly there is not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import SEARCHES
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import find_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.lives import Life, list_lives
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules.programs import EXECS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import EPOLLS, POLLS

_SECOND = 1_000_000_000
_MIN_BIRTH_RATE, _MIN_BIRTH_SPAN_NS = 50, 2 * _SECOND
_MIN_START_SPAN_NS = 5 * _SECOND
_MOST = 0.8
_MIN_CLOSES, _MANY_CLOSES = 1000, 100_000  # by one process
_MIN_RETRIES, _MIN_RETRY_RATE, _MIN_RETRY_SPAN_NS = 15, 5, 2 * _SECOND
_MIN_TIGHT_RATE, _MIN_TIGHT_SHARE = (
    1000,
    0.2,
)  # of a loop that does not sleep: calls per second, and share of the thread's calls
_MIN_POLL_RATE, _MIN_POLL_SPAN_NS = 10_000, _SECOND
_POLLS = (*POLLS, *EPOLLS)
_READS = ("read", "recvfrom", "recvmsg", "accept", "accept4", "readv", "recvmmsg")
_SLEEPS = ("nanosleep", "clock_nanosleep")
# Errors that are answers: nothing is there yet, or the call is made again by the kernel.
_NO_FAILURES = ("EAGAIN", "EINPROGRESS", "EINTR", "EALREADY", "ENOTTY", "ECHILD", "EEXIST", "ETIMEDOUT", "EISCONN")
_SEVERITY_BIRTHS, _SEVERITY_STARTS, _SEVERITY_RETRIES, _SEVERITY_POLLS = 85, 30, 55, 60
_SEVERITY_CLOSES, _SEVERITY_MANY_CLOSES = 30, 60


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each storm in CAPTURE."""
    processes = list_lives(capture)
    if any(
        process is not None and process.end_ns is not None for process in processes
    ):  # else their ends are not recorded
        yield from _gen_births(capture, processes)
    yield from _gen_closes(capture)
    yield from _gen_retries(capture)
    yield from _gen_polls(capture)


def _gen_births(capture: Capture, processes: Sequence[Life | None]) -> Iterator[Finding]:
    by_program: dict[str, list[Life]] = defaultdict(list)
    by_parent: dict[int, list[Life]] = defaultdict(list)
    for process in processes:
        parent = processes[process.parent] if process is not None and process.parent is not None else None
        if process is not None and parent is not None and process.begin_ns is not None:
            by_program[parent.who.program].append(process)
            by_parent[process.parent or 0].append(process)
    stormy = set()
    for program, children in by_program.items():
        span_ns = _measure(children)
        living = [child for child in children if child.end_ns is None or child.end_ns - (child.begin_ns or 0) > _SECOND]
        if _is_storm(len(children), span_ns, _MIN_BIRTH_SPAN_NS) and 2 * len(living) >= len(children):
            stormy.add(program)
            yield _make_births(capture, program, children, span_ns)
    for index, children in by_parent.items():
        starter = processes[index]
        span_ns = _measure(children)
        if (
            starter is None
            or starter.who.program in stormy
            or not _is_storm(len(children), span_ns, _MIN_START_SPAN_NS)
        ):
            continue
        started, count = _find_most([child.who.program for child in children if child.has_run_program])
        if count >= _MOST * len(children):
            yield _make_starts(capture, starter, started, [child for child in children if child.who.program == started])


def _find_most(programs: Sequence[str]) -> tuple[str, int]:
    """Return the most frequent of PROGRAMS, and how often it is among them."""
    return max(Counter(programs).items(), key=lambda pair: pair[1], default=("", 0))


def _measure(children: Sequence[Life]) -> int:
    times = [child.begin_ns for child in children if child.begin_ns is not None]
    return max(times) - min(times)


def _is_storm(count: int, span_ns: int, least_ns: int) -> bool:
    return span_ns >= least_ns and count * _SECOND >= _MIN_BIRTH_RATE * span_ns


def _make_births(capture: Capture, program: str, children: Sequence[Life], span_ns: int) -> Finding:
    return capture.make_finding(
        [child.moment for child in children],
        rule="storms",
        template="{program} made {count} processes, {rate} per second, and most of them lived longer than a second",
        severity=_SEVERITY_BIRTHS,
        program=program,
        object=Thing("program", program),
        numbers={"rate": _rate(len(children), span_ns)},
        next=run_in(capture.place, "cat", "/sys/fs/cgroup/pids.current", "/sys/fs/cgroup/pids.max"),
    )


def _make_starts(capture: Capture, starter: Life, started: str, children: Sequence[Life]) -> Finding:
    return capture.make_finding(
        [child.moment for child in children],
        rule="storms",
        template="{program} starts {object} again and again, {rate} times per second",
        severity=_SEVERITY_STARTS,
        program=starter.who.program,
        object=Thing("program", started),
        numbers={"rate": _rate(len(children), _measure(children))},
        next=trace_again(capture.place),
    )


def _rate(count: int, span_ns: int) -> Number:
    """Return how many per second COUNT is, with two digits."""
    return Number(float(f"{count * _SECOND / max(1, span_ns):.2g}"))


def _gen_closes(capture: Capture) -> Iterator[Finding]:
    bad = [cell for cell in capture.cells if cell.call == "close" and cell.outcome.error == "EBADF"]
    for program, cells in group(bad, lambda cell: cell.who.program):
        per_process: Counter[int] = Counter()
        for cell in cells:
            per_process[cell.who.pid] += cell.count
        most = max(per_process.values())
        if most < _MIN_CLOSES:
            continue
        spent_ns = max(cell.last_ns - cell.first_ns for cell in cells)
        yield capture.make_finding(
            cells,
            rule="storms",
            template="{program} closes descriptors that are not open: {most} calls in {spent}",
            severity=_SEVERITY_MANY_CLOSES if most >= _MANY_CLOSES else _SEVERITY_CLOSES,
            program=program,
            call="close",
            error="EBADF",
            numbers={"most": Number(most), "spent": Number(spent_ns, "max", "ns")},
            next=run_in(capture.place, "cat", "/proc/1/limits"),
        )


def _gen_retries(capture: Capture) -> Iterator[Finding]:
    sleeps: Counter[int] = Counter()
    calls: Counter[int] = Counter()
    succeeded: dict[tuple[str, str, Thing | None], int] = defaultdict(lambda: -1)
    failed = []
    for cell in capture.cells:
        calls[cell.who.tid] += cell.count
        if cell.call in _SLEEPS or (cell.call in _POLLS and cell.outcome.timed_out):
            sleeps[cell.who.tid] += cell.count
        if cell.object is None or cell.object.kind not in ("path", "peer"):
            continue
        if cell.outcome.error is None and not cell.outcome.unfinished:
            key = cell.who.program, cell.call, cell.object
            succeeded[key] = max(succeeded[key], cell.last_ns)
        # The rule failures knows which of the missing files a program minds.
        elif cell.call not in EXECS and cell.outcome.error not in (*_NO_FAILURES, *SEARCHES) and find_rule(cell):
            failed.append(cell)
    for (program, call, thing, error), cells in group(
        failed, lambda cell: (cell.who.program, cell.call, cell.object, cell.outcome.error)
    ):
        count = sum(cell.count for cell in cells)
        first_ns, last_ns = min(cell.first_ns for cell in cells), max(cell.last_ns for cell in cells)
        if (
            count < _MIN_RETRIES
            or last_ns - first_ns < _MIN_RETRY_SPAN_NS
            or succeeded[program, call, thing] > first_ns
        ):
            continue
        rate = count * _SECOND / (last_ns - first_ns)
        if rate < _MIN_RETRY_RATE or not _is_steady(cells, sleeps, calls, rate):
            continue
        yield capture.make_finding(
            cells,
            rule="storms",
            template="{program} tries {call} {object} {rate} times per second, always in vain ({error}, {often})",
            severity=_SEVERITY_RETRIES,
            program=program,
            call=call,
            error=error,
            object=thing,
            numbers={"rate": _rate(count, last_ns - first_ns)},
            next=run_in(capture.place, "ls", "-ld", thing.text)
            if thing.kind == "path"
            else run_in(capture.place, "ss", "-tanp"),
        )


def _is_steady(cells: Sequence[Cell], sleeps: Counter[int], calls: Counter[int], rate: float) -> bool:
    """Return True if CELLS, failures on one object at RATE, are tries by the clock, or of a loop that does nothing else."""
    count = sum(cell.count for cell in cells)
    tids = {cell.who.tid for cell in cells}
    slept = sum(sleeps[tid] for tid in tids)
    if len(tids) >= _MOST * count or _MOST * count <= slept <= 2 * count + 1:
        return True
    return rate >= _MIN_TIGHT_RATE and count >= _MIN_TIGHT_SHARE * sum(calls[tid] for tid in tids)


def _gen_polls(capture: Capture) -> Iterator[Finding]:
    calls: Counter[int] = Counter()
    for cell in capture.cells:
        calls[cell.who.tid] += cell.count
    for (tid, call), cells in group(
        (cell for cell in capture.cells if cell.call in (*_POLLS, *_READS, "sched_yield")),
        lambda cell: (cell.who.tid, cell.call),
    ):
        idle = [cell for cell in cells if _is_idle(cell)]
        count = sum(cell.count for cell in idle)
        if not count:
            continue
        span_ns = max(cell.last_ns for cell in idle) - min(cell.first_ns for cell in idle)
        is_fast = span_ns >= _MIN_POLL_SPAN_NS and count * _SECOND >= _MIN_POLL_RATE * span_ns
        if not is_fast or count < _MOST * sum(cell.count for cell in cells) or 2 * count < calls[tid]:
            continue
        yield capture.make_finding(
            idle,
            rule="storms",
            template="{program} polls without waiting: {call} returns with nothing {rate} times per second, which uses up a processor",
            severity=_SEVERITY_POLLS,
            program=idle[0].who.program,
            call=call,
            object=Thing("program", idle[0].who.program),
            numbers={"rate": _rate(count, span_ns)},
            next=trace_again(capture.place, profile="sched"),
        )


def _is_idle(cell: Cell) -> bool:
    """Return True if the calls of CELL came back with nothing."""
    if cell.call == "sched_yield":
        return True
    if cell.call in _POLLS:
        return cell.outcome.timed_out
    return cell.outcome.error == "EAGAIN"


RULE = Rule(name="storms", title="storms of births, closes, retries and polls", find=find)
