# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes as the kernel has them: one list for the whole host, each switched on by instances.

Source: Documentation/trace/kprobetrace.rst, uprobetracer.rst and eprobetrace.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import re
import time
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    Instance,
    TraceError,
    parse_last_error,
)

_ALL = "dynamic_events"
# Type of a probe → the control file that takes it, and the letter that it begins with there.
TYPES = {
    "kprobe": ("kprobe_events", "p"),
    "kretprobe": ("kprobe_events", "r"),
    "eprobe": (_ALL, "e"),
    "uprobe": ("uprobe_events", "p"),
    "uretprobe": ("uprobe_events", "r"),
}
KINDS = ("kprobe", "eprobe", "uprobe")
_MISSING = {
    "kprobe": "the kernel has no probes of its functions (CONFIG_KPROBE_EVENTS)",
    "eprobe": "the kernel has no probes of its events (CONFIG_EPROBE_EVENTS, Linux 5.15)",
    "uprobe": "the kernel has no probes of programs (CONFIG_UPROBE_EVENTS)",
}
# The list of events says nothing of eprobes, and the kernel's own help names them whether it has them or not.
_EPROBE_FUNCTION = b" eprobe_dyn_event_create"
_LINE = re.compile(r"[a-z]\d*:(?P<group>\w+)/(?P<name>\w+)(?: (?P<rest>.*))?\Z")


@dataclass(frozen=True)
class Probe:
    """A line of a control file FILE: probe NAME of GROUP, and the line as the kernel shows it."""

    file: str
    group: str
    name: str
    line: str

    @property
    def event(self) -> str:
        """Its name as an event."""
        return f"{self.group}:{self.name}"


def find_missing_kinds(root: str) -> dict[str, str]:
    """Kind of probe (kprobe, eprobe, uprobe) → why the kernel of the tracefs at ROOT does not have it, for those that it lacks."""
    there = {
        "kprobe": os.path.exists(os.path.join(root, "kprobe_events")),
        "eprobe": os.path.exists(os.path.join(root, _ALL)) and _has_eprobes(),
        "uprobe": os.path.exists(os.path.join(root, "uprobe_events")),
    }
    return {kind: _MISSING[kind] for kind, is_there in there.items() if not is_there}


def list_kinds(root: str) -> list[str]:
    """Kinds of dynamic events that can be defined in the tracefs at ROOT."""
    missing = find_missing_kinds(root)
    synthetic = ["synthetic"] if os.path.exists(os.path.join(root, "synthetic_events")) else []
    return sorted([*(kind for kind in KINDS if kind not in missing), *synthetic])


def _has_eprobes() -> bool:
    try:
        with open("/proc/kallsyms", "rb") as file:
            return any(_EPROBE_FUNCTION in line for line in file)
    except OSError:
        return False


def parse_probes(text: str, file: str) -> list[Probe]:
    """The probes in the text of control file FILE."""
    found = ((_LINE.match(line), line) for line in text.splitlines())
    return [Probe(file, match["group"], match["name"], line) for match, line in found if match]


def list_probes(root: str, prefix: str) -> list[Probe]:
    """The probes on the host whose group's name begins with PREFIX."""
    # A kernel that has probes of programs only has no list of all.
    files = [_ALL] if os.path.exists(os.path.join(root, _ALL)) else ["kprobe_events", "uprobe_events"]
    top = Instance(root, "..")
    return [
        probe
        for file in files
        if os.path.exists(os.path.join(root, file))
        for probe in parse_probes(top.read(file), file)
        if probe.group.startswith(prefix)
    ]


def exists(root: str, event: str) -> bool:
    """Whether there is a probe whose EVENT (group:name) this is."""
    return os.path.isdir(os.path.join(root, "events", *event.split(":")))


def define(root: str, file: str, line: str) -> None:
    """Define the probe of LINE by control file FILE; raises TraceError, which has what the kernel says of it."""
    try:
        _append(root, file, line)
    except OSError as error:
        detail = _find_reason(root, line)
        raise TraceError(f"the kernel refuses the probe {line!r}: {error.strerror}{detail}") from error


def _append(root: str, file: str, line: str) -> None:
    # Not truncated: that would remove the probes of everybody.
    fd = os.open(os.path.join(root, file), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode("utf-8") + b"\n")
    finally:
        os.close(fd)


def _find_reason(root: str, line: str) -> str:
    try:
        text = parse_last_error(Instance(root, "..").read("error_log"))
    except TraceError:
        return ""
    # The log is everybody's: its newest entry is about this line or not.
    return f"; it says: {text}" if text.replace("<here>", "").endswith(line) else ""


def remove(root: str, probe: Probe, timeout_s: float) -> None:
    """Remove PROBE; raises TraceError, which names the users, if somebody has it switched on.

    Where no instance has (perf may), it is tried again for TIMEOUT_S.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _append(root, probe.file, f"-:{probe.group}/{probe.name}")
            return
        except OSError as error:
            if error.errno == errno.ENOENT or not exists(root, probe.event):
                return
            users = list_users(root, probe.event)
            if error.errno != errno.EBUSY or users or time.monotonic() > deadline:
                by = f": it is on in {', '.join(users)}, switch it off there" if users else ""
                raise TraceError(f"cannot remove the probe {probe.event}: {error.strerror}{by}") from error
            time.sleep(0.01)


def list_users(root: str, event: str) -> list[str]:
    """Names of the instances in which EVENT is on."""
    instances = [("the top instance", Instance(root, ".."))]
    instances += [(name, Instance(root, name)) for name in sorted(os.listdir(os.path.join(root, "instances")))]
    users = []
    for name, instance in instances:
        try:
            if is_on(instance, event):
                users.append(name)
        except TraceError:
            continue  # it has just been removed
    return users


def is_on(instance: Instance, event: str) -> bool:
    """Whether EVENT is on in INSTANCE; a star stands beside what triggers have to do with it."""
    return not instance.read(f"events/{event.replace(':', '/')}/enable").startswith("0")
