# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find processes whose threads have done nothing for a whole capture but wait for each other, which nobody from outside can end.

A thread that waits in accept, epoll, read or for time to pass can go on by itself, and so can those that wait for it. A thread that waits for
a futex, for a child or for a signal needs another thread. Where all of them wait so, only a signal can wake one.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Iterator, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, LongCall, Who
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import (
    AMONG_THEMSELVES,
    CHILD_WAITS,
    FUTEXES,
)

_FUTEX_WAITS, _FUTEX_COMMAND = (0, 6, 9, 13), 0x7F  # FUTEX_WAIT, LOCK_PI, WAIT_BITSET, LOCK_PI2; without flags
_P_PID = 1  # waitid(2)


class ChildWait(NamedTuple):
    """The wait CALL of a process for its child CHILD, which waits in HOW."""

    call: LongCall
    child: Who
    how: str


class Stillness:
    """The threads of CAPTURE that waited in one call from its beginning to its end."""

    def __init__(self, capture: Capture) -> None:
        self._threads: dict[int, set[int]] = defaultdict(set)
        for who in capture.threads:
            if who.pid > 0:
                self._threads[who.pid].add(who.tid)
        self._calls: dict[int, dict[int, LongCall]] = defaultdict(dict)
        for call in capture.long_calls:
            if call.outcome.unfinished and call.outcome.continued and call.args:
                self._calls[call.who.pid][call.who.tid] = call

    def gen_locked(self) -> Iterator[list[LongCall]]:
        """Yield the calls of each process whose threads all waited for futexes without a timeout."""
        for pid, calls in self._calls.items():
            if set(calls) == self._threads[pid] and all(map(_is_endless_futex, calls.values())):
                yield list(calls.values())

    def gen_child_waits(self) -> Iterator[ChildWait]:
        """Yield the waits for one certain child, where all threads of the container waited for each other or for a signal."""
        calls = [call for found in self._calls.values() for call in found.values()]
        if len(calls) != sum(map(len, self._threads.values())) or not all(map(_is_among_themselves, calls)):
            return
        by_inside = {call.who.container_pid: call for call in calls if call.who.tid == call.who.pid}
        for call in calls:
            child = by_inside.get(find_child(call))
            if child is not None and child.who.pid != call.who.pid and child.call not in CHILD_WAITS:
                yield ChildWait(call, child.who, child.call)


def find_child(call: LongCall) -> int | None:
    """Return the one child, by its number inside the container, that CALL waits for; None where it waits for any, or for something else."""
    if call.call not in CHILD_WAITS or not call.args:
        return None
    if call.call == "waitid":
        return call.args[1] & 0x7FFFFFFF if call.args[0] & 0xFFFFFFFF == _P_PID else None
    number = call.args[0] & 0xFFFFFFFF
    return number if 0 < number < 1 << 31 else None


def _is_endless_futex(call: LongCall) -> bool:
    return call.call in FUTEXES and call.args[1] & _FUTEX_COMMAND in _FUTEX_WAITS and not call.args[3]


def _is_among_themselves(call: LongCall) -> bool:
    return call.call in AMONG_THEMSELVES and (call.call not in FUTEXES or _is_endless_futex(call))
