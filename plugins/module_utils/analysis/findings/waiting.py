# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge a long call: what it waited for, and whether that is worth telling."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, LongCall
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in, trace_again
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.holdings import (
    Holdings,
    describe_target,
    find_sharers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.waits import (
    FILE_CALLS,
    FUTEXES,
    LOCK_COMMANDS,
    LOCKS,
    OPENS,
    POLLS,
    RECEIVES,
    SENDS,
    SYNCS,
)

_SECOND = 1_000_000_000
_FUTEX_WAIT, _FUTEX_LOCKS, _FUTEX_COMMAND = 0, (6, 13), 0x7F  # FUTEX_LOCK_PI, FUTEX_LOCK_PI2; without flags
_CONTENDED = 2  # the value of a mutex of glibc that has waiters
_HAS_WAITERS = 1 << 31  # in the value of a mutex of musl
_STANDARD = {1: "its standard output", 2: "its standard error"}
_DEVICES = ("/dev/", "/proc/", "/sys/")
_RECENT_NS = 20_000_000  # how long before a poll the request may have been sent for which it waits
_SEVERITY_LOCK, _SEVERITY_PEER, _SEVERITY_IDLE_PEER, _SEVERITY_PIPE, _SEVERITY_FILE = 70, 65, 45, 70, 60


@dataclass(frozen=True)
class Wait:
    """Words about what a call waited for."""

    what: str  # template of the words after "waited": for a lock on {object}
    object: Thing | None
    severity: int
    next: str
    least_ns: int  # what counts as long
    holder: str = ""  # program that has the lock
    sharers: str = ""  # programs that have the file open of which one may have the lock
    confidence: str = "certain"
    missing: str | None = None
    items: tuple[tuple[str, str], ...] = ()  # further texts of the template

    @property
    def words(self) -> Mapping[str, str]:
        """Return further texts of the template, by placeholder."""
        return dict(self.items)


class Judge:
    """Judges the long calls of CAPTURE."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._holdings = Holdings(capture.manifest)
        self._long_ns = max(_SECOND, min(5 * _SECOND, capture.length_ns // 10))

    @cached_property
    def _transfers(self) -> dict[int, list[Cell]]:
        """Return what each thread received and sent."""
        found: dict[int, list[Cell]] = defaultdict(list)
        for cell in self._capture.cells:
            if cell.call in (*RECEIVES, *SENDS) and not cell.outcome.error and not cell.outcome.unfinished:
                found[cell.who.tid].append(cell)
        return found

    @cached_property
    def _connected(self) -> set[Thing | None]:
        """Return the peers that the container connected to in the trace."""
        return {cell.object for cell in self._capture.cells if cell.call == "connect" and cell.object is not None}

    @cached_property
    def _lockers(self) -> dict[Thing, list[Cell]]:
        found: dict[Thing, list[Cell]] = defaultdict(list)
        for cell in self._capture.cells:
            is_done = not cell.outcome.error and not cell.outcome.unfinished
            if cell.call in LOCKS and is_done and cell.object is not None and cell.object.kind == "path":
                found[cell.object].append(cell)
        return found

    @cached_property
    def _lock_waiters(self) -> set[int]:
        """Return the processes that wait for a lock at the end."""
        return {call.who.pid for call in self._capture.long_calls if call.call in LOCKS and call.outcome.unfinished}

    def judge(self, call: LongCall) -> Wait | None:
        """Return what CALL waited for; None where its wait is normal, or nobody knows."""
        judge = _JUDGES.get(call.call)
        return judge(self, call, self.find_object(call)) if judge is not None else None

    def _judge_connect(self, _call: LongCall, thing: Thing | None) -> Wait | None:
        return self._make("to connect to {object}", thing, _SEVERITY_PEER, self._long_ns) if thing else None

    def _judge_sync(self, _call: LongCall, thing: Thing | None) -> Wait | None:
        what = "for the disk to take {object} ({call})" if thing else "for the disk ({call})"
        return self._make(what, thing, _SEVERITY_FILE, _SECOND)

    def _judge_open(self, _call: LongCall, thing: Thing | None) -> Wait | None:
        if thing is None or thing.text.startswith(_DEVICES):
            return None
        what = "to open {object}: a FIFO that nobody has opened at its other end, or a slow file system"
        return self._make(what, thing, _SEVERITY_FILE, _SECOND)

    def _judge_file_call(self, _call: LongCall, thing: Thing | None) -> Wait | None:
        if thing is not None and (thing.kind not in ("path", "file") or thing.text.startswith(_DEVICES)):
            return None
        what = "for the file system: {call} {object}" if thing else "for the file system: {call}"
        return self._make(what, thing, _SEVERITY_FILE, _SECOND)

    def _judge_poll(self, call: LongCall, _thing: Thing | None) -> Wait | None:
        is_vain = _has_no_end(call) or call.outcome.timed_out
        peer = self._find_asked(call) if is_vain and not call.outcome.continued else None
        if peer is None:
            return None
        wait = self._make("for an answer of {object}", peer, _SEVERITY_PEER, self._long_ns)
        return replace(wait, confidence="inferred", missing="what poll waited for")

    def is_mutex(self, call: LongCall) -> bool:
        """Return True if CALL waited for a mutex of its process, or of shared memory."""
        if call.call not in FUTEXES or not call.args:
            return False
        command = call.args[1] & _FUTEX_COMMAND
        value = call.args[2] & 0xFFFFFFFF
        if value & 0x7FFFFFFF in (0, 0x7FFFFFFF):
            return command in _FUTEX_LOCKS  # no thread has such a number: it is musl's semaphore
        return command in _FUTEX_LOCKS or (
            command == _FUTEX_WAIT and (value == _CONTENDED or bool(value & _HAS_WAITERS))
        )

    @staticmethod
    def describe_mutex(capture: Capture) -> Wait:
        """Return the wait for a mutex of CAPTURE."""
        missing = "the thread that has the mutex"
        return Wait("", None, _SEVERITY_LOCK, trace_again(capture.place), _SECOND, confidence="likely", missing=missing)

    def find_object(self, call: LongCall) -> Thing | None:
        """Return the object of CALL, from the trace, or else from what the manifest tells of its descriptor."""
        if call.object is not None and call.object.kind in ("path", "peer"):
            return call.object
        if not call.args or call.call in (*OPENS, "sync", "mount", "umount2", "msync", *POLLS):
            return call.object
        fd = call.args[0] & 0x7FFFFFFF
        target = None
        if call.outcome.unfinished:
            target = self._holdings.find_target(call.who.pid, fd, at_end=True)
        if target is None and call.outcome.continued:
            target = self._holdings.find_target(call.who.pid, fd, at_end=False)
        return describe_target(target) if target is not None else call.object

    def _make(self, what: str, thing: Thing | None, severity: int, least_ns: int) -> Wait:
        place = self._capture.place
        command = trace_again(place)
        if thing is not None and thing.kind == "path":
            command = run_in(place, "lsof", "--", thing.text.split(" -> ")[0])
        elif thing is not None and thing.kind in ("peer", "socket"):
            command = run_in(place, "ss", "-anp")
        missing = "the path" if thing is None or thing.kind == "file" else None
        return Wait(what, thing, severity, command, least_ns, missing=missing)

    def _judge_lock(self, call: LongCall, thing: Thing | None) -> Wait | None:
        if call.call != "flock" and (not call.args or call.args[1] & 0xFFFFFFFF not in LOCK_COMMANDS):
            return None
        if thing is not None and thing.text.endswith("(deleted)"):
            return None  # how servers such as Apache take turns at accept
        holders = [
            cell.who
            for cell in (self._lockers.get(thing, ()) if thing is not None else ())
            if cell.who.pid != call.who.pid and cell.first_ns <= call.start_ns
        ]
        what = "for a lock on {object} (" + ("flock" if call.call == "flock" else "fcntl") + ")"
        wait = self._make(what if thing else what.replace("{object}", "a file"), thing, _SEVERITY_LOCK, _SECOND)
        if len({who.pid for who in holders}) == 1:
            return replace(wait, holder=holders[0].program, confidence="likely")
        return replace(wait, sharers=find_sharers(self._capture, self._holdings, thing, self._lock_waiters))

    def _judge_receive(self, call: LongCall, thing: Thing | None) -> Wait | None:
        if thing is None:
            return None
        if thing.kind == "pipe":
            return self._judge_pipe(call, thing)
        is_asked = self._has_asked(call, thing)
        wait = None
        # Of a FIFO that another process has open data may come.
        is_fed = bool(self._holdings.list_holders(thing.text) - {call.who.pid})
        if thing.kind == "path" and not thing.text.startswith(_DEVICES) and not is_fed:
            wait = self._make("for data of {object}", thing, _SEVERITY_IDLE_PEER, self._long_ns)
        elif thing.kind == "socket" and is_asked and thing.text.startswith("unix"):
            wait = self._make("for an answer at a UNIX socket", thing, _SEVERITY_PEER, self._long_ns)
        elif thing.kind == "peer" and self._is_client(thing):
            what = "for an answer of {object}" if is_asked else "for data of {object}"
            severity = _SEVERITY_PEER if is_asked else _SEVERITY_IDLE_PEER
            wait = self._make(what, thing, severity, self._long_ns)
            wait = wait if is_asked else replace(wait, confidence="likely")
        return wait

    def _judge_pipe(self, call: LongCall, thing: Thing) -> Wait | None:
        """Return the wait for data of a pipe that nobody can write to: its only holder is the thread that waits."""
        is_alone = self._holdings.is_whole and self._holdings.list_holders(thing.text) == {call.who.pid}
        threads = {who.tid for who in self._capture.threads if who.pid == call.who.pid}
        if not call.outcome.unfinished or not is_alone or len(threads) > 1 or call.args[0] & 0x7FFFFFFF <= 2:
            return None
        wait = self._make("for data of a pipe that no other process can write to", thing, _SEVERITY_PIPE, self._long_ns)
        return replace(wait, confidence="likely")

    def _judge_send(self, call: LongCall, thing: Thing | None) -> Wait | None:
        fd = call.args[0] & 0x7FFFFFFF if call.args else -1
        if thing is None or thing.kind in ("file", "anon"):
            where = _STANDARD.get(fd)
            if thing is not None or fd < 0:
                return None
            what = (
                "to write to {where}, which nobody reads"
                if where
                else "to write to descriptor {fd}, which nobody reads"
            )
            wait = self._make(what, None, _SEVERITY_PIPE, _SECOND)
            items = (("where", where),) if where else (("fd", str(fd)),)
            return replace(wait, items=items, confidence="likely", missing="what the descriptor refers to")
        if thing.kind == "path":
            return self._make("to write to {object}", thing, _SEVERITY_FILE, _SECOND)
        if thing.kind == "pipe":
            where = f" ({_STANDARD[fd]})" if fd in _STANDARD else ""
            return self._make(f"to write to a pipe{where} that nobody reads", thing, _SEVERITY_PIPE, _SECOND)
        if thing.kind == "peer" and self._is_client(thing):
            return self._make("to send to {object}, which does not read", thing, _SEVERITY_PEER, self._long_ns)
        return None

    def _is_client(self, peer: Thing) -> bool:
        """Return True if the container began the connection to PEER."""
        if peer in self._connected:
            return True
        return self._holdings.is_client_of(peer.text) is not False

    def _has_asked(self, call: LongCall, thing: Thing) -> bool:
        """Return True if the last thing that the thread of CALL did with THING before was to send, and CALL did not end."""
        before = [cell for cell in self._transfers[call.who.tid] if cell.object in (thing, call.object)]
        if not _has_no_end(call) or call.outcome.continued or not before:
            return False
        return max(before, key=lambda cell: cell.last_ns).call in SENDS

    def _find_asked(self, call: LongCall) -> Thing | None:
        """Return the peer to which the thread of CALL, a poll, sent just before it; None if it did something else."""
        last = max(self._transfers[call.who.tid], key=lambda cell: cell.last_ns, default=None)
        if last is None or last.call not in SENDS or last.object is None or last.object.kind != "peer":
            return None
        is_recent = 0 <= call.start_ns - last.last_ns <= _RECENT_NS
        return last.object if is_recent and self._is_client(last.object) else None


def _has_no_end(call: LongCall) -> bool:
    """Return True if CALL did not get what it waited for: it did not end, or a signal ended it."""
    return call.outcome.unfinished or call.outcome.interrupted


_Judging = Callable[[Judge, LongCall, "Thing | None"], "Wait | None"]


def _list_judges() -> dict[str, _Judging]:
    """Return how the wait of each call is judged, by the call's name."""
    rows: tuple[tuple[tuple[str, ...], _Judging], ...] = (
        (LOCKS, Judge._judge_lock),
        (("connect",), Judge._judge_connect),
        (RECEIVES, Judge._judge_receive),
        (SENDS, Judge._judge_send),
        (SYNCS, Judge._judge_sync),
        (OPENS, Judge._judge_open),
        (FILE_CALLS, Judge._judge_file_call),
        (POLLS, Judge._judge_poll),
    )
    return {name: judge for names, judge in rows for name in names}


_JUDGES = _list_judges()
