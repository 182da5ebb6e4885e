# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One tracefs instance: typed reads and writes of its control files.

Source: Documentation/trace/ftrace.rst and events.rst of the kernel.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Any, Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import gen_holders, read_all

MOUNT_POINT = "/sys/kernel/tracing"
_REMOVE_TIMEOUT_S = 3.0
_PIDS_PER_WRITE = 200
_ENOTSUPP = 524  # include/linux/errno.h
_COMMAND = "  Command: "


class TraceError(FleetError):
    """tracefs refused something; the text says what and the next step."""


class InstanceGone(TraceError):
    """Somebody has removed the instance, or is about to."""


@dataclass(frozen=True)
class CpuStatistics:
    """per_cpu/cpuN/stats: numbers of events since the buffer was last reset; BYTES are those that wait to be read."""

    entries: int
    overrun: int
    commit_overrun: int
    bytes: int
    dropped: int
    read: int


def _explain(error: OSError) -> str:
    """What the kernel says by ERROR, which can be a number that it keeps for itself, and that has no name for users."""
    if error.errno != _ENOTSUPP:
        return str(error.strerror)
    return (
        "its probe is on an instruction that cannot be probed (ENOTSUPP): put it on another function, or on another offset of this one,"
        " or leave it out"
    )


def _folder(event: str) -> str:
    return f"events/{event.replace(':', '/')}"


def find_tracefs() -> str:
    """Where tracefs is mounted; raises TraceError when it is not."""
    found = read_mounts("self", " - tracefs ")
    points = [mount.mount_point for mount in found if mount.filesystem == "tracefs" and mount.root == "/"]
    if not points:
        raise TraceError(
            f"tracefs is not mounted: apply the role crashcart.fleet.install, or 'mount -t tracefs tracefs {MOUNT_POINT}'"
        )
    return MOUNT_POINT if MOUNT_POINT in points else points[0]


def parse_selected(text: str) -> str:
    """The word in brackets of a control file that lists choices, such as trace_clock."""
    return text.partition("[")[2].partition("]")[0]


def parse_statistics(text: str) -> CpuStatistics:
    """CpuStatistics from the text of per_cpu/cpuN/stats."""
    numbers = {}
    for line in text.splitlines():
        name, _colon, value = line.partition(":")
        if value.strip().isdigit():
            numbers[name.strip()] = int(value)
    return CpuStatistics(
        entries=numbers.get("entries", 0),
        overrun=numbers.get("overrun", 0),
        commit_overrun=numbers.get("commit overrun", 0),
        bytes=numbers.get("bytes", 0),
        dropped=numbers.get("dropped events", 0),
        read=numbers.get("read events", 0),
    )


def list_available(root: str) -> dict[str, Any]:
    """What the kernel of the tracefs at ROOT can trace: events by system, tracers, clocks."""
    top = Instance(root, "..")
    events: dict[str, list[str]] = {}
    for line in top.read("available_events").splitlines():
        system, _colon, name = line.partition(":")
        events.setdefault(system, []).append(name)
    return {
        "events": events,
        "tracers": top.read("available_tracers").split(),
        "clocks": top.read("trace_clock").replace("[", "").replace("]", "").split(),
    }


def parse_last_error(text: str) -> str:
    """The newest entry of the text of error_log on one line, '' for none; the place of the error is marked by '<here>'."""
    start = max(text.rfind("\n["), 0 if text.startswith("[") else -1)
    if start < 0:
        return ""
    lines = text[start:].strip("\n").split("\n")
    message = lines[0].partition("] ")[2].strip()
    if len(lines) < 3 or not lines[1].startswith(_COMMAND):
        return message
    command, place = lines[1], lines[2].find("^")
    marked = f"{command[:place]}<here>{command[place:]}" if place >= len(_COMMAND) else command
    return f"{message} in {marked[len(_COMMAND) :]}"


