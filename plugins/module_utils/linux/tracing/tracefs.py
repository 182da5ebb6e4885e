# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of tracefs, whose control files are read and written through the methods of Instance.

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
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX

MOUNT_POINT = "/sys/kernel/tracing"
_REMOVE_TIMEOUT_S = 3.0
PIDS_PER_WRITE = 200
_ENOTSUPP = 524  # include/linux/errno.h
_COMMAND = "  Command: "


class TraceError(FleetError):
    """The kernel or tracefs has refused a request; the text names the request and the next step."""


class InstanceGone(TraceError):
    """The instance has been removed, or is being removed."""


@dataclass(frozen=True)
class CpuStatistics:
    """The counters of one CPU's ring buffer since its last reset (per_cpu/cpuN/stats), in events unless noted."""

    entries: int  # that wait to be read
    overrun: int  # overwritten before they were read
    commit_overrun: int  # lost because nested writers filled the buffer
    bytes: int  # that wait to be read
    dropped: int  # not recorded because the buffer was full
    read: int


def _explain(error: OSError) -> str:
    """Return the meaning of ERROR, also for the kernel's internal error number ENOTSUPP, which user space has no text for."""
    if error.errno != _ENOTSUPP:
        return str(error.strerror)
    return (
        "its probe is on an instruction that cannot be probed (ENOTSUPP): put it on another function, or on another offset of this one,"
        " or leave it out"
    )


def _folder(event: str) -> str:
    return f"events/{event.replace(':', '/')}"


def find_tracefs() -> str:
    """Return the mount point of tracefs. Raises TraceError when tracefs is not mounted, or when the kernel does not let root read it."""
    root = find_mount_point()
    refusal = find_refusal(os.path.join(root, "available_tracers"))
    if refusal and os.geteuid() == 0:
        raise TraceError(refusal)
    return root


def find_for(module: Any) -> str | None:
    """Return the mount point of tracefs for MODULE; None in check mode where it is not mounted, which a task before this one would do.

    Raises TraceError as find_tracefs does.
    """
    try:
        return find_tracefs()
    except TraceError:
        if module.check_mode:
            return None
        raise


def find_mount_point() -> str:
    """Return the mount point of tracefs, by preference /sys/kernel/tracing. Raises TraceError when tracefs is not mounted."""
    found = read_mounts("self", " - tracefs ")
    points = [mount.mount_point for mount in found if mount.filesystem == "tracefs" and mount.root == "/"]
    if not points:
        raise TraceError(
            f"tracefs is not mounted: apply the role crashcart.fleet.install, or 'mount -t tracefs tracefs {MOUNT_POINT}'"
        )
    return MOUNT_POINT if MOUNT_POINT in points else points[0]


def list_own_instances() -> list[str]:
    """Return the names of this collection's trace instances, also where the kernel lets nobody read them; [] where tracefs is not mounted."""
    try:
        names = os.listdir(os.path.join(find_mount_point(), "instances"))
    except (TraceError, OSError):
        return []
    return sorted(name for name in names if name.startswith(INSTANCE_PREFIX))


def find_refusal(path: str) -> str:
    """Return why the file PATH of tracefs cannot be read; '' when it can."""
    try:
        with open(path, "rb") as file:
            file.read(1)
        return ""
    except OSError as error:
        if error.errno != errno.EPERM:
            return f"{path}: {error.strerror}"
    if _read_lockdown() == "confidentiality":
        return f"{path}: the kernel is locked down (lockdown=confidentiality on its command line, or secure boot), which forbids all tracing"
    return f"{path}: Operation not permitted, by a security module or by whoever runs this virtual machine"


def _read_lockdown() -> str:
    """Return the kernel's lockdown mode (none, integrity or confidentiality); '' when it is not known."""
    try:
        with open("/sys/kernel/security/lockdown", encoding="ascii") as file:
            return parse_selected(file.read())
    except OSError:
        return ""


def parse_selected(text: str) -> str:
    """Return the word in brackets, the current choice, in TEXT, the text of a control file such as trace_clock; '' for none."""
    return text.partition("[")[2].partition("]")[0]


