# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that were reached, with their names and values: descriptors, processes, memory, file systems, quotas.

The host reads the values at the beginning and at the end of a capture (resources.py). An error says which kind of limit it was. Where several
limits give one error, the rule names the one that the numbers show, and else says that the limit is not known.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.layouts import FORKS
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.attempts import Attempts
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture, Cell, group
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.causes import find_rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.commands import run_in
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Number, Thing
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.resources import Mount, Resources
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule

_SEVERITY, _SEVERITY_MEMORY, _SEVERITY_PRESSED, _SEVERITY_KILLED = 85, 60, 20, 85
_FULL = 0.02  # of a file system that is free, when it is full
_MIN_REFUSED = 3  # mappings: a program also tries large pages, and does without them
_NEAR = 0.95
# Errors of calls on objects that have limits of their own, by call and error.
_OWN_LIMITS = {
    ("inotify_init", "EMFILE"): "fs.inotify.max_user_instances",
    ("inotify_init1", "EMFILE"): "fs.inotify.max_user_instances",
    ("inotify_add_watch", "ENOSPC"): "fs.inotify.max_user_watches",
    ("epoll_ctl", "ENOSPC"): "fs.epoll.max_user_watches",
    ("mq_open", "EMFILE"): "msgqueue",
    ("mq_open", "ENOSPC"): "fs.mqueue.queues_max",
    ("shmget", "ENOSPC"): "kernel.shmmni",
    ("semget", "ENOSPC"): "kernel.sem",
    ("msgget", "ENOSPC"): "kernel.msgmni",
    ("mlock", "ENOMEM"): "memlock",
    ("mlock2", "ENOMEM"): "memlock",
    ("mlockall", "ENOMEM"): "memlock",
    ("unshare", "ENOSPC"): "user.max_*_namespaces",
    ("clone", "ENOSPC"): "user.max_*_namespaces",
    ("unshare", "EUSERS"): "user.max_user_namespaces",
    ("keyctl", "EDQUOT"): "kernel.keys.maxkeys",
    ("add_key", "EDQUOT"): "kernel.keys.maxkeys",
}
_MAPPINGS = frozenset({"mmap", "brk", "mremap", "mprotect"})


@dataclass(frozen=True)
class _Limit:
    """The part of a finding that is about a limit. TEXT is a part of a template, with placeholders for NUMBERS and WORDS."""

    name: str
    text: str
    numbers: dict[str, Number] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    missing: str | None = None
    confidence: str = "certain"
    severity: int = _SEVERITY
    command: tuple[str, ...] = ()  # the default shows the limits of the process


def find(capture: Capture) -> Iterator[Finding]:
    """Yield a finding for each limit and program of CAPTURE."""
    resources = Resources(capture.manifest)
    failed = [cell for cell in capture.cells if find_rule(cell) == "limits"]
    shown = [cell for cell in failed if cell.outcome.error != "ENOSPC" or (cell.call, "ENOSPC") in _OWN_LIMITS]
    told: set[str] = set()
    for (program, name, error), cells in group(shown, lambda c: (c.who.program, _find_name(c), c.outcome.error)):
        if error == "ENOMEM" and name == "memory" and not _is_refused(capture, cells):
            continue
        limit = _describe(name, cells, resources)
        told.add(limit.name)
        yield _make_finding(capture, limit, program, cells)
    for path, cells in group(
        (cell for cell in failed if cell not in shown), lambda cell: _find_mount_path(cell, resources)
    ):
        yield _make_full(capture, resources, path, cells)
    yield from _find_grown(capture, resources, told)


def _find_name(cell: Cell) -> str:
    """Return the name of the limit that CELL met; memory and processes have several."""
    error = cell.outcome.error or ""
    own = _OWN_LIMITS.get((cell.call, error))
    if own:
        return own
    if error == "EAGAIN":
        return "processes" if cell.call in FORKS else "nproc"
    names = {"EMFILE": "nofile", "ENFILE": "fs.file-max", "EDQUOT": "disk quota", "EFBIG": "fsize", "ENOMEM": "memory"}
    return names.get(error, "sockets' memory" if error == "ENOBUFS" else "locks" if error == "ENOLCK" else error)


def _is_refused(capture: Capture, cells: Sequence[Cell]) -> bool:
    """Return True if the memory that CELLS asked for was needed: not an attempt with large pages that a program does without."""
    attempts = Attempts(capture)
    tries: Counter[int] = Counter()
    for cell in cells:
        tries[cell.who.pid] += cell.count
    is_mapping = all(cell.call in _MAPPINGS for cell in cells)
    return not is_mapping or max(tries.values()) >= _MIN_REFUSED or any(map(attempts.has_ended_it, cells))


