# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define, list and remove the kernel's probes, which all instances of the host share; each instance enables those it records.

Source: Documentation/trace/kprobetrace.rst, uprobetracer.rst and eprobetrace.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import (
    Instance,
    TraceError,
    parse_last_error,
)

_ALL = "dynamic_events"
# Type of a probe → the control file that defines it, and the letter that its line begins with.
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
# The list of events does not show eprobes, and the kernel's own help names them even where it does not have them.
_EPROBE_FUNCTION = b" eprobe_dyn_event_create"
_LINE = re.compile(r"[a-z]\d*:(?P<group>\w+)/(?P<name>\w+)(?: (?P<rest>.*))?\Z")


@dataclass(frozen=True)
class Probe:
    """One probe that the kernel has."""

    file: str  # the control file that lists it
    group: str
    name: str
    line: str  # its definition, as the kernel shows it

    @property
    def event(self) -> str:
        """The probe's name as an event, in the form group:name."""
        return f"{self.group}:{self.name}"


def find_missing_kinds(root: str) -> dict[str, str]:
    """Return the kinds of probes (kprobe, eprobe, uprobe) that the kernel of the tracefs at ROOT lacks, each with the reason."""
    there = {
        "kprobe": os.path.exists(os.path.join(root, "kprobe_events")),
        "eprobe": os.path.exists(os.path.join(root, _ALL)) and _has_eprobes(),
        "uprobe": os.path.exists(os.path.join(root, "uprobe_events")),
    }
    return {kind: _MISSING[kind] for kind, is_there in there.items() if not is_there}


def list_kinds(root: str) -> list[str]:
    """Return the kinds of dynamic events (kprobe, eprobe, uprobe, synthetic) that the tracefs at ROOT can define, sorted."""
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
    """Return the probes in TEXT, the text of the control file FILE."""
    found = ((_LINE.match(line), line) for line in text.splitlines())
    return [Probe(file, match["group"], match["name"], line) for match, line in found if match]


def list_probes(root: str, prefix: str) -> list[Probe]:
    """Return the host's probes in groups whose names begin with PREFIX, from the tracefs at ROOT."""
    # A kernel that has only probes of programs has no file for all kinds.
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
    """Return True if the tracefs at ROOT has a probe with the name EVENT (group:name)."""
    return os.path.isdir(os.path.join(root, "events", *event.split(":")))


def define(root: str, file: str, line: str) -> None:
    """Define the probe of LINE through the control file FILE.

    Raises TraceError, with the kernel's reason, when the kernel refuses the probe.
    """
    try:
        _append(root, file, line)
    except OSError as error:
        detail = _find_reason(root, line)
        raise TraceError(f"the kernel refuses the probe {line!r}: {error.strerror}{detail}") from error


def _append(root: str, file: str, line: str) -> None:
    # No O_TRUNC: truncating the file would remove all probes of the host.
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
    # All writers of the top instance share the log, so its newest entry may be about another line.
    return f"; it says: {text}" if text.replace("<here>", "").endswith(line) else ""


def remove(root: str, probe: Probe, timeout_s: float) -> None:
    """Remove PROBE from the tracefs at ROOT; do nothing when it is not there.

    Raises TraceError, which names the instances, when PROBE is enabled in an instance. When the probe is busy without one (perf may use
    it), the removal is tried again for TIMEOUT_S.
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
    """Return the names of the instances of the tracefs at ROOT in which EVENT (group:name) is enabled."""
    instances = [("the top instance", Instance(root, ".."))]
    with suppress(FileNotFoundError):  # a kernel without instances
        instances += [(name, Instance(root, name)) for name in sorted(os.listdir(os.path.join(root, "instances")))]
    users = []
    for name, instance in instances:
        try:
            if is_on(instance, event):
                users.append(name)
        except TraceError:
            continue  # the instance has just been removed
    return users


def is_on(instance: Instance, event: str) -> bool:
    """Return True if EVENT (group:name) is enabled in INSTANCE."""
    # The kernel writes 0 or 1, and a star after it when the event has triggers.
    return not instance.read(f"events/{event.replace(':', '/')}/enable").startswith("0")
