# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Recordings in a host's files: raw pages of a trace instance, in segments of all CPUs, with the kernel's counters of their ends.

    INSTANCE/STAMP/about.json, head   what has to be known beside the pages, from its start
    INSTANCE/STAMP/00000001/cpuN      pages of one segment
    INSTANCE/STAMP/00000001/*.json    the counters at its begin and, once it is finished, at its end
    INSTANCE/STAMP/rotated.json       what had to make room, as sums
    INSTANCE/STAMP/begun              that a recorder has taken it on
    INSTANCE/STAMP/end.json           why it ended

Without end.json and without a recorder it ended by the recorder's death. Nothing here needs the instance or the container,
so a recording can be fetched when both are gone, and in another boot.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Dict, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot, locks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder, open_private
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX, STATE

FOLDER = f"{STATE}/traces"
ABOUT, HEAD, BEGIN, END = "about.json", "head", "begin.json", "end.json"
_ROTATED, _BEGUN, _FINISH, _LOCK = "rotated.json", "begun", "finish", "lock"
_RESERVE = "reserve"
_RESERVE_BYTES = 256 << 10
_NAMES_OF_END = ("tasks", "saved_cmdlines")
_NUMBER = re.compile(r"\d{8}\Z")
_INSTANCE = re.compile(rf"{INSTANCE_PREFIX}[A-Za-z0-9_.-]+\Z")
_CPU = re.compile(r"cpu(\d+)\Z")
_LOCK_S = 30.0
_FINISH_S = 10.0
DIED = "the recorder died"
Counters = Dict[str, int]
LOST = ("overrun", "dropped", "commit_overrun")


@dataclass(frozen=True)
class Segment:
    """A part of a recording, in folder PATH; END is None while it is written, or when the recorder died in it."""

    path: str
    number: int
    begin: dict[str, Any]
    end: dict[str, Any] | None

    @property
    def sizes(self) -> dict[int, int]:
        """CPU → bytes of pages."""
        found = {}
        for match in filter(None, map(_CPU.match, _list_folder(self.path))):
            with suppress(FileNotFoundError):  # it makes room just now
                found[int(match.group(1))] = os.stat(os.path.join(self.path, match.group())).st_size
        return found

    def count(self, names: tuple[str, ...]) -> dict[int, int]:
        """CPU → by how much the counters called NAMES together grew in it; empty where that is not known."""
        if self.end is None:
            return {}
        return {int(cpu): subtract(end, self.begin["cpus"][cpu], names) for cpu, end in self.end["cpus"].items()}


def subtract(after: Counters, before: Counters, names: tuple[str, ...] = LOST) -> int:
    """By how much the counters called NAMES, those of losses by default, grew together."""
    return sum(after[name] - before[name] for name in names)


@dataclass(frozen=True)
class Recording:
    """The recording in folder PATH, of the instance called NAME; ABOUT is what was known at its start."""

    name: str
    path: str
    about: dict[str, Any]

    @property
    def is_running(self) -> bool:
        """Whether the recorder writes it now."""
        order = orders.read_order(self.name)
        return order is not None and order.run == self.path and orders.is_taken(self.name)

    def read_end(self) -> dict[str, Any] | None:
        """Why and when it ended, and what was lost after its last segment; None while it runs."""
        path = os.path.join(self.path, END)
        end: dict[str, Any] | None = read_json(path)
        if end is None and not self.is_running:
            end = read_json(path) or {"why": DIED}  # it may have ended between the two looks
        return end

    def is_of(self, instance: Instance) -> bool:
        """Whether it was made of INSTANCE, and not of another one of that name or in another boot."""
        try:
            inode = os.stat(instance.path).st_ino
        except FileNotFoundError:
            return False
        return bool(self.about["inode"] == inode and self.about["boot_id"] == boot.read_boot_id())

    def settle(self, instance: Instance) -> None:
        """Where the recorder died, note what the kernel has counted, before INSTANCE counts on for something else."""
        end = self.read_end()
        if end == {"why": DIED} and self.is_of(instance):
            write_json(os.path.join(self.path, END), {**end, "counters": read_counters(instance)})

    def list_segments(self) -> list[Segment]:
        """Its segments in order; what was rotated away and is still there does not count."""
        through = self.read_rotated()["through"]
        found = []
        for name in _list_folder(self.path):
            if _NUMBER.match(name) and int(name) > through:
                folder = os.path.join(self.path, name)
                begin = read_json(os.path.join(folder, BEGIN))
                if begin is not None:
                    found.append(Segment(folder, int(name), begin, read_json(os.path.join(folder, END))))
        return found

    def read_rotated(self) -> dict[str, Any]:
        """Sums over what had to make room and was not fetched: segments, events in them, events lost while they were written, bytes.

        EXACT is whether these were all that were lost.
        """
        empty = {"through": 0, "segments": 0, "events": 0, "lost": 0, "exact": True, "bytes": 0}
        return read_json(os.path.join(self.path, _ROTATED)) or empty

    def as_result(self) -> dict[str, Any]:
        """What modules return of it."""
        segments, end = self.list_segments(), self.read_end()
        return {
            "path": self.path,
            "started": self.about["started"],
            "recording": end is None,
            "stopped": end["why"] if end else None,
            "segments": len(segments),
            "size": sum(sum(one.sizes.values()) for one in segments),
            "rotated": self.read_rotated()["events"],
        }


def read_json(path: str) -> Any:
    """What the JSON file PATH holds; None when it is missing or cut short."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_json(path: str, value: Any) -> None:
    """Put VALUE into PATH, whole or not at all."""
    with open(path + ".part", "w", encoding="utf-8", opener=open_private) as file:
        json.dump(value, file)
    os.rename(path + ".part", path)


def _list_folder(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_names() -> list[str]:
    """Names of the instances that have recordings here."""
    return [name for name in _list_folder(FOLDER) if _INSTANCE.match(name) and list_recordings(name)]


def list_recordings(name: str) -> list[Recording]:
    """The recordings of instance NAME that have begun, the oldest first."""
    found = []
    for stamp in _list_folder(os.path.join(FOLDER, name)):
        path = os.path.join(FOLDER, name, stamp)
        about = read_json(os.path.join(path, ABOUT))
        if about is not None and has_begun(path):
            found.append(Recording(name, path, about))
    return found


def list_folders(name: str) -> list[str]:
    """Folders of all recordings of instance NAME, the oldest first."""
    folder = os.path.join(FOLDER, name)
    return [os.path.join(folder, stamp) for stamp in _list_folder(folder)]


def list_unbegun(name: str) -> list[str]:
    """Folders of recordings of instance NAME that a killed module has left: nobody has written to them."""
    return [path for path in list_folders(name) if not has_begun(path)]


def has_begun(path: str) -> bool:
    """Whether a recorder has ever written to the recording in PATH."""
    return os.path.exists(os.path.join(path, _BEGUN))


def begin(path: str) -> bool:
    """Note that a recorder writes to the recording in PATH from now on; false when one has before."""
    try:
        os.close(os.open(os.path.join(path, _BEGUN), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    except FileExistsError:
        return False


def format_number(number: int) -> str:
    """The name of segment NUMBER's folder."""
    return f"{number:08}"


def create(name: str, about: dict[str, Any], head: bytes) -> str:
    """A folder for a new recording of instance NAME; with what is known of it before it begins."""
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
    path = os.path.join(FOLDER, name, stamp)
    for folder in (FOLDER, os.path.dirname(path), path):
        make_folder(folder)
    try:
        with open(os.path.join(path, HEAD), "wb", opener=open_private) as file:
            file.write(head)
        # Room for the last words of a recording that ends because there is none.
        with open(os.path.join(path, _RESERVE), "wb", opener=open_private) as file:
            file.write(bytes(_RESERVE_BYTES))
        write_json(os.path.join(path, ABOUT), {**about, "started": now})
    except OSError as error:
        remove(path)
        raise TraceError(
            f"{FOLDER} cannot take a recording: {error.strerror}; see to that, or use mode=ring"
        ) from error
    return path


def write_end(path: str, end: dict[str, Any]) -> None:
    """Write the last words of the recording in PATH; without names where these do not fit: a host may remember thousands."""
    try:
        write_json(os.path.join(path, END), end)
    except OSError:
        write_json(os.path.join(path, END), {name: value for name, value in end.items() if name not in _NAMES_OF_END})


def free_reserve(path: str) -> None:
    """Give the last words of the recording in PATH the room that was kept for them."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, _RESERVE))


def note_discarded(path: str, discarded: metadata.Discarded) -> None:
    """Count what the kernel dropped before the recording in PATH began among its losses."""
    if discarded.events or not discarded.exact:
        sums = {**Recording("", path, {}).read_rotated(), "lost": discarded.events, "exact": discarded.exact}
        write_json(os.path.join(path, _ROTATED), sums)


def remove(path: str) -> None:
    """Take the recording in PATH away, and the folders above it that are empty then."""
    shutil.rmtree(path, ignore_errors=True)
    for folder in (os.path.dirname(path), FOLDER):
        with suppress(OSError):
            os.rmdir(folder)


@contextmanager
def hold(path: str, timeout_s: float = _LOCK_S) -> Iterator[None]:
    """Keep the recorder from rotating segments of the recording in PATH away, or another fetch from taking them."""
    try:
        with locks.lock(os.path.join(path, _LOCK), timeout_s):
            yield
    except locks.LockTimeout as error:
        raise TraceError(str(error)) from error


def rotate(path: str, number: int) -> bool:
    """Take finished segment NUMBER of the recording in PATH away and count what it held; false while a fetch reads."""
    try:
        with locks.lock(os.path.join(path, _LOCK), 0):
            recording = Recording("", path, {})
            sums = recording.read_rotated()
            for segment in recording.list_segments():
                if segment.number == number:
                    sums = {
                        "through": number,
                        "segments": sums["segments"] + 1,
                        "events": sums["events"]
                        + sum(segment.count(("read",)).values())
                        - (segment.end or {}).get("unwritten", 0),
                        "lost": sums["lost"]
                        + sum(segment.count(LOST).values())
                        + (segment.end or {}).get("unwritten", 0),
                        "exact": sums["exact"] and segment.begin["exact"],
                        "bytes": sums["bytes"] + sum(segment.sizes.values()),
                    }
                    write_json(os.path.join(path, _ROTATED), sums)
            shutil.rmtree(os.path.join(path, format_number(number)), ignore_errors=True)
            return True
    except locks.LockTimeout:
        return False


def forget_fetched(recording: Recording, segments: list[Segment], *, has_ended: bool) -> None:
    """Take SEGMENTS, which were fetched, away with the account of what was rotated before; all of it when it has ended."""
    for segment in segments:
        shutil.rmtree(segment.path, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(recording.path, _ROTATED))
    if has_ended and not recording.list_segments():
        remove(recording.path)


def ask_to_finish(recording: Recording) -> bool:
    """Have the recorder finish the segment that it writes, so that all up to now can be fetched; whether it has."""
    path = os.path.join(recording.path, _FINISH)
    deadline = time.monotonic() + _FINISH_S
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    while os.path.exists(path) and recording.is_running and time.monotonic() < deadline:
        time.sleep(0.005)
    return not (os.path.exists(path) and recording.is_running)


def is_asked_to_finish(path: str) -> bool:
    """Whether somebody waits for the segment that is written in PATH."""
    return os.path.exists(os.path.join(path, _FINISH))


def answer_finish(path: str) -> None:
    """Tell whoever has asked that the segment is finished."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, _FINISH))


def gen_pages(segments: list[Segment], cpu: int) -> Iterator[bytes]:
    """The pages of CPU in SEGMENTS, in pieces of whole pages of up to 1 MiB."""
    for segment in segments:
        try:
            file = open(os.path.join(segment.path, f"cpu{cpu}"), "rb")
        except FileNotFoundError:
            continue
        with file:
            while True:
                piece = file.read(1 << 20)
                if not piece:
                    break
                yield piece


def find_free(path: str) -> int:
    """Bytes that are free for us where PATH is."""
    place = os.statvfs(path)
    return place.f_bavail * place.f_frsize


def read_counters(instance: Instance) -> dict[str, Counters]:
    """CPU (as text, as JSON has it) → the kernel's counters of INSTANCE."""
    return {str(cpu): vars(instance.read_statistics(cpu)) for cpu in instance.list_cpus()}