def _describe(name: str, cells: Sequence[Cell], resources: Resources) -> _Limit:
    if name == "nofile":
        return _describe_nofile(cells, resources)
    if name == "processes":
        return _describe_processes(cells, resources)
    if name == "memory":
        return _describe_memory(resources)
    if name == "nproc":
        return _of_process("nproc", "its user's limit of {limit} processes (nproc)", cells, resources)
    value = f"the value of {name}"
    command = ("sysctl", name) if name.startswith(("fs.", "kernel.", "user.")) and "*" not in name else None
    texts = {
        "fs.file-max": "the host's limit of open files (fs.file-max)",
        "disk quota": "the disk quota of {place}",
        "fsize": "a limit of a file's size (fsize, or the file system's)",
        "memlock": "its limit of locked memory (memlock)",
    }
    place = next((cell.object.text for cell in cells if cell.object), "a file system that is not recorded")
    found = _Limit(name, texts.get(name, "the limit {name}"), {}, {"name": name, "place": place}, value)
    return _Limit(**{**found.__dict__, "command": command}) if command else found


def _of_process(name: str, text: str, cells: Sequence[Cell], resources: Resources) -> _Limit:
    """Return the limit NAME of the processes of CELLS; TEXT has {limit}, which is left out where the value is not known."""
    found = {resources.find_process(cell.who.pid, name).known for cell in cells}
    value = found.pop() if len(found) == 1 else None
    value = value or resources.guess_limit(name)
    if value:
        return _Limit(name, text, {"limit": Number(value)})
    return _Limit(name, text.replace("of {limit} ", "of "), missing=f"the value of {name}")


def _describe_nofile(cells: Sequence[Cell], resources: Resources) -> _Limit:
    return _of_process("nofile", "its limit of {limit} open descriptors (nofile)", cells, resources)


def _describe_processes(cells: Sequence[Cell], resources: Resources) -> _Limit:
    """Return which limit of processes it was: that of the control group if its counter has grown, or if it is near."""
    most, current = resources.find_group("pids.max"), resources.find_group("pids.current")
    is_near = bool(most.known) and max(current.first or 0, current.last or 0) >= _NEAR * (most.known or 0)
    if most.known and (resources.find_group("pids.events.max").growth or is_near):
        return _Limit(
            "pids.max",
            "the container's limit of {limit} processes and threads (pids.max)",
            {"limit": Number(most.known)},
            command=("ps", "-eLf"),
        )
    if most.known is None and resources.has_group("pids.max"):
        return _of_process("nproc", "its user's limit of {limit} processes (nproc)", cells, resources)
    if most.known:
        return _Limit(
            "pids",
            "a limit of processes (pids.max is {limit}, or nproc)",
            {"limit": Number(most.known)},
            missing="which of the limits it was",
            confidence="likely",
            command=("ps", "-eLf"),
        )
    return _Limit(
        "pids",
        "a limit of processes (pids.max or nproc)",
        missing="which of the limits it was, and its value",
        command=("ps", "-eLf"),
    )


def _describe_memory(resources: Resources) -> _Limit:
    most = resources.find_group("memory.max").known
    names = ("memory.events.max", "memory.events.oom", "memory.events.oom_kill")
    if most and any(resources.find_group(name).growth > 0 for name in names):
        return _Limit(
            "memory.max",
            "the container's limit of {limit} of memory (memory.max)",
            {"limit": Number(most, unit="bytes")},
            confidence="likely",
            missing="whether it was this limit, or one of its address space (as, vm.max_map_count)",
            command=("cat", "/proc/meminfo"),
        )
    return _Limit(
        "memory",
        "a limit of memory or of address space",
        severity=_SEVERITY_MEMORY,
        missing="which limit: memory.max, as, vm.overcommit_memory or vm.max_map_count",
        confidence="likely",
        command=("sysctl", "vm.overcommit_memory", "vm.max_map_count"),
    )


def _make_finding(capture: Capture, limit: _Limit, program: str, cells: Sequence[Cell]) -> Finding:
    calls: Counter[str] = Counter()
    for cell in cells:
        calls[cell.call] += cell.count
    call = max(sorted(calls), key=lambda name: calls[name])
    numbers = {cell.call for cell in cells}
    of = sum(c.count for c in capture.cells if c.who.program == program and c.call in numbers)
    return capture.make_finding(
        cells,
        rule="limits",
        template=f"{{program}} reached {limit.text}: {{call}} failed with {{error}}, {{often}}",
        severity=limit.severity,
        program=program,
        call=call,
        error=cells[0].outcome.error,
        object=Thing("limit", limit.name),
        numbers=limit.numbers,
        words=limit.words,
        of=of,
        confidence=limit.confidence,
        missing=capture.loss or limit.missing,
        next=run_in(capture.place, *(limit.command or _show_limits(cells))),
    )


