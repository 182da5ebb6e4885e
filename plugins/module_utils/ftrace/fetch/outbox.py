# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep segments on the host from their drain until a controller has them; neither a broken transfer nor a killed module loses one.

NAME.part    is being written, or its writer was killed
NAME.new     no controller has it yet, and every fetch is offered it
NAME.kept    a controller has it, and it stays for others (consume=false)
transfer-…   is read by one fetch; it is the login user's while that one reads it, and all other files are root's

A fetch holds the folder's lock while it writes. So a .part that a later fetch finds has no writer any more.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import (
    SegmentError,
    read_document,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import STATE

FOLDER = f"{STATE}/captures"
NEW, KEPT = "new", "kept"
_PART = "part"
_NAME = re.compile(r"(?P<instance>crashcart-[\w.-]+)\.(?P<stamp>\d{20})\.(?P<state>part|new|kept)\Z")
_TRANSFER = "transfer-"
_TRANSFER_NAME = re.compile(_TRANSFER + r"[0-9a-f]{16}\Z")
# The controller opens a transfer within this time after the module's end. Later a transfer that no process has open is broken.
_GRACE_S = 60.0
MAX_WAITING = 4 << 30
MAX_KEPT = 1 << 30
MAX_KEPT_CAPTURES = 256  # of one instance; a controller names up to as many captures that it has
_BLOCK = 1 << 20
_RESERVE = 1 << 20  # for heads and documents
_MAX_CONTENT = 64 << 10  # of a transfer that the module returns itself, which saves a second connection


@dataclass(frozen=True)
class Staged:
    """A segment in the folder.

    NAME: its name without the state, the same on host and controller; it ends in the nanoseconds of real time of its drain.
    INSTANCE: the name of its instance.
    STATE: part, new or kept.
    SIZE: its bytes.
    """

    name: str
    instance: str
    state: str
    size: int

    @property
    def path(self) -> str:
        """Return the path of the segment's file."""
        return os.path.join(FOLDER, f"{self.name}.{self.state}")

    @property
    def stamp_ns(self) -> int:
        """Return when the segment was drained, in nanoseconds of real time."""
        return int(self.name.rpartition(".")[2])

    def as_result(self) -> dict[str, Any]:
        """Return the segment as modules return it."""
        return {"instance": self.instance, "state": self.state, "size": self.size, "drained": self.stamp_ns / 1e9}


@contextmanager
def hold_folder() -> Iterator[None]:
    """Hold the lock of the folder, and make the folder if it is missing."""
    with hold_lock("captures"):
        make_folder(FOLDER, 0o711)  # a login user fetches from it
        yield


def list_segments() -> list[Staged]:
    """Return the segments in the folder, the oldest first.

    Without the folder's lock another process may change them at any time.
    """
    try:
        names = os.listdir(FOLDER)
    except FileNotFoundError:
        return []
    found = []
    for match in filter(None, map(_NAME.match, names)):
        with suppress(FileNotFoundError):
            size = os.stat(os.path.join(FOLDER, match.group())).st_size
            found.append(Staged(match.group().rpartition(".")[0], match["instance"], match["state"], size))
    return sorted(found, key=lambda segment: segment.stamp_ns)


def create_segment(instance: Instance) -> BinaryIO:
    """Return a new file, open for writing, for a segment of INSTANCE.

    As soon as the segment has a document, the next fetch takes it, even if its writer is killed.
    """
    # Stamps must grow even if the clock was set back, because cursors compare them. They differ by a microsecond at least, because the
    # names of captures have microseconds.
    last = max((segment.stamp_ns for segment in list_segments()), default=0)
    stamp = max(time.time_ns(), last + 1000)
    path = os.path.join(FOLDER, f"{instance.name}.{stamp:020d}.{_PART}")
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


def finish_segment(file: BinaryIO) -> None:
    """Offer the segment in FILE, which create_segment returned and which is closed now, to fetches."""
    os.rename(file.name, file.name[: -len(_PART)] + NEW)


def recover() -> None:
    """Offer the segments of killed writers to fetches; segments whose writer had not begun to drain are removed.

    A writer writes a document before it takes the first page from the kernel. A segment with a document but without pages tells that
    events may have been lost. The caller holds the folder's lock.
    """
    for segment in list_segments():
        if segment.state != _PART:
            continue
        # The head is found here, but not read: a host needs no reader of trace.dat. The controller, which makes the capture, tells of a
        # damaged head.
        try:
            with open(segment.path, "rb") as file:
                read_document(file)
        except SegmentError:
            os.unlink(segment.path)
        else:
            os.rename(segment.path, segment.path[: -len(_PART)] + NEW)


def prune() -> None:
    """Remove the oldest kept segments beyond MAX_KEPT bytes in all, and beyond MAX_KEPT_CAPTURES of each instance."""
    left = [segment for segment in list_segments() if segment.state == KEPT]
    size = sum(segment.size for segment in left)
    counts = Counter(segment.instance for segment in left)
    for segment in left:
        if size > MAX_KEPT or counts[segment.instance] > MAX_KEPT_CAPTURES:
            os.unlink(segment.path)
            size -= segment.size
            counts[segment.instance] -= 1


