# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain trace instances into one staging file on the host, as the parts of trace.dat files, and account for what was lost.

The staging file holds zlib streams one after the other: for each capture the pages of all its CPUs, then its head,
which can only be written when the sizes are known. The controller puts them together.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Callable, Dict, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import clocks, records, tracedat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tasks import list_tasks
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.tracers import FUNCTION_TRACERS
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscall_names
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import CpuStatistics, Instance, TraceError

if TYPE_CHECKING:  # what starts an instance keeps its head, by this file, for when it is gone
    from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.instances import TraceInstance

_COMPRESSION_LEVEL = 1
Task = Dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A zlib stream in the staging file: where it begins and ends, in bytes, and the sha256 of its content."""

    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where a capture comes from: LABEL names its container, SIZE is how many bytes of pages it has, TAKE moves them to a staging file."""

    label: str
    size: int
    take: Callable[[BinaryIO], dict[str, Any]]


class PartWriter:
    """Writes one compressed part to FILE."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell()
        self._compressor = zlib.compressobj(_COMPRESSION_LEVEL)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(self._compressor.compress(data))

    def finish(self) -> Part:
        self._file.write(self._compressor.flush())
        return Part(self._start, self._file.tell() - self._start, self._hash.hexdigest())


@dataclass(frozen=True)
class CpuLoss:
    """What happened to the events of one CPU in this capture. EXACT is false when more than LOST may be gone."""

    pages: int
    lost: int
    exact: bool


def count_entries(one: TraceInstance) -> int:
    """How many events wait in ONE instance's buffers."""
    return sum(one.instance.read_statistics(cpu).entries for cpu in one.instance.list_cpus())


def stage(sources: list[Source], path: str) -> list[dict[str, Any]]:
    """Move all of SOURCES into the new file PATH: a capture's manifest and places for each.

    Where one of them fails after others were drained, the TraceError holds those in its result: they are nowhere else.
    """
    check_room(path, sources)
    captures: list[dict[str, Any]] = []
    failures = []
    with create_stage(path) as file:
        for source in sources:
            try:
                captures.append(source.take(file))
            except (OSError, FleetError) as error:
                failures.append(f"{source.label}: {error}")
    if failures:
        raise TraceError(f"cannot fetch the trace of {'; '.join(failures)}", captures=captures)
    return captures


