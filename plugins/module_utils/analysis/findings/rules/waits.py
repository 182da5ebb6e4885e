# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long waits, told as what was waited for: a lock, a peer, a pipe, a file, a mutex of threads; and the parent that waits for such a child.

What counts as long: a second for what should never wait (a lock, a pipe that nobody reads, a file system); for a peer, a tenth of the trace, at
least one second and at most five.

Normal, and never told by themselves: waits for the next thing to do (epoll, poll, select, accept, reads of terminals, pipes, eventfds and
accepted connections), sleeps, timers, and waits for children. A wait for one certain child is told if all threads of the container have done
nothing for the whole trace but wait for each other, for a child, or for a signal. A poll is told if it did not end and the last thing that the
thread did was to send to a peer.

A futex is told if two threads and more of a process waited on the same mutex for half the trace; its operation and value tell a mutex
(FUTEX_WAIT of the value 2 in glibc and with the highest bit in musl, FUTEX_LOCK_PI) from the condition variables at which idle threads wait.
One thread is enough if it and all others of its process did nothing for the whole trace but wait for futexes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, LongCall
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import say_sharers
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.lives import Life, list_lives
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.stillness import (
    ChildWait,
    Stillness,
    find_child,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.waiting import Judge, Wait
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import CHILD_WAITS

_SECOND = 1_000_000_000
_SEVERITY_LOCKED, _SEVERITY_CHILD = 60, 45  # both may be meant, and then a signal goes on with them
_WORD = (1 << 64) - 1
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
    processes = {process.who.pid: process for process in list_lives(capture) if process is not None}
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
    parents = _Parents(capture)
    for (program, wait, form), calls in found.items():
        parent = next(filter(None, map(parents.find_waiting, calls)), None)
        yield _make_finding(capture, program, wait, form, calls, parent)
    still = Stillness(capture)
    locked = {calls[0].who.pid for calls in still.gen_locked() if any(map(judge.is_mutex, calls))}
    for (pid, _address), calls in mutexes.items():
        waiters = {call.who.tid for call in calls}
        if len(waiters) > 1:
            yield _make_mutex(capture, calls, len(waiters))
        elif pid in locked:
            yield _make_deadlock(capture, calls, parents.find_waiting(calls[0]))
    for child_wait in still.gen_child_waits():
        if child_wait.child.pid not in locked and child_wait.call.duration_ns >= _SECOND:
            yield _make_child_wait(capture, child_wait)


def _find_form(capture: Capture, call: LongCall, processes: dict[int, Life]) -> str | None:
    """Return which of the forms CALL has; None where its end was lost, or where its beginning was before the trace and nobody knows when."""
    if call.outcome.denied or call.outcome.is_half:
        return None
    end_ns = call.start_ns + call.duration_ns
    process = processes.get(call.who.pid)
    if process is not None and process.end_ns is not None and abs(process.end_ns - end_ns) < _NEAR_NS:
        return "died" if call.outcome.unfinished or call.outcome.interrupted else "ended"
    if not call.outcome.unfinished:
        return "ended"
    if capture.tables.end_ns - end_ns > _NEAR_NS or (call.outcome.continued and not _is_at_end(capture, call)):
        return None
    return "whole" if call.outcome.continued else "lasts"


def _is_at_end(capture: Capture, call: LongCall) -> bool:
    """Return False if the host saw the thread of CALL do something else at the end of CAPTURE: then events of it were lost, or not recorded."""
    table = capture.manifest.get("waits") or {}
    if table.get("last") is None or (table.get("left_out") or {}).get("last"):
        return True
    args = tuple(value & _WORD for value in call.args)
    return any(wait["tid"] == call.who.tid and tuple(wait["args"]) == args for wait in table["last"])


class _Parents:
    """The parents of processes in CAPTURE, and when they waited for children."""

    def __init__(self, capture: Capture) -> None:
        lives = list_lives(capture)
        self._parents: dict[int, int] = {}
        for life in lives:
            parent = lives[life.parent] if life is not None and life.parent is not None else None
            if life is not None and parent is not None:
                self._parents[life.who.pid] = parent.who.pid
        self._waits: dict[int, list[LongCall]] = defaultdict(list)
        self._waits_for: dict[int, list[LongCall]] = defaultdict(list)  # by the child's number inside the container
        for call in capture.long_calls:
            if call.call in CHILD_WAITS and call.duration_ns >= _SECOND:
                self._waits[call.who.pid].append(call)
                child = find_child(call)
                if child is not None:
                    self._waits_for[child].append(call)

    def find_waiting(self, call: LongCall) -> str | None:
        """Return the program that waited for children during most of CALL, which one of its children made; None if there is none."""
        parent, inside = self._parents.get(call.who.pid), call.who.container_pid
        of_parent = self._waits[parent] if parent is not None else []
        for_this_one = self._waits_for[inside] if inside is not None else []
        for wait in (*of_parent, *for_this_one):
            begin_ns = max(wait.start_ns, call.start_ns)
            end_ns = min(wait.start_ns + wait.duration_ns, call.start_ns + call.duration_ns)
            if 2 * (end_ns - begin_ns) >= call.duration_ns:
                return wait.who.program
        return None


def _make_finding(
    capture: Capture, program: str, wait: Wait, form: str, calls: Sequence[LongCall], parent: str | None
) -> Finding:
    more, words = "", dict(wait.words)
    if wait.holder:
        more += "; {holder} has it"
        words["holder"] = wait.holder
    if wait.sharers:
        more += say_sharers(wait.sharers)
        words["sharers"] = wait.sharers
    if parent and parent != program:
        more += "; {parent} waited for this child"
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


def _make_deadlock(capture: Capture, calls: Sequence[LongCall], parent: str | None) -> Finding:
    """Return the finding for CALLS, of one thread, which waits for a mutex, while the others of its process wait for futexes as well."""
    what = "for a mutex, and none of its threads does anything that could release it"
    wait = replace(Judge.describe_mutex(capture), what=what, severity=_SEVERITY_LOCKED, confidence="inferred")
    return _make_finding(capture, calls[0].who.program, wait, "whole", calls, parent)


def _make_child_wait(capture: Capture, wait: ChildWait) -> Finding:
    """Return the finding for WAIT, of which only a guess says that it is none of a program that is idle."""
    return capture.make_finding(
        [wait.call],
        rule="waits",
        template=_FORMS["whole"]
        .replace("{what}", "for its child {child}, which does nothing itself ({how})")
        .replace("{more}", ""),
        severity=_SEVERITY_CHILD,
        program=wait.call.who.program,
        call=wait.call.call,
        words={"child": wait.child.program, "how": wait.how},
        numbers={"longest": Number(wait.call.duration_ns, "max", "ns")},
        confidence="inferred",
        missing=capture.loss or "what the child waits for",
        next=trace_again(capture.place),
    )


RULE = Rule(name="waits", title="long waits, and what was waited for", find=find)
