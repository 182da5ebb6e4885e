# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep recordings in a host's files: raw pages of a trace instance, in segments, with the kernel's counters at their ends.

    INSTANCE/STAMP/about.json, head   what a reader needs beside the pages, written at the start
    INSTANCE/STAMP/00000001/cpuN      pages of one segment
    INSTANCE/STAMP/00000001/*.json    the counters at the segment's beginning and, once it is finished, at its end
    INSTANCE/STAMP/rotated.json       sums over the segments that were removed to make room
    INSTANCE/STAMP/holdings.json      what the processes held at the last fetch, where the next capture begins
    INSTANCE/STAMP/starts.json        of a rule's recording: how many containers have started
    INSTANCE/STAMP/begun              exists if a recorder has taken the recording on
    INSTANCE/STAMP/end.json           why the recording ended

A recording without end.json and without a recorder ended when its recorder died. To read the files, neither the instance nor the container
has to exist. So a recording can be fetched when both are gone, and in another boot.
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
STARTS = "starts.json"
_ROTATED, _BEGUN, _FINISH, _LOCK = "rotated.json", "begun", "finish", "lock"
_HOLDINGS = "holdings.json"
_RESERVE = "reserve"
_RESERVE_BYTES = 256 << 10
_NAMES_OF_END = ("tasks", "saved_cmdlines", metadata.HOLDINGS)
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
    """A part of a recording.

    PATH, NUMBER: its folder; its number, from 1.
    BEGIN: time, counters and exactness at its beginning.
    END: time and counters at its end, and reasons; None while it is written, or if the recorder died in it.
    """

    path: str
    number: int
    begin: dict[str, Any]
    end: dict[str, Any] | None

    @property
    def sizes(self) -> dict[int, int]:
        """Return CPU → bytes of pages."""
        found = {}
        for match in filter(None, map(_CPU.match, _list_folder(self.path))):
            with suppress(FileNotFoundError):  # the recorder removes the segment just now
                found[int(match.group(1))] = os.stat(os.path.join(self.path, match.group())).st_size
        return found

    def count(self, names: tuple[str, ...]) -> dict[int, int]:
        """Return CPU → growth of the counters called NAMES, added up, within the segment; empty for an unfinished segment."""
        if self.end is None:
            return {}
        return {int(cpu): subtract(end, self.begin["cpus"][cpu], names) for cpu, end in self.end["cpus"].items()}


def subtract(after: Counters, before: Counters, names: tuple[str, ...] = LOST) -> int:
    """Return the growth from BEFORE to AFTER of the counters called NAMES, added up; by default of those of lost events."""
    return sum(after[name] - before[name] for name in names)


@dataclass(frozen=True)
class Recording:
    """A recording in folder PATH of the instance called NAME; ABOUT is the description from its start."""

    name: str
    path: str
    about: dict[str, Any]

    @property
    def is_running(self) -> bool:
        """Return True if the recorder writes the recording now."""
        order = orders.read_order(self.name)
        return order is not None and order.run == self.path and orders.is_taken(self.name)

    def read_end(self) -> dict[str, Any] | None:
        """Return why and when the recording ended, and what was lost after its last segment; None while it runs."""
        path = os.path.join(self.path, END)
        end: dict[str, Any] | None = read_json(path)
        if end is None and not self.is_running:
            end = read_json(path) or {"why": DIED}  # the recording may have ended after the first look at the file
        return end

    def is_of(self, instance: Instance) -> bool:
        """Return True if the recording was made of INSTANCE in this boot, not of an earlier instance of the same name."""
        try:
            inode = os.stat(instance.path).st_ino
        except FileNotFoundError:
            return False
        return bool(self.about["inode"] == inode and self.about["boot_id"] == boot.read_boot_id())

    def settle(self, instance: Instance) -> None:
        """Note the kernel's counters if the recorder died, before INSTANCE goes on counting for another trace."""
        end = self.read_end()
        if end == {"why": DIED} and self.is_of(instance):
            write_json(os.path.join(self.path, END), {**end, "counters": read_counters(instance)})

    def list_segments(self) -> list[Segment]:
        """Return the segments in order, without those that are being rotated away."""
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
        """Return the sums over the segments that were removed to make room and that no fetch has accounted for.

        The keys are `through` (the last such number), `segments`, `events`, `lost` (while they were written), `bytes` (of pages), and `exact`,
        which is False if more than `lost` may be missing.
        """
        empty = {"through": 0, "segments": 0, "events": 0, "lost": 0, "exact": True, "bytes": 0}
        return read_json(os.path.join(self.path, _ROTATED)) or empty

    def read_holdings(self) -> dict[str, Any]:
        """Return what the container's processes held where the next capture begins: at the last fetch, or at the recording's start."""
        found = read_json(os.path.join(self.path, _HOLDINGS)) or self.about["record"].get(metadata.HOLDINGS)
        return found or {}

    def note_holdings(self, holdings: dict[str, Any]) -> None:
        """Note that the container's processes hold HOLDINGS where the next capture begins; a full disk keeps the earlier note."""
        with suppress(OSError):
            write_json(os.path.join(self.path, _HOLDINGS), holdings)

    def as_result(self) -> dict[str, Any]:
        """Return the recording as modules return it."""
        segments, end = self.list_segments(), self.read_end()
        return {
            "path": self.path,
            "started": self.about["started"],
            "recording": end is None,
            "stopped": end["why"] if end else None,
            "segments": len(segments),
            "size": sum(sum(segment.sizes.values()) for segment in segments),
            "rotated": self.read_rotated()["events"],
        }


def read_json(path: str) -> Any:
    """Return the content of the JSON file PATH; None if it is missing or cut short."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def write_json(path: str, value: Any) -> None:
    """Write VALUE as JSON to PATH, whole or not at all; raises OSError."""
    with open(path + ".part", "w", encoding="utf-8", opener=open_private) as file:
        json.dump(value, file)
    os.rename(path + ".part", path)


def _list_folder(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_names() -> list[str]:
    """Return the names of the instances that have recordings."""
    return [name for name in _list_folder(FOLDER) if _INSTANCE.match(name) and list_recordings(name)]


def list_recordings(name: str) -> list[Recording]:
    """Return the recordings of instance NAME that have begun, the oldest first."""
    found = []
    for stamp in _list_folder(os.path.join(FOLDER, name)):
        path = os.path.join(FOLDER, name, stamp)
        about = read_json(os.path.join(path, ABOUT))
        if about is not None and has_begun(path):
            found.append(Recording(name, path, about))
    return found


def remove_oldest(name: str, max_bytes: int, kept: int) -> list[str]:
    """Remove the oldest ended recordings of instance NAME that nobody has fetched, so that MAX_BYTES are left at most; return their paths.

    The last KEPT of them stay, whatever their size.
    """
    ended = [recording for recording in list_recordings(name) if not recording.is_running]
    sizes = [recording.as_result()["size"] for recording in ended]
    removed = []
    while len(ended) > kept and sum(sizes) > max_bytes:
        path = ended.pop(0).path
        del sizes[0]
        with hold(path):
            remove(path)
        removed.append(path)
    return removed


def list_folders(name: str) -> list[str]:
    """Return the folders of all recordings of instance NAME, the oldest first."""
    folder = os.path.join(FOLDER, name)
    return [os.path.join(folder, stamp) for stamp in _list_folder(folder)]


def list_unbegun(name: str) -> list[str]:
    """Return the folders of recordings of instance NAME to which no recorder has written, as a killed module leaves them."""
    return [path for path in list_folders(name) if not has_begun(path)]


def has_begun(path: str) -> bool:
    """Return True if a recorder has ever taken on the recording in PATH."""
    return os.path.exists(os.path.join(path, _BEGUN))


def begin(path: str) -> bool:
    """Note that a recorder takes on the recording in PATH; return False if one has done so before."""
    try:
        os.close(os.open(os.path.join(path, _BEGUN), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        return True
    except FileExistsError:
        return False


def format_number(number: int) -> str:
    """Return the name of the folder of segment NUMBER."""
    return f"{number:08}"


def create(name: str, about: dict[str, Any], head: bytes) -> str:
    """Make a folder for a new recording of instance NAME, with its description ABOUT and its HEAD, and return the path.

    Raises TraceError if the file system cannot take it.
    """
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
    path = os.path.join(FOLDER, name, stamp)
    for folder in (FOLDER, os.path.dirname(path), path):
        make_folder(folder)
    try:
        with open(os.path.join(path, HEAD), "wb", opener=open_private) as file:
            file.write(head)
        # The reserve keeps room for end.json of a recording that ends because the disk is full.
        with open(os.path.join(path, _RESERVE), "wb", opener=open_private) as file:
            file.write(bytes(_RESERVE_BYTES))
        write_json(os.path.join(path, ABOUT), {**about, "started": now})
    except OSError as error:
        remove(path)
        raise TraceError(
            f"{FOLDER} cannot take a recording: {error.strerror}; make it writable or make room there, or use mode=ring"
        ) from error
    return path


def write_end(path: str, end: dict[str, Any]) -> None:
    """Write END to the recording in PATH, without its lists of threads and descriptors if these do not fit: there may be thousands."""
    try:
        write_json(os.path.join(path, END), end)
    except OSError:
        write_json(os.path.join(path, END), {name: value for name, value in end.items() if name not in _NAMES_OF_END})


def free_reserve(path: str) -> None:
    """Free the room that was reserved for the end of the recording in PATH."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, _RESERVE))


def note_discarded(path: str, discarded: metadata.Discarded) -> None:
    """Count DISCARDED, which the kernel dropped before the recording in PATH began, among the recording's losses."""
    if discarded.events or not discarded.exact:
        sums = {**Recording("", path, {}).read_rotated(), "lost": discarded.events, "exact": discarded.exact}
        write_json(os.path.join(path, _ROTATED), sums)


def remove(path: str) -> None:
    """Remove the recording in PATH, and the folders above it that are empty then."""
    shutil.rmtree(path, ignore_errors=True)
    for folder in (os.path.dirname(path), FOLDER):
        with suppress(OSError):
            os.rmdir(folder)


@contextmanager
def hold(path: str, timeout_s: float = _LOCK_S) -> Iterator[None]:
    """Hold the lock of the recording in PATH, so that no recorder rotates its segments away and no other fetch takes them.

    Raises TraceError if another process has the lock for TIMEOUT_S seconds.
    """
    try:
        with locks.lock(os.path.join(path, _LOCK), timeout_s):
            yield
    except locks.LockTimeout as error:
        raise TraceError(str(error)) from error


def rotate(path: str, number: int) -> bool:
    """Remove the finished segment NUMBER of the recording in PATH and account for its events; return False while a fetch reads."""
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
    """Remove SEGMENTS, which were fetched, and the account of segments that were rotated away before them.

    With HAS_ENDED the whole recording is removed if no segment is left.
    """
    for segment in segments:
        shutil.rmtree(segment.path, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(recording.path, _ROTATED))
    if has_ended and not recording.list_segments():
        remove(recording.path)


def ask_to_finish(recording: Recording) -> bool:
    """Ask the recorder to finish the segment that it writes, so that all events up to now can be fetched; return True if it did."""
    path = os.path.join(recording.path, _FINISH)
    deadline = time.monotonic() + _FINISH_S
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    while os.path.exists(path) and recording.is_running and time.monotonic() < deadline:
        time.sleep(0.005)
    return not (os.path.exists(path) and recording.is_running)


def is_asked_to_finish(path: str) -> bool:
    """Return True if a fetch waits for the segment that is written in PATH."""
    return os.path.exists(os.path.join(path, _FINISH))


def answer_finish(path: str) -> None:
    """Tell the waiting fetch that the segment in PATH is finished."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(path, _FINISH))


def gen_pages(segments: list[Segment], cpu: int) -> Iterator[bytes]:
    """Yield the pages of CPU in SEGMENTS, in pieces of whole pages of up to 1 MiB."""
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
    """Return how many bytes are free for this process on the file system of PATH."""
    place = os.statvfs(path)
    return place.f_bavail * place.f_frsize


def read_counters(instance: Instance) -> dict[str, Counters]:
    """Return CPU → the kernel's counters of INSTANCE; the CPU is text, as JSON has it."""
    return {str(cpu): vars(instance.read_statistics(cpu)) for cpu in instance.list_cpus()}
