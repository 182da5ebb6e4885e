# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the sources of a trace's captures, and copy the finished segments of recordings into captures.

A capture's pages come from the ring buffer of an instance (ring.py) or from the files of a recording.
"""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import replace
from itertools import accumulate
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import drain, metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import ring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch.distribute import is_of_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import format_cmdlines, list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    ring_pages,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file_writer import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.collect import collect
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.lasting import has_telling_waits
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss, Rotated
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import (
    Manifest,
    Tables,
    describe_container,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, recordings, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.recordings import LOST, Recording, Segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_OLDER = "nobody watched the trace: an older version of this collection recorded it"


def list_sources(trace: TraceInstance) -> list[ring.Source]:
    """Return the sources of TRACE that can be fetched, the oldest recording first; the caller holds the trace's lock.

    Raises TraceError if somebody removed the instance and nothing is left of it.
    """
    sources = []
    for recording in recordings.list_recordings(trace.instance.name):
        if is_of_rule(recording):
            continue  # its containers have recordings of their own (distribute.py)
        taking = _Taking(recording, trace)
        size = next((sum(segment.sizes.values()) for segment in recording.list_segments()), 0)
        sources.append(ring.Source(trace.instance, size, taking.take, taking.finish, taking.is_telling))
    # The recorder drains the buffers of a recording. Events that are left in them afterwards belong to that recording.
    if trace.instance.exists() and not state.is_recorded(trace.instance):
        size = sum(trace.instance.read_statistics(cpu).bytes for cpu in trace.instance.list_cpus())
        draining = ring.RingDrain(trace)
        sources.append(ring.Source(trace.instance, size, draining.take, draining.finish, draining.is_telling))
    removed = metadata.read_removed(trace.instance)
    if removed is not None and not sources:
        raise TraceError(
            f"{metadata.describe_removed(removed)}; what it held is gone: start the trace again, or forget it"
            " (ftrace_instance with state=absent)"
        )
    return sources


def count_entries(trace: TraceInstance) -> int:
    """Return how much of TRACE waits to be fetched: the events in its ring, plus the bytes of pages in its recordings.

    Only a comparison with 0 makes sense.
    """
    waiting = ring.count_entries(trace) if trace.instance.exists() and not state.is_recorded(trace.instance) else 0
    for recording in recordings.list_recordings(trace.instance.name):
        waiting += sum(sum(segment.sizes.values()) for segment in recording.list_segments())
    return waiting


def has_waits(trace: TraceInstance) -> bool:
    """Return True if a capture of TRACE would tell something even without events."""
    if trace.instance.exists() and not state.is_recorded(trace.instance) and ring.has_waits(trace):
        return True
    for recording in recordings.list_recordings(trace.instance.name):
        if is_of_rule(recording):
            continue
        end = recording.read_end()
        holdings = collect(trace.container) if end is None else end.get(metadata.HOLDINGS) or {}
        tables = Tables(recording.about["record"].get("tasks", []), [], "", recording.read_holdings(), holdings)
        if has_telling_waits(tables):
            return True
    return False


class _Taking:
    """A copy of RECORDING of TRACE into a capture; the recorder removes none of its segments between take() and finish()."""

    def __init__(self, recording: Recording, trace: TraceInstance) -> None:
        self._recording = recording
        self._trace = trace
        self._stack = ExitStack()
        self._segments: list[Segment] = []
        self._has_ended = False
        self._tables: Tables | None = None

    def take(self, writer: SegmentWriter, room: int) -> dict[str, Any]:
        """Copy the finished segments into WRITER, as many as fit into ROOM bytes, and return the manifest.

        The document comes last, so a copy that was killed does not count as a capture.
        """
        recording = self._recording
        was_answered = not recording.is_running or recordings.ask_to_finish(recording)
        with ExitStack() as stack:
            stack.enter_context(recordings.hold(recording.path))
            end = recording.read_end()
            finished = [part for part in recording.list_segments() if part.end is not None or end is not None]
            self._segments = _find_fitting(finished, room)
            is_partial = len(self._segments) < len(finished)
            self._has_ended = end is not None and not is_partial
            touched = [] if was_answered else [client.describe_silence()]
            manifest, tables = _copy(
                recording, self._segments, end, self._trace, writer, touched, is_partial=is_partial
            )
            self._tables = None if is_partial else tables
            self._stack = stack.pop_all()
        return manifest

    def finish(self) -> None:
        """Remove the segments that were copied."""
        with self._stack:
            if self._tables is not None:
                self._recording.note_holdings(self._tables.last_holdings)
            recordings.forget_fetched(self._recording, self._segments, has_ended=self._has_ended)

    def is_telling(self) -> bool:
        """Return True if the capture tells something even without pages."""
        return self._tables is not None and has_telling_waits(self._tables)


def _find_fitting(segments: list[Segment], room: int) -> list[Segment]:
    """Return the first of SEGMENTS, as many as fit into ROOM bytes, but at least one."""
    sizes = list(accumulate(sum(segment.sizes.values()) for segment in segments))
    return segments[: max(1, bisect_right(sizes, room))]


def _copy(
    recording: Recording,
    segments: list[Segment],
    end: dict[str, Any] | None,
    trace: TraceInstance,
    writer: SegmentWriter,
    touched: Sequence[str],
    *,
    is_partial: bool,
) -> tuple[dict[str, Any], Tables]:
    """Copy SEGMENTS of RECORDING of TRACE into WRITER, and return the manifest and the tables.

    END is the recording's end; None if it goes on. IS_PARTIAL is True if the recording has more finished segments: then END belongs to the
    last of those. TOUCHED has reasons why events may be missing.
    """
    last = None if is_partial else end
    about, record = recording.about, recording.about["record"]
    is_same_boot = about["boot_id"] == boot.read_boot_id()
    instance = trace.instance if recording.is_of(trace.instance) else None
    has_rest = instance is not None and last is not None and _is_last(recording) and state.is_recorded(instance)
    counters = recordings.read_counters(instance) if instance and has_rest else (last or {}).get("counters")
    there = trace.container if is_same_boot else None
    tasks = (end or {}).get("tasks") or list_tasks(there)
    holdings = collect(there) if end is None else end.get(metadata.HOLDINGS) or {}
    first_tasks = record.get("tasks", [])
    cmdlines = format_cmdlines(first_tasks, _read_saved_cmdlines(end, instance), tasks)
    tables = Tables(first_tasks, tasks, cmdlines, recording.read_holdings(), holdings)
    sizes, rest, unreadable = _copy_pages(segments, about, instance if has_rest else None, writer)
    loss = summarize_loss(recording, segments, last, counters, sizes, rest, is_partial=is_partial)
    loss = replace(loss, touched=[*loss.touched, *unreadable, *touched])
    now = clocks.measure_offset(about["clock"]) if is_same_boot else None
    time_of_end = (end or {}).get("time") or now or record.get("start")
    manifest = Manifest(
        host={name: about[name] for name in ("host", "kernel", "arch", "boot_id")},
        container=describe_container(trace.container) if trace.container else about["container"],
        instance=about["instance"],
        mode="record",
        clock=about["clock"],
        buffer_kb=about["buffer_kb"],
        events=about["events"],
        start=record.get("start"),
        changed=_find_change(segments, record, (time_of_end or {}).get("offset_ns")),
        end=time_of_end,
        specification=record.get("specification"),
        earlier_syscalls=record.get("earlier_syscalls", []),
        limits=about["limits"],
        followed=record.get("followed"),
        has_run=bool(first_tasks or tasks)
        or "rule" in about,  # a rule's container may end before its threads are listed
        tracing=end is None or bool(end.get("goes_on")),
        stopped=last["why"] if last else None,
        rule=about.get("rule"),
    )
    writer.write_head(_read_head(recording, loss))
    document = manifest.as_json(loss)
    writer.write_document({**document, **tables.as_json()})
    return document, tables


def _copy_pages(
    segments: Sequence[Segment], about: dict[str, Any], instance: Instance | None, writer: SegmentWriter
) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Copy the pages of SEGMENTS, and those left in the buffers of INSTANCE unless that is None, into WRITER.

    ABOUT describes the recording. Returns CPU → bytes of pages, CPU → events that were left in its buffer, and errors in words.
    """
    page_size = about["page_size"]
    sizes = dict.fromkeys(range(max(about["cpus"]) + 1), 0)
    rest = dict.fromkeys(sizes, 0)
    unreadable = []
    for cpu in sizes:
        for segment in segments:
            sizes[cpu] += _copy_file(os.path.join(segment.path, f"cpu{cpu}"), page_size, cpu, writer)
        # After a recorder's death or on a full disk a page or two stay in the buffer.
        try:
            for page in drain.gen_pages(instance, cpu, page_size) if instance is not None else ():
                writer.write_chunk(cpu, writer.make_compressor()(page), len(page))
                sizes[cpu] += len(page)
                rest[cpu] += ring_pages.count_events(page, page_size)
        except drain.Unreadable as error:
            unreadable.append(str(error))
    return sizes, rest, unreadable