def parse_statistics(text: str) -> CpuStatistics:
    """Return the counters in TEXT, the text of per_cpu/cpuN/stats; a counter that the kernel does not have is 0."""
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
    """Return what the kernel of the tracefs at ROOT offers: `events` (names by system), `tracers` and `clocks`."""
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
    """Return the newest entry of TEXT, the text of error_log, on one line; '' for none.

    The entry's caret becomes '<here>' at the same place in the command.
    """
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
    """The trace instance NAME of the tracefs at ROOT, which need not exist; '..' as NAME means the top instance.

    Its methods raise TraceError when the kernel refuses, and InstanceGone when the instance has been removed.
    """

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self.path = os.path.join(root, "instances", name)

    def exists(self) -> bool:
        """Return True if the kernel has the instance."""
        return os.path.isdir(self.path)

    def create(self) -> None:
        """Make the instance, and switch its recording off."""
        try:
            os.mkdir(self.path, 0o700)
        except FileNotFoundError as error:
            raise TraceError("the kernel has no tracing instances (CONFIG_TRACING)") from error
        except OSError as error:
            raise TraceError(f"cannot make trace instance {self.name}: {error.strerror}") from error
        self.trace_off()

    def remove(self) -> None:
        """Remove the instance with all its events; do nothing when it does not exist.

        While the kernel finds the instance busy, the removal is tried again for three seconds. Then TraceError names the processes
        that hold its files open. Recording is off in any case.
        """
        for name, value in (
            *(("tracing_on", "0"), ("events/enable", "0"), ("set_event_pid", "")),
            ("current_tracer", "nop"),
        ):
            try:
                self.write(name, value)
            except TraceError:
                continue  # rmdir below shows whether the instance can be removed
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
        """Free the ring buffers of an instance that cannot be removed, because another process (in a container, say) holds a file."""
        try:
            self.write("free_buffer", "0")
        except TraceError:
            return  # the instance has gone after all, or the kernel has no free_buffer: the memory is freed with the instance

    def _find_users(self) -> Iterator[str]:
        # Files are compared by inode: a container opens them through a mount of its own, under another path.
        own = set()
        for folder, _folders, names in os.walk(self.path):
            if not folder.startswith(self.path + "/events"):
                for status in map(os.stat, (os.path.join(folder, name) for name in names)):
                    own.add((status.st_dev, status.st_ino))
        for pid in dict.fromkeys(pid for pid, _inode in gen_holders(own)):
            yield f"pid {pid}"

    def read(self, name: str) -> str:
        """Return the text of the control file NAME without trailing newlines."""
        return self.read_bytes(name).decode("utf-8", "replace").rstrip("\n")

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of the control file NAME."""
        try:
            fd = os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                return read_all(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._judge(error)(f"cannot read {name} of trace instance {self.name}: {error.strerror}") from error

    def _judge(self, error: OSError) -> type[TraceError]:
        """Return the exception class for ERROR: the kernel answers ENODEV for an instance that is being removed."""
        return InstanceGone if error.errno == errno.ENODEV or not self.exists() else TraceError

    def write(self, name: str, value: str) -> None:
        """Replace the content of the control file NAME by VALUE."""
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
            return ""  # the file exists since Linux 5.2
        return f"; it says: {text}" if text else ""

    def is_tracing(self) -> bool:
        """Return True if the instance records events."""
        return self.read("tracing_on") == "1"

    def trace_on(self) -> None:
        """Switch the recording of events on."""
        self.write("tracing_on", "1")

    def trace_off(self) -> None:
        """Switch the recording of events off; the recorded events stay."""
        self.write("tracing_on", "0")

    def read_clock(self) -> str:
        """Return the name of the clock that gives events their time stamps."""
        return parse_selected(self.read("trace_clock"))

    def read_events(self) -> dict[str, str]:
        """Return the filter ('' for none) of each enabled event by its name, system:name.

        Events that a trigger may enable later are left out.
        """
        events = {}
        for line in self.read("set_event").splitlines():
            name = line.split()[0]
            if self.read(f"{_folder(name)}/enable").startswith("1"):
                text = self.read(f"{_folder(name)}/filter")
                events[name] = "" if text == "none" else text
        return events

    def event_enable(self, event: str, event_filter: str) -> None:
        """Record EVENT (system:name) when EVENT_FILTER matches; '' matches always."""
        self.event_filter(event, event_filter)
        self.write(f"{_folder(event)}/enable", "1")

    def event_filter(self, event: str, event_filter: str) -> None:
        """Set the filter of EVENT (system:name) without enabling the event; '' removes the filter."""
        # Writing "0" removes a filter, but enters an error into error_log when the event has none.
        if event_filter or self.read(f"{_folder(event)}/filter") != "none":
            self.write(f"{_folder(event)}/filter", event_filter or "0")

    def events_disable(self) -> None:
        """Disable all events of the instance."""
        self.write("events/enable", "0")

    def read_triggers(self, event: str) -> str:
        """Return the triggers of EVENT (system:name), as the kernel writes them."""
        return self.read(f"{_folder(event)}/trigger")

    def trigger_write(self, event: str, text: str) -> None:
        """Add the trigger TEXT to EVENT (system:name); a TEXT that begins with an exclamation mark removes the trigger."""
        # No O_TRUNC: truncating removes histograms, though no other triggers.
        self._write(f"{_folder(event)}/trigger", text, 0)

    def read_pids(self, name: str) -> set[int]:
        """Return the thread ids in the control file NAME, such as set_event_pid; an empty set means that all threads are traced."""
        return {int(word) for word in self.read(name).split() if word.isdigit()}

    def add_pids(self, name: str, tids: Iterable[int]) -> None:
        """Add the thread ids TIDS to the control file NAME, such as set_event_pid."""
        wanted = sorted(tids)
        for start in range(0, len(wanted), PIDS_PER_WRITE):
            self._write(name, " ".join(map(str, wanted[start : start + PIDS_PER_WRITE])) + "\n", 0)

    def write_patterns(self, name: str, patterns: Iterable[str]) -> None:
        """Replace the content of the control file NAME, such as set_ftrace_filter, by PATTERNS."""
        pattern = ""
        try:
            # Each write takes one pattern, and the kernel applies all of them when the file is closed.
            fd = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC)
            try:
                for pattern in patterns:
                    os.write(fd, f"{pattern}\n".encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise self._judge(error)(
                f"the kernel refuses {pattern!r} for {name} of trace instance {self.name}: {_explain(error)}"
            ) from error

    def list_cpus(self) -> list[int]:
        """Return the numbers of the CPUs that have a ring buffer, sorted."""
        try:
            names = os.listdir(os.path.join(self.path, "per_cpu"))
        except OSError as error:
            raise self._judge(error)(f"cannot list the CPUs of trace instance {self.name}: {error.strerror}") from error
        return sorted(int(name[3:]) for name in names)

    def read_statistics(self, cpu: int) -> CpuStatistics:
        """Return the counters of the ring buffer of CPU."""
        return parse_statistics(self.read(f"per_cpu/cpu{cpu}/stats"))

    def read_page_size(self) -> int:
        """Return the size in bytes of a page of the ring buffer, computed from events/header_page.

        Raises TraceError when that file has no data field.
        """
        for line in self.read("events/header_page").splitlines():
            if "data" in line:
                numbers = dict(part.strip().split(":") for part in line.split(";") if part.count(":") == 1)
                return int(numbers["offset"]) + int(numbers["size"])
        raise TraceError("events/header_page of tracefs does not say how long a page is")


def has_field(root: str, event: str, name: str) -> bool:
    """Return True if EVENT (system:name), in the tracefs at ROOT, has a field NAME."""
    text = Instance(root, "..").read(f"events/{event.replace(':', '/')}/format")
    return any(f" {name};" in line or f" {name}[" in line for line in text.splitlines() if "field:" in line)