def list_kept_names() -> list[str]:
    """Return the names of the instances that have kept segments; an instance need not exist any more."""
    return sorted({segment.instance for segment in list_segments() if segment.state == KEPT})


def read_kept_container(instance: str) -> dict[str, Any] | None:
    """Return the description of INSTANCE's container in its newest kept segment that can be read; None if there is none."""
    for segment in reversed(list_segments()):
        if segment.state == KEPT and segment.instance == instance:
            with suppress(SegmentError, OSError), open(segment.path, "rb") as file:
                about: dict[str, Any] | None = read_document(file).get("container")
                return about
    return None


def remove_kept(instance: str) -> None:
    """Remove the kept segments of INSTANCE."""
    for segment in list_segments():
        if segment.state == KEPT and segment.instance == instance:
            with suppress(FileNotFoundError):
                os.unlink(segment.path)


def check_waiting() -> None:
    """Raise TraceError if more than MAX_WAITING bytes already wait for a fetch."""
    waiting = sum(segment.size for segment in list_segments() if segment.state == NEW)
    if waiting > MAX_WAITING:
        raise TraceError(
            f"{waiting >> 20} MiB of captures wait in {FOLDER} to be fetched: nothing more is drained until a fetch has them"
        )


def find_room() -> int:
    """Return how many bytes the folder's file system can take."""
    place = os.statvfs(FOLDER)
    return max(0, place.f_bavail * place.f_frsize - _RESERVE)


def check_room(needed: int) -> None:
    """Raise TraceError unless the folder's file system can take NEEDED bytes: drained events are no longer in the kernel."""
    room = find_room()
    if room < needed:
        raise TraceError(
            f"{FOLDER} has {room >> 10} KiB free and the traces hold up to {needed >> 10} KiB: make room there, or mount a"
            " file system that has it"
        )


def drop_transfer(path: str) -> None:
    """Remove the transfer PATH, which its reader calls broken; a path that is no transfer is ignored."""
    if _TRANSFER_NAME.match(os.path.basename(path)):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(FOLDER, os.path.basename(path)))


def is_in_transfer() -> bool:
    """Return True if another fetch is bringing segments home; broken transfers are removed."""
    is_busy = False
    for name in os.listdir(FOLDER):
        path = os.path.join(FOLDER, name)
        if not name.startswith(_TRANSFER):
            continue
        with suppress(FileNotFoundError):
            status = os.stat(path, follow_symlinks=False)
            if abs(time.time() - status.st_ctime) < _GRACE_S or _is_open(status):
                is_busy = True
            else:
                os.unlink(path)
    return is_busy


def _is_open(status: os.stat_result) -> bool:
    """Return True if a process has the file with STATUS open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    opened = os.stat(f"/proc/{pid}/fd/{fd}")
                    if (opened.st_dev, opened.st_ino) == (status.st_dev, status.st_ino):
                        return True
    return False


def make_transfer(chosen: Sequence[Staged], have: Mapping[str, int]) -> dict[str, Any] | None:
    """Make one file of the CHOSEN segments, which root may read, and return its description, or None for no segments.

    HAVE tells for a segment's name how many of its first bytes the controller has; these are left out.
    The description has `path`, `size`, `folder`, and for each of `segments` name, state, size, sha256, and start: the first byte of
    the segment that the file holds. A small file's has `content` as well, in base64. The file is there all the same: other fetches see
    by it that these segments are on their way.
    """
    if not chosen:
        return None
    path = os.path.join(FOLDER, _TRANSFER + secrets.token_hex(8))
    segments = []
    is_whole = len(chosen) == 1 and not have.get(chosen[0].name)
    if is_whole:
        os.link(chosen[0].path, path)
    flags = os.O_RDONLY if is_whole else os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "rb" if is_whole else "wb") as transfer:
        place = 0
        for staged in chosen:
            start = min(max(have.get(staged.name, 0), 0), staged.size)
            digest = _copy(staged.path, start, None if is_whole else transfer)
            about = {"name": staged.name, "state": staged.state, "size": staged.size, "start": start, "sha256": digest}
            segments.append(about)
            place += staged.size - start
    description = {"path": path, "size": place, "folder": FOLDER, "segments": segments}
    if place <= _MAX_CONTENT:
        with open(path, "rb") as small:
            description["content"] = base64.b64encode(small.read()).decode("ascii")
    return description


def _copy(path: str, start: int, to: BinaryIO | None) -> str:
    """Copy the file PATH from byte START to TO, unless that is None, and return the sha256 of the whole file."""
    whole = hashlib.sha256()
    place = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(_BLOCK)
            if not block:
                return whole.hexdigest()
            whole.update(block)
            if to is not None and place + len(block) > start:
                to.write(block[max(0, start - place) :])
            place += len(block)
