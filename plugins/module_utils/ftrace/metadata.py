# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was known when a trace began and cannot be read from the kernel later: who was there, what time it was, what was asked for.

A record is no state: without it a capture says less, and is right all the same. It belongs to one instance of one boot.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN

_FOLDER = os.path.join(RUN, "traces")
_DISCARDED, _REMOVED = "discarded", "removed"
_ENDING = ".json"


@dataclass(frozen=True)
class Discarded:
    """EVENTS that the kernel has dropped when a setting changed; more than that may be gone where that is not EXACT."""

    events: int = 0
    exact: bool = True


NOTHING_DISCARDED = Discarded()


def _find_path(instance: Instance) -> str:
    return os.path.join(_FOLDER, instance.name + _ENDING)


def _find_wanted_path(instance: Instance) -> str:
    return os.path.join(_FOLDER, instance.name + ".wanted")


def _identify(instance: Instance) -> dict[str, Any]:
    status = os.stat(instance.path)
    return {"boot_id": boot.read_boot_id(), "inode": status.st_ino, "made_ns": status.st_ctime_ns}


def write_record(instance: Instance, record: dict[str, Any]) -> None:
    """Keep RECORD of INSTANCE in place of the one there was."""
    make_folder(_FOLDER)
    _write(_find_path(instance), {**record, "instance": _identify(instance)})


def _write(path: str, document: dict[str, Any]) -> None:
    fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(document, file)
    os.rename(path + ".part", path)


def read_record(instance: Instance) -> dict[str, Any]:
    """The record of INSTANCE; empty when there is none, or it is of another one of that name."""
    return _read_own(_find_path(instance), instance) or {}


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        return document if isinstance(document, dict) else None
    except (OSError, ValueError):
        return None


def _read_own(path: str, instance: Instance) -> dict[str, Any] | None:
    document = _read(path)
    try:
        return document if document is not None and document.pop("instance", None) == _identify(instance) else None
    except OSError:
        return None  # the instance is gone


def write_wanted(instance: Instance, settings: dict[str, str]) -> None:
    """Keep SETTINGS, which INSTANCE is to have, for the recorder that comes after one that was killed."""
    with suppress(FileNotFoundError):  # a cleanup has taken the folder, or the instance is gone
        _write(_find_wanted_path(instance), {"settings": settings, "instance": _identify(instance)})


def read_wanted(instance: Instance) -> dict[str, str] | None:
    """The settings that INSTANCE is to have; None where nobody has kept them."""
    document = _read_own(_find_wanted_path(instance), instance)
    return None if document is None else document["settings"]


def note_removed(instance: Instance) -> None:
    """Note that somebody removed INSTANCE, of which there is a record."""
    record = _read(_find_path(instance))
    if record is not None and _REMOVED not in record:
        _write(_find_path(instance), {**record, _REMOVED: time.time()})


def read_removed(instance: Instance) -> dict[str, Any] | None:
    """The record of INSTANCE where somebody removed it in this boot, and it was not made again."""
    record = _read(_find_path(instance))
    if record is None or _REMOVED not in record or record["instance"]["boot_id"] != boot.read_boot_id():
        return None
    return None if instance.exists() else record


def describe_removed(record: dict[str, Any]) -> str:
    """Say that the instance of RECORD was removed, and when."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record[_REMOVED]))
    return f"somebody removed its trace instance at {when} or a moment before"


def list_removed(root: str) -> list[str]:
    """Names of the instances below the tracefs at ROOT that somebody removed."""
    try:
        names = [name[: -len(_ENDING)] for name in os.listdir(_FOLDER) if name.endswith(_ENDING)]
    except FileNotFoundError:
        return []
    return [name for name in names if read_removed(Instance(root, name)) is not None]


@contextmanager
def noting_discarded(instance: Instance) -> Iterator[None]:
    """Note in the record of INSTANCE, which does not trace, what the kernel drops meanwhile, as it does for another clock or tracer."""
    before = [instance.read_statistics(cpu) for cpu in instance.list_cpus()]
    try:
        yield
    finally:
        after = [instance.read_statistics(cpu) for cpu in instance.list_cpus()]
        gone = [one for one, now in zip(before, after) if one.entries > now.entries and now.entries + now.read == 0]
        if gone:
            record = read_record(instance)
            earlier = read_discarded(record)
            # Where nobody has read, the kernel's counter of what was overwritten is of this buffer alone, and unreported.
            lost = sum(one.overrun + one.dropped + one.commit_overrun for one in gone if not one.read)
            noted = Discarded(
                events=earlier.events + sum(one.entries for one in gone) + lost,
                exact=earlier.exact and not any(one.overrun for one in gone if one.read),
            )
            write_record(instance, {**record, _DISCARDED: vars(noted)})


def read_discarded(record: dict[str, Any]) -> Discarded:
    """What the kernel has dropped of the trace with RECORD, and is in no capture's account yet."""
    return Discarded(**record.get(_DISCARDED) or {})


def note_taken(instance: Instance) -> None:
    """What INSTANCE held was taken: what the kernel has dropped is in an account now, and what comes is a trace that begins now."""
    record = read_record(instance)
    if record:
        record.pop(_DISCARDED, None)
        write_record(instance, {**record, "changed": clocks.measure_offset(instance.read_clock())})


def restore(instance: Instance, record: dict[str, Any]) -> None:
    """Keep RECORD of INSTANCE again, where a change was refused; what the kernel has dropped meanwhile stays noted."""
    discarded = read_record(instance).get(_DISCARDED)
    if record or discarded:
        write_record(instance, {**record, _DISCARDED: discarded})
    else:
        remove_record(instance)


def remove_record(instance: Instance) -> None:
    """Forget the record of INSTANCE, and the folder with the last one."""
    for path in (_find_path(instance), _find_wanted_path(instance)):
        for name in (path, path + ".part"):
            with suppress(FileNotFoundError):
                os.unlink(name)
    try:
        os.rmdir(_FOLDER)
    except OSError:
        return  # others are there, or it never was
