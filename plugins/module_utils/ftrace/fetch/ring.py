# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain trace instances into segments on the host, and account for lost events."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Callable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import (
    Patience,
    serve_in_turns,
    try_lock,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.drain import CpuDrain
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import format_cmdlines, list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.head import read_head
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.lasting import has_telling_waits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import (
    Manifest,
    Tables,
    Task,
    describe_container,
    describe_host,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.client import Loan
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    CpuStatistics,
    Instance,
    InstanceGone,
    TraceError,
)


@dataclass(frozen=True)
class Source:
    """A source of a capture.

    INSTANCE: the instance that the pages are of.
    SIZE: the bytes of pages that have to be taken at once, at least.
    TAKE: gets a writer and the room in bytes, moves pages to the writer (more than SIZE only as far as the room suffices), and returns the
    manifest.
    FINISH: is called when the pages are safe in a segment.
    IS_TELLING: is called after TAKE, and returns True if what it has written tells something even without pages.
    """

    instance: Instance
    size: int
    take: Callable[[SegmentWriter, int], dict[str, Any]]
    finish: Callable[[], None] = lambda: None
    is_telling: Callable[[], bool] = lambda: False


def count_entries(trace: TraceInstance) -> int:
    """Return the number of events in the ring buffers of TRACE."""
    return sum(trace.instance.read_statistics(cpu).entries for cpu in trace.instance.list_cpus())


def stage(
    found: Sequence[TraceInstance],
    outcome: Outcome,
    list_sources: Callable[[TraceInstance], list[Source]],
    methods: Sequence[str],
) -> tuple[list[dict[str, Any]], bool]:
    """Move each source that LIST_SOURCES returns for each of FOUND into a segment of its own, compressed by one of METHODS.

    Returns the manifests of the sources without events and telling waits, and True if pages had no room and have to wait for another fetch.
    OUTCOME gets the traces that could not be drained. The caller holds the lock of the segments' folder.
    """
    method = next((name for name in compression.list_available() if name in methods), compression.ZLIB)
    staged = _Staged(method)

    def stage_trace(trace: TraceInstance) -> None:
        # With its lock no other module starts, stops or removes the trace meanwhile. An instance that was removed just before is passed over.
        with outcome.serve(trace.who), suppress(InstanceGone), try_lock("trace-" + trace.short_id):
            for source in list_sources(trace):
                with outcome.serve(trace.who), suppress(InstanceGone):
                    staged.add(source)

    serve_in_turns(found, stage_trace, lambda trace, error: outcome.fail(trace.who, error), Patience())
    outbox.recover()
    return staged.empty, staged.has_more


class _Staged:
    """The result of staging with the compression METHOD.

    EMPTY: the manifests of sources without events and telling waits.
    HAS_MORE: True if some pages had no room.
    """

    def __init__(self, method: str) -> None:
        self.empty: list[dict[str, Any]] = []
        self.has_more = False
        self._method = method
        self._has_some = False

    def add(self, source: Source) -> None:
        """Move SOURCE into a segment; raises TraceError if there is no room for the first one, or if pages could not be read."""
        room = outbox.find_room()
        if source.size > room and self._has_some:
            self.has_more = True
            return
        outbox.check_room(source.size)
        with outbox.create_segment(source.instance) as file:
            manifest = source.take(SegmentWriter(file, self._method), room)
        if manifest["pages"] or source.is_telling():
            outbox.finish_segment(file)
            self._has_some = True
        else:
            self.empty.append(manifest)
            os.unlink(file.name)
        source.finish()
        self.has_more |= manifest.get("partial", False)
        errors = dict.fromkeys(cpu["error"] for cpu in manifest["cpus"] if cpu["error"])
        if errors:
            raise TraceError("; ".join(errors))


class RingDrain:
    """A drain of the ring buffers of TRACE into a segment."""

    def __init__(self, trace: TraceInstance) -> None:
        self._trace = trace
        self._stack = ExitStack()
        self._loan: Loan | None = None
        self._tables: Tables | None = None

    def take(self, writer: SegmentWriter, _room: int) -> dict[str, Any]:
        """Drain the ring buffers into WRITER, and return the manifest."""
        with ExitStack() as stack:
            self._loan = stack.enter_context(client.borrow(self._trace.instance))
            manifest, self._tables = _drain_ring(self._trace, writer, self._loan)
            self._stack = stack.pop_all()
        return manifest

    def finish(self) -> None:
        """Note that the drained events are safe, and that the capture accounts for the lost ones."""
        with self._stack:
            if self._loan is not None:
                self._loan.settle()
        metadata.note_taken(self._trace.instance, None if self._tables is None else self._tables.last_holdings)

    def is_telling(self) -> bool:
        """Return True if the capture tells something even without pages."""
        return self._tables is not None and has_telling_waits(self._tables)


def has_waits(trace: TraceInstance) -> bool:
    """Return True if a capture of the ring buffers of TRACE would tell something even without pages."""
    return has_telling_waits(_make_tables(trace, metadata.read_record(trace.instance), []))


