# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the pages of a capture come from: the ring buffer of an instance, or the files of its recordings."""

from __future__ import annotations

import io
import os
import time
from functools import partial
from typing import Any, BinaryIO, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import (
    capture,
    clocks,
    keeping,
    recordings,
    records,
    tracedat,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.instances import TraceInstance
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recordings import Recording, Segment
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscall_names
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance, TraceError


def list_sources(found: Sequence[TraceInstance]) -> list[capture.Source]:
    """What can be fetched of FOUND, older recordings first."""
    sources = []
    for one in found:
        own = recordings.list_recordings(one.instance.name)
        for recording in own:
            size = sum(sum(segment.sizes.values()) for segment in recording.list_segments())
            take = partial(capture_recording, recording, one)
            sources.append(capture.Source(one.container_name, size, take))
        # The buffers of a recording are its recorder's, and what they hold afterwards belongs to it.
        if one.instance.exists() and not (own and keeping.is_recorded(one.instance)):
            size = sum(one.instance.read_statistics(cpu).bytes for cpu in one.instance.list_cpus())
            sources.append(capture.Source(one.container_name, size, partial(capture.capture, one)))
    return sources


def count_entries(one: TraceInstance) -> int:
    """How many events, or bytes of pages where nobody has counted, wait to be fetched of ONE."""
    waiting = capture.count_entries(one) if one.instance.exists() else 0
    for recording in recordings.list_recordings(one.instance.name):
        waiting += sum(sum(segment.sizes.values()) for segment in recording.list_segments())
    return waiting


def capture_recording(recording: Recording, one: TraceInstance, file: BinaryIO) -> dict[str, Any]:
    """Put what is finished of RECORDING into FILE and take it away: its manifest and the places of its two parts."""
    names, compat_names = syscall_names.list_names(), syscall_names.list_compat_names()
    if recording.is_running:
        recordings.ask_to_finish(recording)
    with recordings.hold(recording.path):
        about, record, end = recording.about, recording.about["record"], recording.read_end()
        segments = [segment for segment in recording.list_segments() if segment.end is not None or end is not None]
        is_same_boot = about["boot_id"] == records.read_boot_id()
        instance = one.instance if recording.is_of(one.instance) else None
        tasks = (end or {}).get("tasks") or (list_tasks(one.container) if is_same_boot else [])
        has_rest = instance is not None and end is not None and _is_last(recording) and keeping.is_recorded(instance)
        counters = recordings.read_counters(instance) if instance and has_rest else (end or {}).get("counters")
        pages = capture.PartWriter(file)
        sizes = dict.fromkeys(range(max(about["cpus"]) + 1), 0)
        rest = dict.fromkeys(sizes, 0)
        for cpu in sizes:
            for piece in recordings.gen_pages(segments, cpu):
                whole = len(piece) - len(piece) % about["page_size"]
                pages.write(piece[:whole])
                sizes[cpu] += whole
            # A recorder's death, or a full disk, leaves a page or two in the buffer.
            for page in capture.gen_pages(instance, cpu, about["page_size"]) if instance and has_rest else ():
                pages.write(page)
                sizes[cpu] += len(page)
                rest[cpu] += tracedat.count_events(page, about["page_size"])
        pages_part = pages.finish()
        loss = summarize_loss(recording, segments, end, counters, sizes, rest)
        head = capture.PartWriter(file)
        head.write(tracedat.pack_head(_read_head(recording, loss, end, instance, tasks), list(sizes.values())))
        now = clocks.measure_offset(about["clock"]) if is_same_boot else None
        time_of_end = (end or {}).get("time") or now or record.get("start") or {"offset_ns": None}
        container = one.container
        manifest = {
            **{
                name: about[name]
                for name in ("host", "kernel", "arch", "boot_id", "instance", "clock", "buffer_kb", "events")
            },
            "container": capture.describe_container(container) if container else about["container"],
            "clock_offset_ns": time_of_end["offset_ns"],
            "time": {"start": record.get("start"), "end": time_of_end},
            "specification": record.get("specification"),
            "fetched": time.time(),
            "tracing": end is None,
            "mode": "record",
            "limits": about["limits"],
            "first_tasks": record.get("tasks", []),
            "tasks": tasks,
            "syscalls": {str(number): name for number, name in names.items()},
            "compat_syscalls": {str(number): name for number, name in compat_names.items()},
            "stopped": end["why"] if end else None,
            **loss,
        }
        taken = {"manifest": manifest, "pages": vars(pages_part), "head": vars(head.finish())}
        recordings.forget_fetched(recording, segments, has_ended=end is not None)
        return taken


def _is_last(recording: Recording) -> bool:
    return recordings.list_recordings(recording.name)[-1].path == recording.path


def summarize_loss(
    recording: Recording,
    segments: Sequence[Segment],
    end: dict[str, Any] | None,
    counters: dict[str, recordings.Counters] | None,
    sizes: dict[int, int],
    rest: dict[int, int],
) -> dict[str, Any]:
    """The manifest's accounts of SEGMENTS: events in them and lost while they were written, in what was rotated away before, and after the last.

    COUNTERS are the kernel's after all that; without them nobody can tell what the recorder's death has cost. SIZES are bytes of pages,
    REST events that were still in the buffer, for each CPU.
    """
    page_size = recording.about["page_size"]
    cpus = {
        cpu: {
            "cpu": cpu,
            "entries": rest[cpu],
            "overrun": 0,
            "dropped": 0,
            "lost": 0,
            "exact": True,
            "pages": size // page_size,
        }
        for cpu, size in sizes.items()
    }
    unwritten = 0
    for segment in segments:
        after = segment.end
        if after is None and counters is not None:
            # The recorder died here: what it had read, and is in no file, is lost, and what the buffers lost when they shrank.
            after = {"cpus": counters}
        for cpu, row in cpus.items():
            begin = segment.begin["cpus"].get(str(cpu))
            last = after["cpus"].get(str(cpu)) if after else None
            written = None if segment.end is not None else _count_events(segment, cpu, page_size)
            if last is None or begin is None:
                row["entries"] += written or 0
                row["exact"] &= begin is None
                continue
            read = recordings.subtract(last, begin, ("read",))
            row["entries"] += read if written is None else written
            row["overrun"] += recordings.subtract(last, begin, ("overrun",))
            row["dropped"] += recordings.subtract(last, begin, ("dropped", "commit_overrun"))
            row["lost"] += recordings.subtract(last, begin) + (0 if written is None else read - written)
        unwritten += (segment.end or {}).get("unwritten", 0)
    rotated = recording.read_rotated()
    lost = sum(row["lost"] for row in cpus.values()) + unwritten + rotated["events"] + rotated["lost"]
    lost += (end or {}).get("lost", 0)
    exact = all(row["exact"] for row in cpus.values())
    has_died = end is not None and end["why"] == recordings.DIED
    return {
        "cpus": list(cpus.values()),
        "entries": sum(row["entries"] for row in cpus.values()) - unwritten,
        "pages": sum(row["pages"] for row in cpus.values()),
        "segments": len(segments),
        "rotated": {name: rotated[name] for name in ("segments", "events", "bytes")},
        "lost": lost,
        "lost_exact": exact,
        "complete": exact and lost == 0 and not has_died,
    }


def _count_events(segment: Segment, cpu: int, page_size: int) -> int:
    return sum(tracedat.count_events(piece, page_size) for piece in recordings.gen_pages([segment], cpu))


def _read_head(
    recording: Recording,
    loss: dict[str, Any],
    end: dict[str, Any] | None,
    instance: Instance | None,
    tasks: list[capture.Task],
) -> tracedat.Head:
    with open(os.path.join(recording.path, recordings.HEAD), "rb") as file:
        head = tracedat.read_head(io.BytesIO(file.read()))
    saved = (end or {}).get("saved_cmdlines")
    if saved is None and instance is not None:
        try:
            saved = Instance(instance.root, "..").read("saved_cmdlines")
        except TraceError:
            saved = None  # the events must not be lost for names
    head.cmdlines = capture.format_cmdlines(recording.about["record"].get("tasks", []), saved or "", tasks)
    for row in loss["cpus"]:
        text = f"CPU: {row['cpu']}\nentries: {row['entries']}\noverrun: {row['overrun']}\ndropped events: {row['dropped']}\n\n\0"
        head.options.append((tracedat.OPTION_CPUSTAT, text.encode("ascii")))
    return head
