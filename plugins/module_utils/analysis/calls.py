# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of system calls of a capture, in the order of their ends, as `strace -f` would list them.

docs/calls.md lists the differences from strace. Memory is bounded: threads, paths and peers are kept up to a number each, and calls of
others have no thread or no object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterator, Mapping, NamedTuple

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.object_texts import ObjectTexts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.results import find_container_pids
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import decode_name
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscall_names import (
    RESTARTS,
    name_call,
    name_errno,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import FAMILY_OF_CALL

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_UNKNOWN = "?"


class Call(NamedTuple):
    """A system call. Times are nanoseconds of the trace's clock."""

    start_ns: int  # time of the end where the beginning is not in the trace
    duration_ns: int | None  # None without both ends
    tid: int  # thread, as the host numbers it, when the call ended
    pid: int  # its process
    program: str  # name of the thread when the call ended
    container_pid: int | None  # number of the process inside the container; None where it is not known
    call: str
    arguments: tuple[int, ...]  # six words; () where the beginning is not in the trace
    result: int | None  # None where the end is not in the trace
    error: str | None  # name of the errno that RESULT means
    path: str | None  # the path that was given, where paths are recorded
    peer: str | None  # the address that the call connects to, or whose connection it uses
    descriptor: str | None  # what the descriptor that was given refers to: a path, a peer, a kind of socket
    denied: bool  # seccomp answered the call, which never began
    trapped: bool  # it answered by SIGSYS; told on x86 only
    restarted: bool  # a signal ended it early: the kernel makes it again, or turns the error into EINTR
    unfinished: bool  # it did not end in the trace
    continued: bool  # it did not begin in the trace
    compat: bool  # by a 32-bit program
    number: int


@dataclass(frozen=True)
class CallBlock:
    """Some calls in the order of their ends, as columns with one entry per call. They are valid until the next block is asked for.

    STARTS, ENDS: nanoseconds of the trace's clock. TASKS, OBJECTS: indices in the tables of the pass. NUMBERS: with COMPAT added for
    32-bit programs. ARGUMENTS: six words each. OUTCOMES: the number of an error and the flags of codes.py.
    """

    starts: Ints
    ends: Ints
    tasks: Ints
    numbers: Ints
    arguments: Ints
    results: Ints
    outcomes: Ints
    objects: Ints


class CallStream:
    """The calls of TRACE, one buffer of a capture that MANIFEST describes. Use one of the generators, once.

    FOUND is the pass that reads the trace; None makes one.
    """

    def __init__(self, trace: Trace, manifest: Mapping[str, Any], found: CapturePass | None = None) -> None:
        self._manifest = manifest
        self._pass = found or CapturePass(trace, manifest, wants_calls=True)
        self.names = self._pass.names
        self._texts = ObjectTexts(self._pass.state, self.names)

    def gen_blocks(self) -> Iterator[CallBlock]:
        """Yield the calls in blocks of up to 65,536."""
        for rows in self._pass.gen_blocks():
            yield self._make_block(rows)

    @staticmethod
    def _make_block(rows: Ints) -> CallBlock:
        return CallBlock(
            starts=rows[:, codes.OUT_BEGIN],
            ends=rows[:, codes.OUT_END],
            tasks=rows[:, codes.OUT_TASK],
            numbers=rows[:, codes.OUT_NUMBER],
            arguments=rows[:, codes.OUT_ARGUMENT : codes.OUT_ARGUMENT + 6],
            results=rows[:, codes.OUT_RESULT],
            outcomes=rows[:, codes.OUT_OUTCOME],
            objects=rows[:, codes.OUT_OBJECT],
        )

    def gen_calls(self) -> Iterator[Call]:
        """Yield the calls one by one, with names instead of numbers. The name of a thread may be that of a later time until it is known."""
        for block in self.gen_blocks():
            yield from self._gen_calls_of(block)

    def _find_container_pids(self, processes: Ints) -> list[int]:
        """Return for each of PROCESSES its number inside the container, -1 where nobody knows."""
        return find_container_pids(processes, self._manifest)

    def _gen_calls_of(self, block: CallBlock) -> Iterator[Call]:
        state = self._pass.state
        objects = self._texts.list_all()
        processes = state.processes[: state.scalars[codes.PROCESSES]]
        inside = self._find_container_pids(processes)
        pids = processes[:, codes.PID].tolist()
        columns = vars(block).values()
        for start, end, task, number, words, result, outcome, thing in zip(*(column.tolist() for column in columns)):
            process = int(state.tasks[task, codes.TASK_PROCESS])
            error, name = outcome & codes.ERRNO_MASK, name_call(number, self.names)
            is_path = name in FAMILY_OF_CALL
            kind, text = objects[thing]
            has_end = not outcome & (codes.UNFINISHED | codes.ONLY_ENTRY)
            has_start = not outcome & (codes.CONTINUED | codes.DENIED | codes.ONLY_EXIT)
            yield Call(
                start_ns=start,
                duration_ns=end - start if not outcome & codes.ONE_END else None,
                tid=int(state.tasks[task, codes.TASK_TID]),
                pid=pids[process],
                program=decode_name(state.task_names[task]) or _UNKNOWN,
                container_pid=inside[process] if inside[process] >= 0 else None,
                call=name,
                arguments=tuple(words) if has_start else (),
                result=result if has_end else None,
                error=name_errno(error) if error else None,
                path=text if kind == "path" and is_path else None,
                peer=text if kind == "peer" else None,
                descriptor=text if text and not is_path else None,
                denied=bool(outcome & codes.DENIED),
                trapped=bool(outcome & codes.TRAPPED),
                restarted=error in RESTARTS,
                unfinished=bool(outcome & codes.UNFINISHED),
                continued=bool(outcome & codes.CONTINUED),
                compat=number >= codes.COMPAT,
                number=number,
            )


def gen_calls(trace: Trace, manifest: Mapping[str, Any]) -> Iterator[Call]:
    """Yield the system calls of TRACE, one buffer of a capture that MANIFEST describes, in the order of their ends.

    Raises TraceFileError when the trace cannot be read.
    """
    yield from CallStream(trace, manifest).gen_calls()
