# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who but us takes, clears, stops or changes a trace: the files of its instance, watched by inotify(7).

The recorder watches each trace from before its first event until the instance is gone. One queue serves all traces of the host.
A trace that somebody else has touched is not complete, and the reason is told in words. The kernel's counter of events that were
read is compared as well, so that a reader whom nobody saw is noticed, too.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import Iterable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance, TraceError

_WRITTEN = syscalls.IN_MODIFY | syscalls.IN_CLOSE_WRITE
_TAKING = ("trace_pipe", "trace_pipe_raw")
# What a program of the container writes there is an event more, and an error costs no event.
_HARMLESS = frozenset({"trace_marker", "trace_marker_raw", "error_log", "buffer_percent"})
# What these files hold can be compared with what they held when the trace was set up.
_COMPARED = (
    "buffer_size_kb",
    "buffer_subbuf_size_kb",
    "current_tracer",
    "set_event",
    "set_event_notrace_pid",
    "trace_clock",
    "trace_options",
    "tracing_cpumask",
    "tracing_on",
)
_PAUSE = "options/pause-on-trace"
_UNWATCHED = "nobody watched the trace for some time: the recorder was killed"
_OVERFLOW = "more happened to the files of traces than could be watched"


class Watcher:
    """The inotify queue of all watched traces of this host."""

    def __init__(self) -> None:
        self._fd = syscalls.inotify_init()
        self._places: dict[int, tuple[Watch, str]] = {}

    def add(self, watch: Watch, place: str, path: str, events: int) -> int:
        """Tell WATCH of EVENTS at PATH, which it calls PLACE, and return a number for remove()."""
        number = syscalls.inotify_add_watch(self._fd, path, events)
        self._places[number] = (watch, place)
        return number

    def remove(self, number: int) -> None:
        """Tell of the path with NUMBER no more."""
        if self._places.pop(number, None) is not None:
            with suppress(OSError):  # it may have gone with its file
                syscalls.inotify_rm_watch(self._fd, number)

    def update(self) -> None:
        """Tell each watch what has happened up to now."""
        for number, events, name in syscalls.inotify_read(self._fd):
            if events & syscalls.IN_Q_OVERFLOW:
                for watch in {watch for watch, _place in self._places.values()}:
                    watch.add_reason("", _OVERFLOW)
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
    """What others have done to INSTANCE since the last account of it. EVENTS (system:name) are those that its trace needs.

    WAS_WATCHED says that the trace was watched before, by a recorder that is gone.
    """

    def __init__(self, watcher: Watcher, instance: Instance, events: Iterable[str], *, was_watched: bool) -> None:
        self._watcher = watcher
        self._instance = instance
        self._reasons: dict[str, str] = {_UNWATCHED: _UNWATCHED} if was_watched else {}
        self._unwatched: list[str] = []
        self._altered: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._is_changing = False
        self._changed: set[str] = set()
        self.is_gone = False
        try:
            # On older kernels, and where this option is on, nothing is recorded while somebody has the file open.
            reading_pauses = instance.read(_PAUSE) == "1"
        except TraceError:
            reading_pauses = True
        self._stopping = frozenset({"trace"}) if reading_pauses else frozenset()
        self._watch("", _WRITTEN | syscalls.IN_DELETE_SELF)
        self._watch("trace_pipe", syscalls.IN_OPEN | syscalls.IN_ACCESS)
        if reading_pauses:
            self._watch("trace", syscalls.IN_OPEN)
        for cpu in instance.list_cpus():
            self._watch(f"per_cpu/cpu{cpu}", _WRITTEN | syscalls.IN_OPEN)
        self._watch("options", _WRITTEN)
        self._watch_events(events)
        self._expected = self._read_settings()
        self._read_events = self._count_read()

    def _watch(self, place: str, events: int) -> None:
        if place in self._numbers:
            return
        path = os.path.join(self._instance.path, place)
        try:
            self._numbers[place] = self._watcher.add(self, place, path, events)
        except FileNotFoundError:
            return  # an event that went with its probe
        except OSError as error:
            self._unwatched.append(f"{place or 'the trace'} cannot be watched: {error.strerror}")

    def _watch_events(self, events: Iterable[str]) -> None:
        wanted = {*events, *self._instance.read_events()}
        systems = {event.split(":")[0] for event in wanted}
        for place in ("", *systems, *(event.replace(":", "/") for event in wanted)):
            self._watch(os.path.join("events", place).rstrip("/"), _WRITTEN)

    def _read_settings(self) -> dict[str, str]:
        found = {}
        for name in _COMPARED:
            with suppress(TraceError):  # older kernels lack some
                found[name] = self._instance.read(name)
        return found

    def _count_read(self) -> dict[int, int]:
        return {cpu: self._instance.read_statistics(cpu).read for cpu in self._instance.list_cpus()}

    def note(self, place: str, name: str, events: int) -> None:
        """Note that EVENTS happened to the file NAME in PLACE, or to PLACE itself."""
        if events & syscalls.IN_IGNORED:
            self._numbers.pop(place, None)
            self.is_gone |= place == ""
            return
        file = os.path.join(place, name) if name else place
        base = os.path.basename(file)
        if base in _HARMLESS or not file:
            return
        if events & _WRITTEN and base not in _TAKING:
            if base == "trace":
                self.add_reason(file, f"somebody cleared the trace ({file})")
            elif self._is_changing:
                self._changed.add(file)
            else:
                self.add_reason(file, f"somebody else wrote to {file}")
                self._altered.add(file)
        if events & (syscalls.IN_OPEN | syscalls.IN_ACCESS):
            if base in _TAKING:
                self.add_reason(file, f"somebody opened {file}, from which events are taken")
            elif base in self._stopping:
                self.add_reason(file, f"somebody read {file}, and this kernel records nothing meanwhile")

    def add_reason(self, file: str, reason: str) -> None:
        """Have the trace be incomplete for REASON, which has to do with FILE."""
        self._reasons.setdefault(file, reason)

    @contextmanager
    def ours(self, *files: str) -> Iterator[None]:
        """Take what happens meanwhile for our own doing, and what FILES hold then for what we want.

        It must be short: what another does at the same time is not seen.
        """
        self._watcher.update()
        known, altered = dict(self._reasons), set(self._altered)
        try:
            yield
        finally:
            self._watcher.update()
            self._reasons, self._altered = known, altered
            self._learn(set(files))

    def begin_change(self) -> None:
        """From now on a module of ours changes settings; what takes or clears events is still another's."""
        self._watcher.update()
        self._is_changing = True
        self._changed = set()

    def end_change(self, events: Iterable[str]) -> None:
        """The module has changed what it wanted, and the trace needs EVENTS now."""
        self._watcher.update()
        self._is_changing = False
        self._learn({_find_compared(file) for file in self._changed})
        self._altered -= self._changed
        if "events/enable" in self._changed:  # which has switched all of them off, before some were set anew
            self._altered = {file for file in self._altered if not file.startswith("events/")}
        self._watch_events(events)
        self.rebase_counters()

    def _learn(self, files: set[str]) -> None:
        """What FILES hold now is as we want it, but for what another has altered."""
        files = files - {_find_compared(file) for file in self._altered}
        if files:
            self._expected.update({file: text for file, text in self._read_settings().items() if file in files})

    def has_written(self, file: str) -> bool:
        """Return whether somebody else has written to FILE since the last account."""
        self._watcher.update()
        return file in self._reasons

    def list_reasons(self) -> list[str]:
        """Return why what was recorded since the last account may not be complete, in words; empty where nobody else touched it."""
        self._watcher.update()
        return [*self._unwatched, *self._reasons.values()]

    def compare_counters(self) -> None:
        """Add what the kernel's counters tell of readers whom nobody saw, where nobody of ours has read since the last account."""
        self._watcher.update()  # who was seen is told in better words
        taken = 0
        for cpu, read in self._count_read().items():
            before = self._read_events.get(cpu, 0)
            if read < before:
                self.add_reason("trace", "the kernel's counters began anew: somebody cleared the trace")
            taken += max(0, read - before)
        if taken:
            self.add_reason("trace_pipe", f"somebody else has taken {taken} events")

    def rebase_counters(self) -> None:
        """Compare the kernel's counters with those of now from here on: somebody of ours has read."""
        self._read_events = self._count_read()

    def settle(self) -> None:
        """What was told is in an account now. What another has altered, and is still so, is a reason of the next one, too."""
        present = self._read_settings() if self._altered else {}
        lasting = set()
        for file in self._altered:
            compared = _find_compared(file)
            if compared not in self._expected or present.get(compared) != self._expected[compared]:
                lasting.add(file)
        self._altered = lasting
        self._reasons = {file: reason for file, reason in self._reasons.items() if file in lasting}

    def close(self) -> None:
        """End the watch."""
        for number in self._numbers.values():
            self._watcher.remove(number)
        self._numbers = {}


def _find_compared(file: str) -> str:
    """The file of _COMPARED that shows what FILE sets; FILE itself for the others."""
    return "trace_options" if file.startswith("options/") else file
