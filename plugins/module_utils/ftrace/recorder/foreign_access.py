# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch for foreign access: other processes that take events of a trace, or that clear, stop or change it.

The recorder watches the files of an instance by inotify(7) from before its first event until the instance is gone. One queue serves all
traces of the host. After foreign access a capture is not complete, and its account has the reason in words.

Three checks find what inotify does not tell. The kernel's counter of read events shows a reader that inotify has missed. A comparison of
the settings shows changes without a write, such as those by the trigger of an event that is not watched, and changes while no recorder
runs. /proc shows which process still has a file open.

fanotify(7) is not used: it opens each file that it reports, and to open and close some of these files takes events or frees a buffer.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from typing import Callable, Container, Iterable, Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.events import strip_state
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_WRITTEN = syscalls.IN_MODIFY | syscalls.IN_CLOSE_WRITE
_TAKING = ("trace_pipe", "trace_pipe_raw")
# A write to a marker file, as by the container's programs, only adds an event. The other files cost no event.
_HARMLESS = frozenset({"trace_marker", "trace_marker_raw", "error_log", "buffer_percent"})
# The content of these files is compared with the content at the time when the trace was set up.
_COMPARED = (
    "buffer_size_kb",
    "buffer_subbuf_size_kb",
    "current_tracer",
    "set_event",
    "set_event_notrace_pid",
    "set_ftrace_filter",
    "set_ftrace_notrace",
    "trace_clock",
    "trace_options",
    "tracing_cpumask",
    "tracing_on",
)
# A trigger shows in these two, whatever its event is: the kernel counts an event with a trigger as on, and a trigger may switch tracing.
_QUICKLY_COMPARED = ("set_event", "tracing_on")
_PAUSE = "options/pause-on-trace"
_UNWATCHED = "nobody watched the trace for some time: the recorder was killed"
_OVERFLOW = "more happened to the files of traces than could be watched"


class Watcher:
    """The inotify queue of all watched traces of this host."""

    def __init__(self) -> None:
        self._fd = syscalls.inotify_init()
        self._places: dict[int, tuple[Watch, str]] = {}

    def add(self, watch: Watch, place: str, path: str, events: int) -> int:
        """Report inotify EVENTS at PATH to WATCH, which calls it PLACE, and return a number for remove(); raises OSError."""
        number = syscalls.inotify_add_watch(self._fd, path, events)
        self._places[number] = (watch, place)
        return number

    def remove(self, number: int) -> None:
        """Stop reporting the path that add() gave NUMBER."""
        if self._places.pop(number, None) is not None:
            with suppress(OSError):  # the kernel removes a watch with its file
                syscalls.inotify_rm_watch(self._fd, number)

    def update(self) -> None:
        """Report all events up to now to their watches."""
        for number, events, name in syscalls.inotify_read(self._fd):
            if events & syscalls.IN_Q_OVERFLOW:
                for watch in {watch for watch, _place in self._places.values()}:
                    watch.note_gap(_OVERFLOW)
            elif number in self._places:
                watch, folder = self._places[number]
                watch.note(folder, name, events)
                if events & syscalls.IN_IGNORED:
                    del self._places[number]

    def close(self) -> None:
        """End all watching."""
        os.close(self._fd)
        self._places = {}


