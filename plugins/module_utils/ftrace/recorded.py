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
    """What can be fetched of FOUND, older recordings first; a buffer that is being recorded is left to its recorder."""
    sources = []
    for one in found:
        own = recordings.list_recordings(one.instance.name)
        for recording in own:
            size = sum(sum(segment.sizes.values()) for segment in recording.list_segments())
            take = partial(capture_recording, recording, one)
            sources.append(capture.Source(one.container_name, size, take))
        is_free = one.instance.exists() and not any(recording.is_running for recording in own)
        # What a recorder's death, or a full disk, has left there; after a recording's own end there is nothing.
        if is_free and (not own or capture.count_entries(one)):
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
        instance = one.instance if is_same_boot and _is_same(one.instance, about) else None
        tasks = (end or {}).get("tasks") or (list_tasks(one.container) if is_same_boot else [])
        pages = capture.PartWriter(file)
        sizes = dict.fromkeys(range(max(about["cpus"]) + 1), 0)
        for cpu in sizes:
            for piece in recordings.gen_pages(segments, cpu):
                whole = len(piece) - len(piece) % about["page_size"]
                pages.write(piece[:whole])
                sizes[cpu] += whole
        pages_part = pages.finish()
        loss = summarize_loss(recording, segments, end, instance, sizes)
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
        recordings.forget_fetched(recording, segments)
        return taken


def _is_same(instance: Instance, about: dict[str, Any]) -> bool:
    try:
        return bool(os.stat(instance.path).st_ino == about["inode"])
    except FileNotFoundError:
        return False


def summarize_loss(
    recording: Recording,
    segments: Sequence[Segment],
    end: dict[str, Any] | None,
    instance: Instance | None,
    sizes: dict[int, int],
) -> dict[str, Any]:
    """The manifest's accounts of SEGMENTS: events in them and lost while they were written, in what was rotated away before, and after the last.

    INSTANCE is None when it is gone: what the recorder's death has cost then nobody can tell.
    """
    page_size = recording.about["page_size"]
    cpus = {
        cpu: {
            "cpu": cpu,
            "entries": 0,
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
        if after is None and instance is not None:
            # The recorder died here: what it had read, and is in no file, is lost, and what the buffers lost when they shrank.
            after = {"cpus": recordings.read_counters(instance)}
        for cpu, row in cpus.items():
            begin = segment.begin["cpus"].get(str(cpu))
            counters = after["cpus"].get(str(cpu)) if after else None
            written = None if segment.end is not None else _count_events(segment, cpu, page_size)
            if counters is None or begin is None:
                row["entries"] += written or 0
                row["exact"] &= begin is None
                continue
            read = recordings.subtract(counters, begin, ("read",))
            row["entries"] += read if written is None else written
            row["overrun"] += recordings.subtract(counters, begin, ("overrun",))
            row["dropped"] += recordings.subtract(counters, begin, ("dropped", "commit_overrun"))
            row["lost"] += recordings.subtract(counters, begin) + (0 if written is None else read - written)
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