def _find_change(segments: Sequence[Segment], record: dict[str, Any], offset_ns: int | None) -> dict[str, Any] | None:
    """Return the time from which on SEGMENTS have all events of all CPUs; earlier events may be in earlier segments or traces."""
    if not segments or segments[0].number == 1:
        return record.get("changed")
    return {"offset_ns": offset_ns, "real_time_ns": int(segments[0].begin["time"] * 10**9)}


def _copy_file(path: str, page_size: int, cpu: int, writer: SegmentWriter) -> int:
    """Copy the whole pages of file PATH into WRITER, and return their bytes; after a TraceError the file stays for another fetch."""
    try:
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        return 0
    with file:
        pages = os.fstat(file.fileno()).st_size // page_size
        copied = drain.copy_pages(lambda places: os.readv(file.fileno(), places), page_size, pages, cpu, writer)
    if copied.error or copied.pages != pages:
        raise TraceError(f"{path} cannot be copied: {copied.error or 'it was cut short meanwhile'}")
    return pages * page_size


def _is_last(recording: Recording) -> bool:
    return recordings.list_recordings(recording.name)[-1].path == recording.path


def summarize_loss(
    recording: Recording,
    segments: Sequence[Segment],
    end: dict[str, Any] | None,
    counters: dict[str, recordings.Counters] | None,
    sizes: dict[int, int],
    rest: dict[int, int],
    *,
    is_partial: bool = False,
) -> Loss:
    """Return the account of events that SEGMENTS of RECORDING lack.

    These are the events lost while the segments were written, those in segments rotated away before, and those lost after the last.
    END is the recording's end if the segments include it, else None. COUNTERS are the kernel's counters after the end; without them the
    loss by the recorder's death is not known. SIZES (bytes of pages) and REST (events that were still in the buffer) are by CPU.
    """
    page_size = recording.about["page_size"]
    cpus = {cpu: CpuLoss(cpu, entries=rest[cpu], pages=size // page_size) for cpu, size in sizes.items()}
    touched = [] if recording.about.get("watched") else [_OLDER]
    unwritten = 0
    for segment in segments:
        after = segment.end
        if after is None and counters is not None:
            # The recorder died in this segment. Lost are events that it had read but not written, and those in the buffers that shrank.
            after = {"cpus": counters}
        for _cpu, account in cpus.items():
            _add_segment(account, segment, after, page_size)
        unwritten += (segment.end or {}).get("unwritten", 0)
        touched += (segment.end or {}).get("touched", ())
    has_died = end is not None and end["why"] == recordings.DIED
    if has_died:
        touched.append("the recorder died, and tracing stopped with it")
    last_end = segments[-1].end if segments and has_died else None
    rotated = recording.read_rotated()
    others = rotated["lost"] + (end or {}).get("lost", 0)
    if last_end is not None and counters is not None:
        # The recorder died after its last segment was finished. Events in the buffers that shrank then are in no segment's account.
        others += sum(max(0, recordings.subtract(after, last_end["cpus"][cpu])) for cpu, after in counters.items())
    return Loss(
        list(cpus.values()),
        others=others,
        unwritten=unwritten,
        rotated=Rotated(*(rotated[name] for name in ("segments", "events", "bytes"))),
        segments=len(segments),
        partial=is_partial,
        exact=rotated["exact"] and (last_end is None or counters is not None),
        touched=[*touched, *(end or {}).get("touched", ())],
    )


def _add_segment(account: CpuLoss, segment: Segment, after: dict[str, Any] | None, page_size: int) -> None:
    """Add SEGMENT to the ACCOUNT of a CPU; AFTER has the counters at the segment's end, None if they are not known."""
    cpu = str(account.cpu)
    account.exact &= segment.begin["exact"]
    begin = segment.begin["cpus"].get(cpu)
    last = after["cpus"].get(cpu) if after else None
    # Counters that are smaller than before have begun anew, because somebody cleared the trace.
    is_reset = last is not None and begin is not None and any(last[name] < begin[name] for name in ("read", *LOST))
    written = None
    if segment.end is None or is_reset:
        written = _count_events(segment, account.cpu, page_size)
    if last is None or begin is None or is_reset:
        account.entries += written or 0
        account.exact &= begin is None
        return
    read = recordings.subtract(last, begin, ("read",))
    account.entries += read if written is None else written
    account.overrun += recordings.subtract(last, begin, ("overrun",))
    account.dropped += recordings.subtract(last, begin, ("dropped", "commit_overrun"))
    account.lost += recordings.subtract(last, begin) + (0 if written is None else read - written)


def _count_events(segment: Segment, cpu: int, page_size: int) -> int:
    return sum(ring_pages.count_events(piece, page_size) for piece in recordings.gen_pages([segment], cpu))


def _read_head(recording: Recording, loss: Loss) -> trace_dat.Head:
    with open(os.path.join(recording.path, recordings.HEAD), "rb") as file:
        head = trace_dat_reader.read_head(io.BytesIO(file.read()))
    for account in loss.cpus:
        text = (
            f"CPU: {account.cpu}\nentries: {account.entries}\noverrun: {account.overrun}\n"
            f"dropped events: {account.dropped}\n\n\0"
        )
        head.options.append((trace_dat.OPTION_CPUSTAT, text.encode("ascii")))
    return head


def _read_saved_cmdlines(end: dict[str, Any] | None, instance: Instance | None) -> str:
    if end is not None and "saved_cmdlines" in end:
        return str(end["saved_cmdlines"])
    try:
        return Instance(instance.root, "..").read("saved_cmdlines") if instance is not None else ""
    except TraceError:
        return ""  # a capture without names is better than none
