# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long waits, told as what was waited for: a lock, a peer, a pipe, a file, a mutex of threads; and the parent that waits for such a child.

What counts as long: a second for what should never wait (a lock, a pipe that nobody reads, a file system); for a peer, a tenth of the trace, at
least one second and at most five.

Normal, and never told by themselves: waits for the next thing to do (epoll, poll, select, accept, reads of terminals, pipes, eventfds and
accepted connections), sleeps, timers, and waits for children. A poll is told if it did not end and the last thing that the thread did was to
send to a peer. A futex is told if two threads and more of a process waited on the same mutex for half the trace; its operation and value tell a
mutex (FUTEX_WAIT of the value 2 in glibc, FUTEX_LOCK_PI) from the condition variables at which idle threads wait.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, LongCall
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.processes import Process, list_processes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.waiting import Judge, Wait

_CHILD_WAITS = ("wait4", "waitid", "waitpid")
_SECOND = 1_000_000_000
_NEAR_NS = 50_000_000  # how far from the trace's ends something may be that is at its ends
# How long a wait of each form was, in words: it ended, it lasts on, it has lasted for the whole trace, or the process ended in it.
_FORMS = {
    "ended": "{program} waited {longest} {what}{more}",
    "lasts": "{program} waits {what}: for {longest} when the trace ended{more}",
    "whole": "{program} waits {what}: for all {longest} of the trace{more}",
    "died": "{program} waited {longest} {what}, until it ended{more}",
}


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each program and thing that it waited for too long."""
    judge = Judge(capture)
    processes = {process.who.pid: process for process in list_processes(capture) if process is not None}
    found: dict[tuple[str, Wait, str], list[LongCall]] = defaultdict(list)
    mutexes: dict[tuple[int, int], list[LongCall]] = defaultdict(list)
    for call in capture.long_calls:
        form = _find_form(capture, call, processes)
        if form is None:
            continue
        wait = judge.judge(call)
        if wait is not None and call.duration_ns >= wait.least_ns:
            found[call.who.program, wait, form].append(call)
        elif judge.is_mutex(call) and 2 * call.duration_ns >= max(capture.length_ns, 2 * _SECOND):
            mutexes[call.who.pid, call.args[0]].append(call)
    parents = _find_waiting_parents(capture, processes)
    for (program, wait, form), calls in found.items():
        parent = next((parents[call.who.pid] for call in calls if call.who.pid in parents), None)
        yield _make_finding(capture, program, wait, form, calls, parent)
    for (_pid, _address), calls in mutexes.items():
        waiters = {call.who.tid for call in calls}
        if len(waiters) > 1:
            yield _make_mutex(capture, calls, len(waiters))


def _find_form(capture: Capture, call: LongCall, processes: dict[int, Process]) -> str | None:
    """Return which of the forms CALL has; None where its end was lost, or where its beginning was before the trace and nobody knows when."""
    if call.outcome.denied:
        return None
    if not call.outcome.unfinished:
        return "ended"
    end_ns = call.start_ns + call.duration_ns
    process = processes.get(call.who.pid)
    if process is not None and process.end_ns is not None and abs(process.end_ns - end_ns) < _NEAR_NS:
        return "died"
    if capture.tables.end_ns - end_ns > _NEAR_NS:
        return None
    return "whole" if call.outcome.continued else "lasts"


def _find_waiting_parents(capture: Capture, processes: dict[int, Process]) -> dict[int, str]:
    """Return the program of the parent for each process whose parent waited for children when the trace ended."""
    waiting = {
        call.who.pid: call.who.program
        for call in capture.long_calls
        if call.call in _CHILD_WAITS and call.duration_ns >= _SECOND
    }
    in_order = list_processes(capture)
    found = {}
    for pid, process in processes.items():
        parent = in_order[process.parent] if process.parent is not None else None
        if parent is not None and parent.who.pid in waiting:
            found[pid] = waiting[parent.who.pid]
    return found


def _make_finding(
    capture: Capture, program: str, wait: Wait, form: str, calls: Sequence[LongCall], parent: str | None
) -> Finding:
    more, words = "", dict(wait.words)
    if wait.holder:
        more += "; {holder} has it"
        words["holder"] = wait.holder
    if parent and parent != program:
        more += "; {parent} waits for this child"
        words["parent"] = parent
    waiters = len({call.who.tid for call in calls})
    if waiters > 1:
        more += ", {waiters} threads"
    template = _FORMS[form].replace("{what}", wait.what).replace("{more}", more)
    doubts = {"missing": wait.missing} if wait.missing and not capture.loss else {}
    numbers = {"longest": Number(max(call.duration_ns for call in calls), "max", "ns")}
    if waiters > 1:
        numbers["waiters"] = Number(waiters, "sum")
    return capture.make_finding(
        calls,
        rule="waits",
        template=template,
        severity=wait.severity,
        program=program,
        call=calls[0].call,
        object=wait.object,
        words=words,
        numbers=numbers,
        confidence=wait.confidence,
        next=wait.next,
        **doubts,
    )


def _make_mutex(capture: Capture, calls: Sequence[LongCall], waiters: int) -> Finding:
    wait = Judge.describe_mutex(capture)
    return replace(
        _make_finding(capture, calls[0].who.program, wait, "ended", calls, None),
        template="{waiters} threads of {program} waited for the same mutex, {longest} at most",
        numbers={
            "waiters": Number(waiters),
            "longest": Number(max(call.duration_ns for call in calls), "max", "ns"),
        },
    )


RULE = Rule(name="waits", title="long waits, and what was waited for", find=find)