class Watch:
    """The watch of one trace: the foreign access to INSTANCE since the last account.

    EVENTS (system:name) are those that the trace needs.
    WAS_WATCHED is True if a recorder that is gone has watched the trace before. WANTED are the settings that this recorder has given to its
    REMEMBER; None if there are none. REMEMBER stores the wanted settings for the next recorder. UNCOMPARED are files whose content the
    kernel changes by itself.
    HAS_GAP: True if something may have been missed since it was last set to False.
    """

    def __init__(
        self,
        watcher: Watcher,
        instance: Instance,
        events: Iterable[str],
        *,
        was_watched: bool,
        wanted: Mapping[str, str] | None = None,
        remember: Callable[[dict[str, str]], None] = lambda _settings: None,
        uncompared: Container[str] = (),
    ) -> None:
        self._watcher = watcher
        self._instance = instance
        self._remember = remember
        self._uncompared = uncompared
        self._reasons: dict[str, str] = {}
        self._unwatched: list[str] = []
        self._altered: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._pins: dict[str, int] = {}
        self._events: set[str] = set()
        self._is_changing = False
        self._owners = 0  # so many contexts of ours() are open
        self._awaited: Counter[str] = Counter()  # file → so many writes of our own have not been reported yet
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self.has_gap = False
        try:
            # On older kernels, and with this option, nothing is recorded while a process has the file `trace` open.
            reading_pauses = instance.read(_PAUSE) == "1"
        except TraceError:
            reading_pauses = True
        self._stopping = frozenset({"trace"}) if reading_pauses else frozenset()
        cpus = instance.list_cpus()
        self._taking = frozenset({"trace_pipe", *(f"per_cpu/cpu{cpu}/{name}" for cpu in cpus for name in _TAKING)})
        # Another process may have opened one of them before the watch began.
        self._held = set(self._taking)
        self._watch("", _WRITTEN)
        self._watch("trace_pipe", syscalls.IN_OPEN | syscalls.IN_ACCESS)
        if reading_pauses:
            self._watch("trace", syscalls.IN_OPEN)
        for cpu in cpus:
            self._watch(f"per_cpu/cpu{cpu}", _WRITTEN | syscalls.IN_OPEN)
        self._watch("options", _WRITTEN)
        self._watch_events(events)
        self._expected = self._read_settings() if wanted is None else dict(wanted)
        self._read_events = self._count_read()
        if was_watched:
            self.note_gap(_UNWATCHED)
            self.compare()
        remember(self._expected)

    def _watch(self, place: str, events: int) -> None:
        path = os.path.join(self._instance.path, place)
        before = self._numbers.get(place)
        try:
            self._numbers[place] = number = self._watcher.add(self, place, path, events)
            if before is not None and before != number:  # a probe was defined again
                self._watcher.remove(before)
        except FileNotFoundError:
            return  # the event was removed with its probe
        except OSError as error:
            self._unwatched.append(f"{place or 'the trace'} cannot be watched: {error.strerror}")

    def _watch_events(self, events: Iterable[str]) -> None:
        self._events |= {*events, *self._instance.read_events()}
        folders = {event.replace(":", "/") for event in self._events}
        for folder in folders:
            self._pin(os.path.join("events", folder))
        for place in ("", *{os.path.dirname(folder) for folder in folders}, *folders):
            self._watch(os.path.join("events", place).rstrip("/"), _WRITTEN)

    def _pin(self, place: str) -> None:
        """Hold PLACE open, so that its inode and those of the folders above it stay in memory.

        If memory is short the kernel drops unused inodes and makes new ones later, but a watch stays with the old inode.
        """
        before = self._pins.pop(place, None)
        try:
            self._pins[place] = os.open(os.path.join(self._instance.path, place), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return  # the event was removed with its probe
        except OSError as error:
            self._unwatched.append(f"{place} cannot be watched: {error.strerror}")
        finally:
            if before is not None:
                os.close(before)

    def _read_settings(self, names: Iterable[str] = ()) -> dict[str, str]:
        """Return file → content for the files called NAMES, or for all files that are compared."""
        found = {}
        for name in names or [name for name in _COMPARED if name not in self._uncompared]:
            with suppress(TraceError):  # older kernels lack some
                found[name] = self._instance.read(name)
        for event in () if names else sorted(self._events):
            folder = f"events/{event.replace(':', '/')}"
            with suppress(TraceError):  # the event was removed with its probe
                found[f"{folder}/filter"] = self._instance.read(f"{folder}/filter")
                found[f"{folder}/trigger"] = strip_state(self._instance.read_triggers(event))
        return found

    @property
    def may_stop_itself(self) -> bool:
        """Return True if a wanted trigger switches tracing on or off."""
        return self._has_trigger("traceon", "traceoff")

    def _find_differing(self, names: Iterable[str] = ()) -> set[str]:
        """Return those of the files called NAMES, or of all compared files, whose content is not the wanted one."""
        present = self._read_settings(names)
        differing = {
            file for file, text in self._expected.items() if (not names or file in names) and present.get(file) != text
        }
        return differing - {"tracing_on"} if self.may_stop_itself else differing

    def compare(self, *, is_quick: bool = False) -> None:
        """Add a reason for each compared file that is not as wanted; with IS_QUICK only for the files that a trigger changes."""
        self._watcher.update()  # a write that inotify has seen gives a better reason than a comparison
        if self._is_changing or not self._instance.exists():
            return
        known = {self._find_compared(file) for file in self._altered}
        for file in sorted(self._find_differing(_QUICKLY_COMPARED if is_quick else ()) - known):
            self.alter(file, f"somebody else changed {file}")

    def alter(self, file: str, reason: str) -> None:
        """Add REASON, which makes the trace incomplete until FILE is as wanted again."""
        self.add_reason(file, reason)
        self._altered.add(file)

    def note_gap(self, reason: str) -> None:
        """Add REASON for a time in which the trace was not watched."""
        self.add_reason(reason, reason)
        self.has_gap = True
        self._held = set(self._taking)

    def _count_read(self) -> dict[int, int]:
        return {cpu: self._instance.read_statistics(cpu).read for cpu in self._instance.list_cpus()}

    def note(self, place: str, name: str, events: int) -> None:
        """Note that inotify EVENTS happened to the file NAME in PLACE, or to PLACE itself if NAME is ''."""
        if events & syscalls.IN_IGNORED:
            self._numbers.pop(place, None)
            return
        file = os.path.join(place, name) if name else place
        base = os.path.basename(file)
        if base in _HARMLESS or not file or self._is_awaited(file, events) or self._owners:
            return
        if events & _WRITTEN and base not in _TAKING:
            if base == "trace":
                self.add_reason(file, f"somebody cleared the trace ({file})")
            elif self._is_changing:
                self._changed.add(file)
            else:
                self.alter(file, f"somebody else wrote to {file}")
        if events & (syscalls.IN_OPEN | syscalls.IN_ACCESS):
            if base in _TAKING:
                self.add_reason(file, f"somebody opened {file}, from which events are taken")
                self._held.add(file)
            elif base in self._stopping:
                self.add_reason(file, f"somebody read {file}, and this kernel records nothing meanwhile")

    def await_write(self, file: str) -> None:
        """Take the next write to FILE for the recorder's own, which begins after this call, in any thread."""
        with self._lock:
            self._awaited[file] += 1

    def _is_awaited(self, file: str, events: int) -> bool:
        """Return True if EVENTS are of a write of our own. Each write ends with one close of the file."""
        with self._lock:
            if self._awaited[file] < 1:
                return False
            if events & syscalls.IN_CLOSE_WRITE:
                self._awaited[file] -= 1
            return True

    def add_reason(self, file: str, reason: str) -> None:
        """Add REASON, which has to do with FILE, why the trace is incomplete; the first reason for a file counts."""
        self._reasons.setdefault(file, reason)

    @contextmanager
    def ours(self, *files: str) -> Iterator[None]:
        """Take accesses in the context for the recorder's own, and the content of FILES after it for the wanted one.

        The context must be short, because foreign access in it is not seen.
        """
        self._watcher.update()
        if files:
            self.compare(is_quick=True)
        self._owners += 1
        try:
            yield
        finally:
            self._watcher.update()
            self._owners -= 1
            if files:
                self._learn(files)

    def begin_change(self) -> None:
        """Take writes to settings from now on for those of a module; reads and clears still count as foreign access."""
        self.compare()
        if not self._is_changing:
            self._changed = set()
        self._is_changing = True

    def end_change(self, events: Iterable[str]) -> None:
        """Take the present settings for the wanted ones after a module's change; EVENTS are those that the trace needs now."""
        self._watcher.update()
        self._is_changing = False
        self._altered -= self._changed
        if "events/enable" in self._changed:  # the module has switched all events off before it set some of them anew
            self._altered = {file for file in self._altered if file != "set_event" and not file.startswith("events/")}
        self._watch_events(events)
        self._learn()
        self.rebase_counters()

    def _learn(self, names: Iterable[str] = ()) -> None:
        """Take the present content of the files called NAMES, or of all, for the wanted one, except for files that others have altered."""
        altered = {self._find_compared(file) for file in self._altered}
        present = {file: text for file, text in self._read_settings(names).items() if file not in altered}
        before = {file: text for file, text in self._expected.items() if names or file in altered}
        self._expected = {**before, **present}
        self._remember(self._expected)

    def has_written(self, file: str) -> bool:
        """Return True if another process has written to FILE since the last account."""
        self._watcher.update()
        return file in self._reasons

    def list_reasons(self) -> list[str]:
        """Return the reasons, in words, why events since the last account may be missing; empty without foreign access."""
        self.compare()
        return [*self._unwatched, *self._reasons.values()]

    def compare_counters(self) -> None:
        """Add a reason if the kernel's counters tell of a reader that inotify has missed.

        The caller makes sure that this collection itself has not read events since the last account.
        """
        self._watcher.update()  # an access that inotify has seen gives a better reason than a counter
        taken = 0
        for cpu, read in self._count_read().items():
            before = self._read_events.get(cpu, 0)
            if read < before:
                self.add_reason("trace", "the kernel's counters began anew: somebody cleared the trace")
            taken += max(0, read - before)
        if taken:
            self.add_reason("trace_pipe", f"somebody else has taken {taken} events")

    def rebase_counters(self) -> None:
        """Take the present counters of the kernel as the base of later comparisons, because this collection has read events."""
        self._read_events = self._count_read()

    def _find_compared(self, file: str) -> str:
        """Return the compared file that shows the setting of FILE; FILE itself if there is no other."""
        if file.startswith("options/"):
            return "trace_options"
        # set_event does not show whether an event is on that a wanted trigger switches.
        is_switch = file.startswith("events/") and file.endswith("/enable")
        return "set_event" if is_switch and not self._has_trigger("enable_event", "disable_event") else file

    def _has_trigger(self, *actions: str) -> bool:
        """Return True if a trigger with one of ACTIONS is wanted."""
        triggers = (text for file, text in self._expected.items() if file.endswith("/trigger"))
        return any(line.startswith(actions) for text in triggers for line in text.splitlines())

    def settle(self, ours: Container[int] = ()) -> None:
        """Begin the next account, after the reasons up to now were stored in one.

        A setting that others have altered and that is still not as wanted is a reason of the next account, too. So is a process that /proc
        shows with a file open from which events are taken: it may take them without a further inotify event. OURS are pids that have lent
        readers.
        """
        differing = self._find_differing() if self._altered else set()
        self._altered = {
            file
            for file in self._altered
            if self._find_compared(file) not in self._expected or self._find_compared(file) in differing
        }
        self._reasons = {file: reason for file, reason in self._reasons.items() if file in self._altered}
        for file, holder in self._find_holders(ours).items():
            self._reasons[file] = f"somebody (pid {holder}) has {file} open, from which events are taken"
        self._held &= set(self._reasons)

    def _find_holders(self, ours: Container[int]) -> dict[str, int]:
        """Return file → pid of another process that has it open, for the files that others may have open."""
        files = {}
        for file in sorted(self._held):
            with suppress(OSError):  # the kernel has no such file, or the instance is gone
                status = os.stat(os.path.join(self._instance.path, file))
                files[(status.st_dev, status.st_ino)] = file
        if not files:
            return {}
        return {
            files[inode]: pid for pid, inode in processes.gen_holders(files) if pid != os.getpid() and pid not in ours
        }

    def close(self) -> None:
        """End the watch, and close its descriptors."""
        for fd in self._pins.values():
            os.close(fd)
        self._pins = {}
        for number in self._numbers.values():
            self._watcher.remove(number)
        self._numbers = {}
