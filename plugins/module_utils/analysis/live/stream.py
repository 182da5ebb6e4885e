# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stream of the system calls of a trace that goes on, whose pages come in parts."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import Call, CallBlock, CallStream
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled import codes
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.layouts import FORKS
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.state import decode_name
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.live.page_queue import PageForm, PageQueue
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import np
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat_reader
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.trace_dat import CpuPages, TraceFileError

if TYPE_CHECKING:
    from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import Ints

_MOST_TASKS, _MOST_TEXT = 50_000, 14 << 20  # of 65,536 tasks, and of 16 MiB of paths; one look brings far fewer


class _LivePass(CapturePass):
    """A pass over TRACE, which gets its pages by give()."""

    def __init__(self, trace: Trace, manifest: Mapping[str, Any]) -> None:
        self._waiting = [b""] * len(trace.head.cpus)
        super().__init__(trace, manifest, wants_calls=True)

    def give(self, index: int, pages: bytes) -> None:
        """Add PAGES of the CPU at INDEX behind those that it has."""
        self._waiting[index] += pages
        if self.state.cursors[index, codes.CPU_STATE] == codes.IS_FINISHED:
            self._fill(index)

    def _find_piece(self, index: int) -> Any:
        piece, self._waiting[index] = self._waiting[index][: self._slot], self._waiting[index][self._slot :]
        return np.frombuffer(piece, np.uint8) if piece else None


class LiveStream(CallStream):
    """The calls of a trace whose HEAD is that of a trace.dat, and which MANIFEST describes. CPUS are those that record."""

    def __init__(self, head: bytes, manifest: Mapping[str, Any], cpus: Sequence[int]) -> None:
        file = io.BytesIO(head)
        found = trace_dat_reader.read_head(file)
        self._page_size = found.page_size
        self._cpus = {cpu: index for index, cpu in enumerate(sorted(set(cpus)))}
        # None of the pages is in the file.
        places = [CpuPages(cpu, 0, found.page_size) for cpu in self._cpus]
        self._trace = Trace(file, replace(found, cpus=places))
        self._begin(manifest)
        scalars = self._live.state.scalars
        form = PageForm(found.page_size, int(scalars[codes.HEADER_SIZE]), int(scalars[codes.COMMIT_SIZE]), found.order)
        self._queues = [PageQueue(form) for _cpu in places]
        self._forks = np.array([number for number, name in self.names.items() if name in FORKS], np.int64)

    def _begin(self, manifest: Mapping[str, Any]) -> None:
        """Begin a pass over the pages that come from now on."""
        self._inside: dict[int, int] = {}
        self._live = _LivePass(self._trace, manifest)
        super().__init__(self._trace, manifest, self._live)

    def _begin_anew(self) -> None:
        """Begin another pass with the threads that live now, before the tables of this one are full. Pending calls lose their beginnings."""
        state = self._live.state
        processes = state.processes[: state.scalars[codes.PROCESSES]]
        inside = self._find_container_pids(processes)
        tasks = []
        # Where ends of threads are not recorded, most of them have ended: those with the latest events stay.
        threads = state.threads[: state.scalars[codes.THREAD_ROWS]]
        threads = threads[(threads[:, codes.TID] != codes.NO_TID) & (threads[:, codes.TASK] > 0)]
        for thread in threads[np.argsort(-threads[:, codes.LAST_EVENT])][: _MOST_TASKS // 2]:
            tid, task = int(thread[codes.TID]), int(thread[codes.TASK])
            process = int(state.tasks[task, codes.TASK_PROCESS])
            pid = int(processes[process, codes.PID])
            name = decode_name(state.task_names[task])
            own = inside[process] if tid == pid else -1
            is_compat = bool(thread[codes.IS_COMPAT])
            tasks.append({"tid": tid, "tgid": pid, "comm": name, "container_tid": own, "compat": is_compat})
        self._begin({**self._manifest, "first_tasks": tasks, "waits": {}, "descriptors": {}})

    @property
    def _is_nearly_full(self) -> bool:
        scalars = self._live.state.scalars
        return bool(
            max(scalars[codes.TASKS], scalars[codes.PROCESSES]) > _MOST_TASKS or scalars[codes.ARENA] > _MOST_TEXT
        )

    def add(self, cpu: int, pages: bytes, *, has_gap: bool = False) -> None:
        """Add PAGES of CPU. HAS_GAP says that earlier ones were passed over. Raises TraceFileError for what are no pages of this trace."""
        index = self._cpus.get(cpu)
        if index is None or len(pages) % self._page_size:
            raise TraceFileError(f"{len(pages)} bytes of CPU {cpu} are no pages of this trace")
        self._queues[index].put(pages, has_gap=has_gap)

    def list_ended(self, until_ns: int | None) -> list[CallBlock]:
        """Return the calls that ended before UNTIL_NS, at which the events of all CPUs are there, by its clock; None: all that ended."""
        if self._is_nearly_full:
            self._begin_anew()
        for index, queue in enumerate(self._queues):
            self._live.give(index, queue.take(until_ns))
        blocks = [self._make_block(rows.copy()) for rows in self._live.gen_ended()]
        for block in blocks:
            self._note_children(block)
        return blocks

    def list_pending(self) -> list[CallBlock]:
        """Return the calls that have not ended. Nothing can be added afterwards."""
        return [self._make_block(rows.copy()) for rows in self._live.gen_pending()]

    def gen_some(self, blocks: Sequence[CallBlock], most: int) -> Iterator[Call]:
        """Yield the first calls of BLOCKS, MOST at most, as gen_calls does."""
        for block in blocks:
            some = CallBlock(**{name: column[:most] for name, column in vars(block).items()})
            most -= len(some.starts)
            yield from self._gen_calls_of(some)

    def _note_children(self, block: CallBlock) -> None:
        """Note the numbers inside the container that the calls of BLOCK gave to new processes: a call returns them to its caller."""
        state = self._live.state
        is_birth = np.isin(block.numbers, self._forks) & (block.results > 0) & (block.outcomes == 0)
        processes = state.processes[: state.scalars[codes.PROCESSES]]
        for row in np.flatnonzero(is_birth).tolist():
            parent = state.tasks[block.tasks[row], codes.TASK_PROCESS]
            begins = processes[:, codes.PROCESS_BEGIN]
            is_child = (processes[:, codes.PARENT] == parent) & (begins >= block.starts[row])
            children = np.flatnonzero(is_child & (begins <= block.ends[row])).tolist()
            if len(children) == 1:
                self._inside[children[0]] = int(block.results[row])

    def _find_container_pids(self, processes: Ints) -> list[int]:
        found = super()._find_container_pids(processes)
        for process, number in self._inside.items():
            if found[process] < 0:
                found[process] = number
        return found