def _show_limits(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the command that shows the limits of the process of CELLS; of the container's first one where its number is not known."""
    pids = [cell.who.container_pid for cell in cells if cell.who.container_pid is not None]
    return "cat", f"/proc/{max(pids, default=1)}/limits"


def _find_mount_path(cell: Cell, resources: Resources) -> str | None:
    """Return where the file system is mounted that has no space for CELL; None where that is not known."""
    if cell.object is not None and cell.object.kind == "path" and cell.object.text.startswith("/"):
        mount = resources.find_mount(cell.object.text)
        # A file system with room is not the full one: another, whose size is not known, may be mounted above the path.
        return mount.path if mount and _is_full(mount) else cell.object.text
    full = [mount for mount in resources.list_mounts() if _is_full(mount)]
    return full[0].path if len(full) == 1 else None


def _is_full(mount: Mount) -> bool:
    return any(
        size and free is not None and free <= _FULL * size
        for size, free in ((mount.size, mount.free), (mount.files, mount.free_files))
    )


def _make_full(capture: Capture, resources: Resources, path: str | None, cells: Sequence[Cell]) -> Finding:
    programs: Counter[str] = Counter()
    for cell in cells:
        programs[cell.who.program] += cell.count
    program = max(sorted(programs), key=lambda name: programs[name])
    mount = next((mount for mount in resources.list_mounts() if mount.path == path), None)
    is_named = any(cell.object is not None and cell.object.kind == "path" for cell in cells)
    numbers, words, missing = {}, {}, None
    if mount is not None:
        is_out_of_files = bool(mount.files) and (mount.free_files or 0) <= _FULL * (mount.files or 0)
        is_out_of_room = bool(mount.size) and (mount.free or 0) <= _FULL * (mount.size or 0)
        number = Number(mount.files or 0) if not is_out_of_room else Number(mount.size or 0, unit="bytes")
        numbers, words = {"size": number}, {"filesystem": mount.filesystem}
        what = "{size} files" if is_out_of_files and not is_out_of_room else "{size}"
        text = f"the file system at {{object}} is full ({{filesystem}} of {what})"
    else:
        text = "there is no space left for {object}" if path else "a file system is full"
        missing = "the size of the file system" if path else "which file system: the path was not recorded"
    return capture.make_finding(
        cells,
        rule="limits",
        template=f"{text}: {{call}} of {{program}} failed with ENOSPC, {{often}}",
        severity=_SEVERITY,
        program=program,
        call=max(cells, key=lambda cell: cell.count).call,
        error="ENOSPC",
        object=Thing("path", path) if path else Thing("limit", "space"),
        numbers=numbers,
        words=words,
        confidence="certain" if is_named or mount is None else "likely",
        missing=capture.loss or missing,
        next=run_in(capture.place, "df", "-h", *([path] if path else [])),
    )


def _find_grown(capture: Capture, resources: Resources, told: set[str]) -> Iterator[Finding]:
    """Yield findings for limits of the control group that were met, by its own counters, and that no call of the capture has TOLD."""
    for name, counter, text, severity, unit in (
        ("pids.max", "pids.events.max", "processes and threads", _SEVERITY, ""),
        (
            "memory.max",
            "memory.events.oom_kill",
            "memory, and the kernel killed a process each time",
            _SEVERITY_KILLED,
            "bytes",
        ),
        ("memory.max", "memory.events.oom", "memory, and there was none left to free", _SEVERITY, "bytes"),
        ("memory.max", "memory.events.max", "memory, and had to free some to go on", _SEVERITY_PRESSED, "bytes"),
    ):
        growth, most = resources.find_group(counter).growth, resources.find_group(name).known
        if growth <= 0 or name in told:
            continue
        told.add(name)
        of = "of {limit} of" if unit else "of {limit}"
        yield Finding(
            rule="limits",
            template=f"the container reached its limit {of if most else 'of'} {text} ({name}), {{often}}",
            severity=severity,
            next=run_in(capture.place, *(("ps", "-eLf") if name == "pids.max" else ("ps", "aux", "--sort=-rss"))),
            object=Thing("limit", name),
            numbers={"limit": Number(most, unit=unit)} if most else {},
            where=(capture.place,),
            count=growth,
            first=capture.format_time(capture.tables.start_ns),
            last=capture.format_time(capture.tables.end_ns),
            missing=capture.loss or (None if most else f"the value of {name}"),
        )


RULE = Rule(name="limits", title="limits that were reached", find=find)
