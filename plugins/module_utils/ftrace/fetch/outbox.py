# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Segments on a host, from their drain until a controller has them: a broken transfer, or a killed module, loses none.

NAME.part is being written, or its writer was killed. NAME.new was not brought home yet, and is offered to every fetch.
NAME.kept was, and stays for others (consume=false). transfer-… is what one fetch reads, as the login user; all else is root's.
Who lists or writes holds the folder's lock, so what is in part then is nobody's any more.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Iterator, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.capture_file import (
    SegmentError,
    read_segment,
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
# A transfer begins that soon after the module has ended; later somebody has it open, or it broke.
_GRACE_S = 60.0
MAX_WAITING = 4 << 30
MAX_KEPT = 1 << 30
MAX_KEPT_CAPTURES = 256  # of one instance; a controller tells as many that it has
_BLOCK = 1 << 20
_RESERVE = 1 << 20  # for heads and documents


@dataclass(frozen=True)
class Staged:
    """A segment in the folder. NAME is the same on the host and at home; it ends in nanoseconds of real time."""

    name: str
    instance: str
    state: str
    size: int

    @property
    def path(self) -> str:
        """Where it is."""
        return os.path.join(FOLDER, f"{self.name}.{self.state}")

    @property
    def stamp_ns(self) -> int:
        """When it was drained, in nanoseconds of real time."""
        return int(self.name.rpartition(".")[2])

    def as_result(self) -> dict[str, Any]:
        """What modules return of it."""
        return {"instance": self.instance, "state": self.state, "size": self.size, "drained": self.stamp_ns / 1e9}


@contextmanager
def hold_folder() -> Iterator[None]:
    """Keep others away from the folder, which is made when it is missing."""
    with hold_lock("captures"):
        make_folder(FOLDER, 0o711)  # a login user fetches from it
        yield


def list_segments() -> list[Staged]:
    """What is staged, the oldest first. The caller holds the folder, or does not mind what others are about to change."""
    try:
        names = os.listdir(FOLDER)
    except FileNotFoundError:
        return []
    found = []
    for match in filter(None, map(_NAME.match, names)):
        with suppress(FileNotFoundError):
            size = os.stat(os.path.join(FOLDER, match.group())).st_size
            found.append(Staged(match.group().rpartition(".")[0], match["instance"], match["state"], size))
    return sorted(found, key=lambda one: one.stamp_ns)


def create_segment(instance: Instance) -> BinaryIO:
    """A new segment of INSTANCE to write to. Once it has a document it is brought home, whatever happens to the writer."""
    # Stamps grow, also where the clock was set back: cursors go by them. Names of captures have their microseconds.
    last = max((one.stamp_ns for one in list_segments()), default=0)
    stamp = max(time.time_ns(), last + 1000)
    path = os.path.join(FOLDER, f"{instance.name}.{stamp:020d}.{_PART}")
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600))


def finish_segment(file: BinaryIO) -> None:
    """Let the closed FILE of create_segment be brought home."""
    os.rename(file.name, file.name[: -len(_PART)] + NEW)


def recover() -> None:
    """Make what killed writers have left into segments to bring home; those whose writer had not begun to drain are removed.

    A document is there before the first page is taken from the kernel. Without any chunk it tells that events may have been lost.
    """
    for one in list_segments():
        if one.state != _PART:
            continue
        try:
            with open(one.path, "rb") as file:
                read_segment(file)
        except SegmentError:
            os.unlink(one.path)
        else:
            os.rename(one.path, one.path[: -len(_PART)] + NEW)


def prune() -> None:
    """Remove the oldest of what is kept over the bounds of bytes, for all, and of captures, for each instance."""
    left = [one for one in list_segments() if one.state == KEPT]
    size = sum(one.size for one in left)
    counts = Counter(one.instance for one in left)
    for one in left:
        if size > MAX_KEPT or counts[one.instance] > MAX_KEPT_CAPTURES:
            os.unlink(one.path)
            size -= one.size
            counts[one.instance] -= 1


def list_kept_names() -> list[str]:
    """Names of the instances of which something is kept, whether they still exist or not."""
    return sorted({one.instance for one in list_segments() if one.state == KEPT})


def read_kept_container(instance: str) -> dict[str, Any] | None:
    """What the newest of what is kept of INSTANCE says of its container; None where nothing does."""
    for one in reversed(list_segments()):
        if one.state == KEPT and one.instance == instance:
            with suppress(SegmentError, OSError), open(one.path, "rb") as file:
                about: dict[str, Any] | None = read_segment(file).document.get("container")
                return about
    return None


def remove_kept(instance: str) -> None:
    """Remove what is kept of INSTANCE, which goes."""
    for one in list_segments():
        if one.state == KEPT and one.instance == instance:
            with suppress(FileNotFoundError):
                os.unlink(one.path)


def check_waiting() -> None:
    """Raise TraceError where too much waits to be brought home already."""
    waiting = sum(one.size for one in list_segments() if one.state == NEW)
    if waiting > MAX_WAITING:
        raise TraceError(
            f"{waiting >> 20} MiB of captures wait in {FOLDER} to be brought home: nothing more is drained until a fetch has them"
        )


def find_room() -> int:
    """How many bytes the folder can take."""
    place = os.statvfs(FOLDER)
    return max(0, place.f_bavail * place.f_frsize - _RESERVE)


def check_room(needed: int) -> None:
    """Raise TraceError unless the folder can take NEEDED bytes more: what is drained is gone from the kernel."""
    room = find_room()
    if room < needed:
        raise TraceError(
            f"{FOLDER} has {room >> 10} KiB free and the traces hold up to {needed >> 10} KiB: make room there, or mount a"
            " file system that has it"
        )


def drop_transfer(path: str) -> None:
    """Remove the transfer PATH, of which its reader says that it broke; what is none is left alone."""
    if _TRANSFER_NAME.match(os.path.basename(path)):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(FOLDER, os.path.basename(path)))


def is_in_transfer() -> bool:
    """Whether another fetch is bringing home what waits. Transfers that broke are removed."""
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
    """Whether a process has the file of STATUS open."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    there = os.stat(f"/proc/{pid}/fd/{fd}")
                    if (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino):
                        return True
    return False


def make_transfer(chosen: Sequence[Staged], have: Mapping[str, int], owner: tuple[int, int]) -> dict[str, Any] | None:
    """One file with all of CHOSEN, each from the byte on that the controller does not HAVE, for OWNER (user and group) to read.

    Its path and size, and for each segment name, size, sha256 and where its part begins; None where nothing is chosen.
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
        for one in chosen:
            start = min(max(have.get(one.name, 0), 0), one.size)
            digest = _copy(one.path, start, None if is_whole else transfer)
            segments.append({"name": one.name, "state": one.state, "size": one.size, "start": start, "sha256": digest})
            place += one.size - start
        os.fchown(fd, *owner)
    return {"path": path, "size": place, "folder": FOLDER, "segments": segments}


def _copy(path: str, start: int, to: BinaryIO | None) -> str:
    """Copy the file PATH from START on; the sha256 of all of it."""
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


def find_owner(folder: str | None) -> tuple[int, int]:
    """Whom FOLDER, which the login user has made, belongs to: user and group."""
    if folder is None:
        return 0, 0
    found = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise TraceError(f"{folder} is no folder of the login user")
    return found.st_uid, found.st_gid