def _make_tables(trace: TraceInstance, record: dict[str, Any], tasks: list[Task]) -> Tables:
    """Return the tables of a capture of TRACE that ends now, with TASKS, and without names of threads; RECORD is that of its start."""
    return Tables(record.get("tasks", []), tasks, "", record.get(metadata.HOLDINGS) or {}, _collect(trace))


def _collect(trace: TraceInstance) -> dict[str, Any]:
    """Return what the processes of TRACE hold and wait for now, or did when it was stopped."""
    record = metadata.read_record(trace.instance)
    if metadata.LAST_HOLDINGS in record and not trace.instance.is_tracing():
        return dict(record[metadata.LAST_HOLDINGS])
    return collect(trace.container)


def _drain_ring(trace: TraceInstance, writer: SegmentWriter, loan: Loan) -> tuple[dict[str, Any], Tables]:
    """Drain the ring buffers of TRACE into WRITER through LOAN, and return the manifest and the tables."""
    instance = trace.instance
    page_size = instance.read_page_size()
    # All that can fail is done before the drain, while the events are still in the kernel.
    record = metadata.read_record(instance)
    tables = _make_tables(trace, record, list_tasks(trace.container))
    tables = replace(tables, cmdlines=_read_cmdlines(instance, tables))
    cpus = instance.list_cpus()
    before = {cpu: instance.read_statistics(cpu) for cpu in cpus}
    # For a stopped trace the clocks' reading at its stop counts, because the clocks drift apart.
    is_tracing = instance.is_tracing()
    end = (None if is_tracing else record.get("end")) or clocks.measure_offset(instance.read_clock())
    manifest = Manifest(
        host=describe_host(),
        container=describe_container(trace.container) if trace.container else _describe_gone(trace, record),
        instance=instance.name,
        mode="ring",
        clock=instance.read_clock(),
        buffer_kb=instance.read("buffer_size_kb"),
        events=instance.read_events() or record.get("events", {}),
        start=record.get("start"),
        changed=record.get("changed"),
        end=end,
        specification=record.get("specification"),
        earlier_syscalls=record.get("earlier_syscalls", []),
        limits=record.get("limits", {}),
        followed=record.get("followed"),
        has_run=bool(tables.first_tasks or tables.tasks),
        tracing=is_tracing,
        stopped=record.get("stopped"),
    )
    discarded = metadata.read_discarded(record)
    # If this process is killed from here on, this document tells what is known of the drained pages.
    interrupted = {cpu: CpuDrain(unknown=1, error="the fetch was killed") for cpu in cpus}
    loss = summarize_loss(before, before, interrupted, discarded, loan.reasons)
    writer.write_head(read_head(instance, page_size, record, cpus))
    writer.write_document({**manifest.as_json(loss), **tables.as_json()})
    drained = drain.drain(instance, loan.fds, page_size, writer)
    drained.update((cpu, CpuDrain(error=error)) for cpu, error in loan.errors.items())
    try:
        # A thread that was born while one CPU was drained may have events on the next one.
        tables = replace(tables, cmdlines=_read_cmdlines(instance, tables))
    except TraceError:
        pass  # the names from before the drain have to do: a capture without some names is better than none
    after = {cpu: instance.read_statistics(cpu) for cpu in cpus}
    loss = summarize_loss(before, after, drained, discarded, loan.account())
    document = manifest.as_json(loss)
    writer.write_document({**document, **tables.as_json()})
    return document, tables


def summarize_loss(
    before: dict[int, CpuStatistics],
    after: dict[int, CpuStatistics],
    drained: dict[int, CpuDrain],
    discarded: metadata.Discarded = metadata.NOTHING_DISCARDED,
    touched: Sequence[str] = (),
) -> Loss:
    """Return the account of events that the capture of a ring lacks.

    BEFORE and AFTER are the kernel's counters around the drain, DRAINED the results of the drain, all by CPU.
    DISCARDED is what the kernel dropped earlier when settings changed, TOUCHED has reasons, in words, why events may be missing.
    """
    cpus = []
    for cpu, result in sorted(drained.items()):
        first, last = before[cpu], after[cpu]
        lost, is_exact = result.judge(first)
        # Counters that are smaller than before have begun anew. In the account for a fetch that is killed AFTER is the same as BEFORE.
        is_reset = last.read < first.read
        cpus.append(
            CpuLoss(
                cpu=cpu,
                entries=first.entries if first == last else max(0, last.read - first.read),
                overrun=last.overrun,
                # These counters stay 0 while the oldest events are overwritten. The kernel does not count them for each reader.
                dropped=last.dropped + last.commit_overrun,
                lost=lost + last.dropped + last.commit_overrun,
                exact=is_exact and not is_reset,
                pages=result.pages,
                error=result.error,
            )
        )
    return Loss(
        cpus, others=discarded.events, discarded=discarded.events, exact=discarded.exact, touched=tuple(touched)
    )


def _read_cmdlines(instance: Instance, tables: Tables) -> str:
    return format_cmdlines(tables.first_tasks, Instance(instance.root, "..").read("saved_cmdlines"), tables.tasks)


def _describe_gone(trace: TraceInstance, record: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a container that no runtime knows any more, from the RECORD of the trace's start."""
    return record.get("container") or {
        "id": trace.container_id,
        "name": trace.container_name,
        "image": None,
        "labels": {},
        "runtime": None,
    }