def create_stage(path: str) -> BinaryIO:
    """The new staging file PATH, for the owner of its folder, whom the transfer runs as."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    owner = os.stat(os.path.dirname(path))
    os.fchown(fd, owner.st_uid, owner.st_gid)
    return os.fdopen(fd, "wb")


def check_room(path: str, sources: list[Source]) -> None:
    """Raise TraceError unless the file system of PATH can take all that SOURCES hold: what is drained is gone from the kernel."""
    needed = sum(source.size for source in sources)
    place = os.statvfs(os.path.dirname(path))
    free = place.f_bavail * place.f_frsize
    if free < needed + (1 << 20):
        raise TraceError(
            f"{os.path.dirname(path)} has {free >> 10} KiB free and the traces hold up to {needed >> 10} KiB:"
            " make room, or set ansible_remote_tmp to a place that has it"
        )


def capture(one: TraceInstance, file: BinaryIO) -> dict[str, Any]:
    """Drain ONE instance into FILE: its manifest and the places of its two parts."""
    instance = one.instance
    cpus = instance.list_cpus()
    page_size = read_page_size(instance)
    # Before the drain: what fails here must fail while the events are still in the kernel.
    names, compat_names = syscall_names.list_names(), syscall_names.list_compat_names()
    record = records.read_record(instance)
    first_tasks, tasks = record.get("tasks", []), list_tasks(one.container)
    template = read_head(instance, page_size, record, tasks, cpus)
    before = {cpu: instance.read_statistics(cpu) for cpu in cpus}
    # Where the trace was stopped, real time of then counts: the clocks drift apart from each other until now.
    is_tracing = instance.is_tracing()
    end = (None if is_tracing else record.get("end")) or clocks.measure_offset(instance.read_clock())
    pages = PartWriter(file)
    losses = {cpu: _drain(instance, cpu, page_size, before[cpu], pages.write) for cpu in cpus}
    pages_part = pages.finish()
    try:
        # Who was born while one CPU was drained may have called on the next one.
        template.cmdlines = _read_cmdlines(instance, first_tasks, tasks)
    except TraceError:
        pass  # those from before the drain will do: the events must not be lost for names
    after = {cpu: instance.read_statistics(cpu) for cpu in cpus}
    sizes = [losses[cpu].pages * page_size if cpu in losses else 0 for cpu in range(max(cpus) + 1)]
    head = PartWriter(file)
    head.write(tracedat.pack_head(template, sizes))
    manifest = {
        **describe_host(),
        "container": describe_container(one.container) if one.container else _describe_gone(one),
        "instance": instance.name,
        "clock": instance.read_clock(),
        "clock_offset_ns": end["offset_ns"],
        "time": {"start": record.get("start"), "end": end},
        "specification": record.get("specification"),
        "fetched": time.time(),
        "tracing": is_tracing,
        "mode": "ring",
        "limits": record.get("limits", {}),
        "stopped": record.get("stopped"),
        "buffer_kb": instance.read("buffer_size_kb"),
        "events": instance.read_events() or record.get("events", {}),
        "first_tasks": first_tasks,
        "tasks": tasks,
        "syscalls": {str(number): name for number, name in names.items()},
        "compat_syscalls": {str(number): name for number, name in compat_names.items()},
        **summarize_loss(before, after, losses),
    }
    return {"manifest": manifest, "pages": vars(pages_part), "head": vars(head.finish())}


def summarize_loss(
    before: dict[int, CpuStatistics], after: dict[int, CpuStatistics], losses: dict[int, CpuLoss]
) -> dict[str, Any]:
    """The manifest's accounts: per CPU the kernel's counters since the trace began, and what is missing in this capture."""
    cpus = []
    for cpu, loss in losses.items():
        entries = before[cpu].entries
        cpus.append(
            {
                "cpu": cpu,
                **vars(after[cpu]),
                "entries": entries,
                "pages": loss.pages,
                "lost": loss.lost,
                "exact": loss.exact,
            }
        )
    lost = sum(loss.lost for loss in losses.values())
    # These two stay zero while the oldest events are overwritten; the kernel keeps no account per reader of them.
    refused = sum(one.dropped + one.commit_overrun for one in after.values())
    exact = all(loss.exact for loss in losses.values())
    return {
        "cpus": cpus,
        "entries": sum(one.entries for one in before.values()),
        "pages": sum(loss.pages for loss in losses.values()),
        "lost": lost + refused,
        "lost_exact": exact,
        "complete": exact and lost + refused == 0,
    }


def _drain(
    instance: Instance, cpu: int, page_size: int, before: CpuStatistics, write: Callable[[bytes], None]
) -> CpuLoss:
    """Copy the pages that CPU's buffer holds. Writers may go on; it ends after one buffer's length at the latest."""
    limit = int(instance.read(f"per_cpu/cpu{cpu}/buffer_size_kb").split()[0]) * 1024 // (page_size - 16) + 2
    count = lost = unknown = 0
    for page in gen_pages(instance, cpu, page_size):
        missed, is_known = tracedat.read_loss(page)
        lost += missed
        unknown += not is_known
        write(page)
        count += 1
        if count == limit:
            break
    if unknown and before.read == 0:
        # Nobody has read before us: the kernel's counter since the start is the number.
        return CpuLoss(count, max(lost, before.overrun), True)
    return CpuLoss(count, lost, unknown == 0)


def gen_pages(instance: Instance, cpu: int, page_size: int) -> Iterator[bytes]:
    """The pages that CPU's buffer of INSTANCE holds, taken out of it."""
    fd = os.open(f"{instance.path}/per_cpu/cpu{cpu}/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                page = os.read(fd, page_size)
            except BlockingIOError:
                return
            if not page:
                return
            yield page.ljust(page_size, b"\0")
    finally:
        os.close(fd)


def read_page_size(instance: Instance) -> int:
    """Bytes of one page of the ring buffer, from the format of its data field."""
    for line in instance.read("events/header_page").splitlines():
        if "data" in line:
            numbers = dict(part.strip().split(":") for part in line.split(";") if part.count(":") == 1)
            return int(numbers["offset"]) + int(numbers["size"])
    raise TraceError("events/header_page of tracefs does not say how long a page is")


def read_head(
    instance: Instance, page_size: int, record: dict[str, Any], tasks: list[Task], cpus: list[int]
) -> tracedat.Head:
    """The head of a trace.dat of INSTANCE, without its pages; RECORD is what is known of its start."""
    events: dict[str, list[bytes]] = {}
    # Of a trace that its limits have ended no event is on any more.
    for event in sorted({**record.get("events", {}), **instance.read_events()}):
        system, name = event.split(":")
        events.setdefault(system, []).append(instance.read_bytes(f"events/{system}/{name}/format"))
    top = Instance(instance.root, "..")  # the files that instances lack
    ftrace_folder = os.path.join(top.path, "events/ftrace")
    names = sorted(name for name in os.listdir(ftrace_folder) if os.path.isdir(os.path.join(ftrace_folder, name)))
    uname = platform.uname()
    statistics = [f"CPU: {cpu}\n{instance.read(f'per_cpu/cpu{cpu}/stats')}\n\0".encode() for cpu in cpus]
    return tracedat.Head(
        page_size=page_size,
        header_page=instance.read_bytes("events/header_page"),
        header_event=instance.read_bytes("events/header_event"),
        ftrace_formats=[top.read_bytes(f"events/ftrace/{name}/format") for name in names],
        event_formats=events,
        kallsyms=_read_kallsyms() if instance.read("current_tracer") in FUNCTION_TRACERS else b"",
        printk=top.read_bytes("printk_formats"),
        cmdlines=_read_cmdlines(instance, record.get("tasks", []), tasks),
        options=[
            (tracedat.OPTION_TRACECLOCK, instance.read_bytes("trace_clock") + b"\0"),
            (tracedat.OPTION_UNAME, f"{uname.system} {uname.node} {uname.release} {uname.version}\0".encode()),
            *((tracedat.OPTION_CPUSTAT, text) for text in statistics),
        ],
    )


def _read_kallsyms() -> bytes:
    """Addresses and names of the kernel's functions; megabytes, so only for traces that have functions."""
    with open("/proc/kallsyms", "rb") as file:
        return b"".join(line for line in file if line.split(b" ", 2)[1] in b"tTwW")


def _read_cmdlines(instance: Instance, first_tasks: list[Task], tasks: list[Task]) -> bytes:
    return format_cmdlines(first_tasks, Instance(instance.root, "..").read("saved_cmdlines"), tasks)


def format_cmdlines(first_tasks: list[Task], saved: str, tasks: list[Task]) -> bytes:
    """Lines of 'tid comm': the container's threads of now, before them what the kernel remembers, before that those of the start."""
    names = {task["tid"]: task["comm"] for task in first_tasks}
    for line in saved.split("\n"):
        tid, space, comm = line.partition(" ")
        if tid.isdigit() and space:
            names[int(tid)] = comm
    names.update((task["tid"], task["comm"]) for task in tasks)
    lines = [f"{tid} {make_printable(comm)[:15] or '?'}\n" for tid, comm in sorted(names.items())]
    return "".join(lines).encode("ascii")


def make_printable(text: str) -> str:
    """TEXT with '?' for every character that a terminal might obey."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)


def describe_host() -> dict[str, Any]:
    """What a manifest says of the host."""
    uname = platform.uname()
    return {
        "host": uname.node,
        "kernel": uname.release,
        "arch": uname.machine,
        "boot_id": records.read_boot_id(),
    }


def describe_container(container: Container) -> dict[str, Any]:
    """What a manifest says of CONTAINER."""
    return {name: getattr(container, name) for name in ("id", "name", "image", "labels", "runtime")}


def _describe_gone(one: TraceInstance) -> dict[str, Any]:
    return {"id": one.container_id, "name": one.container_name, "image": None, "labels": {}, "runtime": None}