class Instance:
    """The instance called NAME below the tracefs at ROOT; it need not exist."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.path = os.path.join(root, "instances", name)

    def exists(self) -> bool:
        """Whether the kernel has it."""
        return os.path.isdir(self.path)

    def create(self) -> None:
        """Make it, tracing off."""
        try:
            os.mkdir(self.path, 0o700)
        except FileNotFoundError as error:
            raise TraceError("the kernel has no tracing instances (CONFIG_TRACING)") from error
        except OSError as error:
            raise TraceError(f"cannot make trace instance {self.name}: {error.strerror}") from error
        self.trace_off()

    def remove(self) -> None:
        """Take it away, with all it has recorded. For a moment the kernel may find it busy: then again, then say by whom."""
        for name, value in (
            *(("tracing_on", "0"), ("events/enable", "0"), ("set_event_pid", "")),
            ("current_tracer", "nop"),
        ):
            try:
                self.write(name, value)
            except TraceError:
                continue  # rmdir decides
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while True:
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    users = ", ".join(self._find_users()) or "no process that can be seen"
                    self._free_buffer()
                    raise TraceError(
                        f"cannot remove trace instance {self.name}: {error.strerror}; its files are held open by {users}. It records"
                        " nothing any more; end what holds it, and try again"
                    ) from error
                time.sleep(0.01)

    def _free_buffer(self) -> None:
        """Give the memory back where somebody else, such as a container that is shown a file, keeps the instance from going."""
        try:
            self.write("free_buffer", "0")
        except TraceError:
            return  # it has gone after all, or the kernel has none: then the memory goes with the instance

    def _find_users(self) -> Iterator[str]:
        # By inode: what a container has open it has by a mount of its own, under another path.
        own = set()
        for folder, _folders, names in os.walk(self.path):
            if not folder.startswith(self.path + "/events"):
                own |= {
                    (one.st_dev, one.st_ino) for one in map(os.stat, (os.path.join(folder, name) for name in names))
                }
        for pid in dict.fromkeys(pid for pid, _inode in gen_holders(own)):
            yield f"pid {pid}"

    def read(self, name: str) -> str:
        """The text of control file NAME without the last newline."""
        return self.read_bytes(name).decode("utf-8", "replace").rstrip("\n")

    def read_bytes(self, name: str) -> bytes:
        """The bytes of control file NAME."""
        try:
            fd = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return read_all(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._judge(error)(f"cannot read {name} of trace instance {self.name}: {error.strerror}") from error

    def _judge(self, error: OSError) -> type[TraceError]:
        """What ERROR means; the kernel says of an instance that is about to go that there is no such device."""
        return InstanceGone if error.errno == errno.ENODEV or not self.exists() else TraceError

    def write(self, name: str, value: str) -> None:
        """Replace what control file NAME holds by VALUE."""
        self._write(name, value, os.O_TRUNC)

    def _write(self, name: str, value: str, flags: int) -> None:
        try:
            fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC | flags)
            try:
                os.write(fd, value.encode("utf-8"))
            finally:
                os.close(fd)
        except OSError as error:
            detail = self._read_error_log() if error.errno == errno.EINVAL else ""
            raise self._judge(error)(
                f"the kernel refuses {value!r} for {name} of trace instance {self.name}: {_explain(error)}{detail}"
            ) from error

    def _read_error_log(self) -> str:
        try:
            text = parse_last_error(self.read("error_log"))
        except TraceError:
            return ""  # before Linux 5.2 there is none
        return f"; it says: {text}" if text else ""

    def is_tracing(self) -> bool:
        """Whether events are recorded."""
        return self.read("tracing_on") == "1"

    def trace_on(self) -> None:
        """Record events."""
        self.write("tracing_on", "1")

    def trace_off(self) -> None:
        """Stop recording; what is recorded stays."""
        self.write("tracing_on", "0")

    def read_clock(self) -> str:
        """The clock that time-stamps events."""
        return parse_selected(self.read("trace_clock"))

    def read_events(self) -> dict[str, str]:
        """Enabled events as system:name → filter ('' for none); those that a trigger is to enable are not."""
        events = {}
        for line in self.read("set_event").splitlines():
            name = line.split()[0]
            if self.read(f"{_folder(name)}/enable").startswith("1"):
                text = self.read(f"{_folder(name)}/filter")
                events[name] = "" if text == "none" else text
        return events

    def event_enable(self, event: str, event_filter: str) -> None:
        """Record EVENT (system:name) where EVENT_FILTER lets it pass ('' for always)."""
        self.event_filter(event, event_filter)
        self.write(f"{_folder(event)}/enable", "1")

    def event_filter(self, event: str, event_filter: str) -> None:
        """Let EVENT pass where EVENT_FILTER says so, once it is enabled."""
        # "0" takes a filter away, and would be noted as an error where there is none.
        if event_filter or self.read(f"{_folder(event)}/filter") != "none":
            self.write(f"{_folder(event)}/filter", event_filter or "0")

    def events_disable(self) -> None:
        """Record no event any more."""
        self.write("events/enable", "0")

    def read_triggers(self, event: str) -> str:
        """What EVENT sets off, in the kernel's words."""
        return self.read(f"{_folder(event)}/trigger")

    def trigger_write(self, event: str, text: str) -> None:
        """Let EVENT set off what TEXT says; after an exclamation mark, no longer."""
        # O_TRUNC would take away histograms, and no other triggers.
        self._write(f"{_folder(event)}/trigger", text, 0)

    def read_pids(self, name: str) -> set[int]:
        """The threads in control file NAME, such as set_event_pid; empty means those of all processes."""
        return {int(word) for word in self.read(name).split() if word.isdigit()}

    def add_pids(self, name: str, tids: Iterable[int]) -> None:
        """Put TIDS into control file NAME, too."""
        wanted = sorted(tids)
        for start in range(0, len(wanted), _PIDS_PER_WRITE):
            self._write(name, " ".join(map(str, wanted[start : start + _PIDS_PER_WRITE])) + "\n", 0)

    def write_patterns(self, name: str, patterns: Iterable[str]) -> None:
        """Let control file NAME, such as set_ftrace_filter, hold PATTERNS and no others."""
        pattern = ""
        try:
            # The kernel takes one at a time, and applies all of them at the end.
            fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
            try:
                for pattern in patterns:
                    os.write(fd, f"{pattern}\n".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise TraceError(
                f"the kernel refuses {pattern!r} for {name} of trace instance {self.name}: {error.strerror}"
            ) from error

    def list_cpus(self) -> list[int]:
        """The CPUs that have a ring buffer."""
        try:
            names = os.listdir(os.path.join(self.path, "per_cpu"))
        except OSError as error:
            raise self._judge(error)(f"cannot list the CPUs of trace instance {self.name}: {error.strerror}") from error
        return sorted(int(name[3:]) for name in names)

    def read_statistics(self, cpu: int) -> CpuStatistics:
        """The counters of one CPU's ring buffer."""
        return parse_statistics(self.read(f"per_cpu/cpu{cpu}/stats"))

    def read_page_size(self) -> int:
        """Return how many bytes a page of the ring buffer has, from the format of its data field."""
        for line in self.read("events/header_page").splitlines():
            if "data" in line:
                numbers = dict(part.strip().split(":") for part in line.split(";") if part.count(":") == 1)
                return int(numbers["offset"]) + int(numbers["size"])
        raise TraceError("events/header_page of tracefs does not say how long a page is")


def has_field(root: str, event: str, name: str) -> bool:
    """Whether EVENT of the kernel of the tracefs at ROOT has a field called NAME."""
    text = Instance(root, "..").read(f"events/{event.replace(':', '/')}/format")
    return any(f" {name};" in line or f" {name}[" in line for line in text.splitlines() if "field:" in line)
