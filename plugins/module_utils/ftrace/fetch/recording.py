# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the pages of a capture come from: the ring buffer of an instance, or the files of its recordings."""

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
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.tasks import format_cmdlines, list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import (
    ring_pages,
    trace_dat,
    trace_dat_reader,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import SegmentWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.loss import CpuLoss, Loss, Rotated
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import (
    Manifest,
    Tables,
    describe_container,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, handover, recordings
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder.recordings import LOST, Recording, Segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_OLDER = "nobody watched the trace: an older version of this collection recorded it"


def list_sources(one: TraceInstance) -> list[ring.Source]:
    """What can be fetched of ONE, older recordings first. The caller holds its lock."""
    sources = []
    for recording in recordings.list_recordings(one.instance.name):
        taking = _Taking(recording, one)
        size = next((sum(segment.sizes.values()) for segment in recording.list_segments()), 0)
        sources.append(ring.Source(one.instance, size, taking.take, taking.finish))
    # The buffers of a recording are its recorder's, and what they hold afterwards belongs to it.
    if one.instance.exists() and not handover.is_recorded(one.instance):
        size = sum(one.instance.read_statistics(cpu).bytes for cpu in one.instance.list_cpus())
        draining = ring.RingDrain(one)
        sources.append(ring.Source(one.instance, size, draining.take, draining.finish))
    removed = metadata.read_removed(one.instance)
    if removed is not None and not sources:
        raise TraceError(
            f"{metadata.describe_removed(removed)}; what it held is gone: start the trace again, or forget it"
            " (ftrace_instance with state=absent)"
        )
    return sources


def count_entries(one: TraceInstance) -> int:
    """How many events, or bytes of pages where nobody has counted, wait to be fetched of ONE."""
    waiting = ring.count_entries(one) if one.instance.exists() and not handover.is_recorded(one.instance) else 0
    for recording in recordings.list_recordings(one.instance.name):
        waiting += sum(sum(segment.sizes.values()) for segment in recording.list_segments())
    return waiting


class _Taking:
    """RECORDING on its way into a segment; until finish() no file of it is removed, and the recorder rotates none away."""

    def __init__(self, recording: Recording, one: TraceInstance) -> None:
        self._recording = recording
        self._one = one
        self._stack = ExitStack()
        self._segments: list[Segment] = []
        self._has_ended = False

    def take(self, writer: SegmentWriter, room: int) -> dict[str, Any]:
        """Copy what is finished and has ROOM into WRITER: the manifest, which comes last, so that a copy that was killed is none."""
        recording = self._recording
        was_answered = not recording.is_running or recordings.ask_to_finish(recording)
        with ExitStack() as stack:
            stack.enter_context(recordings.hold(recording.path))
            end = recording.read_end()
            finished = [one for one in recording.list_segments() if one.end is not None or end is not None]
            self._segments = _find_fitting(finished, room)
            is_partial = len(self._segments) < len(finished)
            self._has_ended = end is not None and not is_partial
            touched = [] if was_answered else [client.describe_silence()]
            manifest = _copy(recording, self._segments, end, self._one, writer, touched, is_partial=is_partial)
            self._stack = stack.pop_all()
        return manifest

    def finish(self) -> None:
        """Take away what was copied."""
        with self._stack:
            recordings.forget_fetched(self._recording, self._segments, has_ended=self._has_ended)


def _find_fitting(segments: list[Segment], room: int) -> list[Segment]:
    """The first of SEGMENTS, as many as have ROOM; one at least."""
    sizes = list(accumulate(sum(one.sizes.values()) for one in segments))
    return segments[: max(1, bisect_right(sizes, room))]


def _copy(
    recording: Recording,
    segments: list[Segment],
    end: dict[str, Any] | None,
    one: TraceInstance,
    writer: SegmentWriter,
    touched: Sequence[str],
    *,
    is_partial: bool,
) -> dict[str, Any]:
    """Copy SEGMENTS of RECORDING, which has an END or goes on; where IS_PARTIAL others follow, and only then the end.

    TOUCHED tells why there may be more that is not in them.
    """
    last = None if is_partial else end
    about, record = recording.about, recording.about["record"]
    is_same_boot = about["boot_id"] == boot.read_boot_id()
    instance = one.instance if recording.is_of(one.instance) else None
    has_rest = instance is not None and last is not None and _is_last(recording) and handover.is_recorded(instance)
    counters = recordings.read_counters(instance) if instance and has_rest else (last or {}).get("counters")
    tasks = (end or {}).get("tasks") or (list_tasks(one.container) if is_same_boot else [])
    first_tasks = record.get("tasks", [])
    cmdlines = format_cmdlines(first_tasks, _read_saved_cmdlines(end, instance), tasks)
    tables = Tables(first_tasks, tasks, cmdlines)
    sizes, rest, unreadable = _copy_pages(segments, about, instance if has_rest else None, writer)
    loss = summarize_loss(recording, segments, last, counters, sizes, rest, is_partial=is_partial)
    loss = replace(loss, touched=[*loss.touched, *unreadable, *touched])
    now = clocks.measure_offset(about["clock"]) if is_same_boot else None
    time_of_end = (end or {}).get("time") or now or record.get("start")
    manifest = Manifest(
        host={name: about[name] for name in ("host", "kernel", "arch", "boot_id")},
        container=describe_container(one.container) if one.container else about["container"],
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
        has_run=bool(first_tasks or tasks),
        tracing=end is None,
        stopped=last["why"] if last else None,
    )
    writer.write_head(_read_head(recording, loss))
    document = manifest.as_json(loss)
    writer.write_document({**document, **tables.as_json()})
    return document


def _copy_pages(
    segments: Sequence[Segment], about: dict[str, Any], instance: Instance | None, writer: SegmentWriter
) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Copy the pages of SEGMENTS of a recording that ABOUT tells of and, where there is one, what is left in the buffer of INSTANCE.

    Return the bytes of pages and the events that were left, by CPU, and what could not be read.
    """
    page_size = about["page_size"]
    sizes = dict.fromkeys(range(max(about["cpus"]) + 1), 0)
    rest = dict.fromkeys(sizes, 0)
    unreadable = []
    for cpu in sizes:
        for segment in segments:
            sizes[cpu] += _copy_file(os.path.join(segment.path, f"cpu{cpu}"), page_size, cpu, writer)
        # A recorder's death, or a full disk, leaves a page or two in the buffer.
        try:
            for page in drain.gen_pages(instance, cpu, page_size) if instance is not None else ():
                writer.write_chunk(cpu, writer.make_compressor()(page), len(page))
                sizes[cpu] += len(page)
                rest[cpu] += ring_pages.count_events(page, page_size)
        except drain.Unreadable as error:
            unreadable.append(str(error))
    return sizes, rest, unreadable


def _find_change(segments: Sequence[Segment], record: dict[str, Any], offset_ns: int | None) -> dict[str, Any] | None:
    """From when on SEGMENTS have all events of all CPUs: before that some are in the segments before them, or in other traces."""
    if not segments or segments[0].number == 1:
        return record.get("changed")
    return {"offset_ns": offset_ns, "real_time_ns": int(segments[0].begin["time"] * 10**9)}


def _copy_file(path: str, page_size: int, cpu: int, writer: SegmentWriter) -> int:
    """Copy the whole pages of file PATH into WRITER; bytes of pages. Raises TraceError: the file stays then, for another fetch."""
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
    """Return what SEGMENTS of RECORDING lack: events lost while they were written, in what was rotated away before, and after the last.

    END is its end if that comes with them. COUNTERS are the kernel's after all that; without them nobody can tell what the recorder's
    death has cost. SIZES are bytes of pages, REST events that were still in the buffer, for each CPU.
    """
    page_size = recording.about["page_size"]
    cpus = {cpu: CpuLoss(cpu, entries=rest[cpu], pages=size // page_size) for cpu, size in sizes.items()}
    touched = [] if recording.about.get("watched") else [_OLDER]
    unwritten = 0
    for segment in segments:
        after = segment.end
        if after is None and counters is not None:
            # The recorder died here: what it had read, and is in no file, is lost, and what the buffers lost when they shrank.
            after = {"cpus": counters}
        for _cpu, account in cpus.items():
            _add_segment(account, segment, after, page_size)
        unwritten += (segment.end or {}).get("unwritten", 0)
        touched += (segment.end or {}).get("touched", ())
    has_died = end is not None and end["why"] == recordings.DIED
    if has_died:
        touched.append("the recorder died, and tracing stopped with it")
    last_words = segments[-1].end if segments and has_died else None
    rotated = recording.read_rotated()
    others = rotated["lost"] + (end or {}).get("lost", 0)
    if last_words is not None and counters is not None:
        # It died behind its last segment: what the buffers lost when they shrank is in none.
        others += sum(max(0, recordings.subtract(after, last_words["cpus"][cpu])) for cpu, after in counters.items())
    return Loss(
        list(cpus.values()),
        others=others,
        unwritten=unwritten,
        rotated=Rotated(*(rotated[name] for name in ("segments", "events", "bytes"))),
        segments=len(segments),
        partial=is_partial,
        exact=rotated["exact"] and (last_words is None or counters is not None),
        touched=[*touched, *(end or {}).get("touched", ())],
    )


def _add_segment(account: CpuLoss, segment: Segment, after: dict[str, Any] | None, page_size: int) -> None:
    """Add SEGMENT, at whose end the counters were AFTER, to the ACCOUNT of a CPU."""
    cpu = str(account.cpu)
    account.exact &= segment.begin["exact"]
    begin = segment.begin["cpus"].get(cpu)
    last = after["cpus"].get(cpu) if after else None
    # Counters that are smaller than before began anew, since somebody has cleared the trace.
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
        return ""  # the events must not be lost for names
