# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep records of traces: what is known at the start and cannot be read from the kernel later.

A record tells the container's threads, the clocks' readings and what was asked for. A record is no state: a capture without it says less,
and is still right. Each record belongs to one instance in one boot.
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
# What the container's processes held and waited for at the start of the next capture, and at the end of a stopped trace.
HOLDINGS, LAST_HOLDINGS = "holdings", "last_holdings"
_ENDING = ".json"


@dataclass(frozen=True)
class Discarded:
    """The number of EVENTS that the kernel dropped when a setting changed; if it is not EXACT, more may be gone."""

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
    """Write RECORD of INSTANCE in place of an earlier one."""
    make_folder(_FOLDER)
    _write(_find_path(instance), {**record, "instance": _identify(instance)})


def _write(path: str, document: dict[str, Any]) -> None:
    fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(document, file)
    os.rename(path + ".part", path)


def read_record(instance: Instance) -> dict[str, Any]:
    """Return the record of INSTANCE; empty if there is none, or if it belongs to another instance of the same name."""
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
    """Write SETTINGS, which INSTANCE is to have, for the next recorder in case this one is killed."""
    with suppress(FileNotFoundError):  # a cleanup has removed the folder, or the instance is gone
        _write(_find_wanted_path(instance), {"settings": settings, "instance": _identify(instance)})


def read_wanted(instance: Instance) -> dict[str, str] | None:
    """Return the settings that INSTANCE is to have; None if no recorder has written them."""
    document = _read_own(_find_wanted_path(instance), instance)
    return None if document is None else document["settings"]


def note_removed(instance: Instance) -> None:
    """Note in the record of INSTANCE, if there is one, that somebody removed the instance."""
    record = _read(_find_path(instance))
    if record is not None and _REMOVED not in record:
        _write(_find_path(instance), {**record, _REMOVED: time.time()})


def read_removed(instance: Instance) -> dict[str, Any] | None:
    """Return the record of INSTANCE if somebody removed the instance in this boot and it was not made again; else None."""
    record = _read(_find_path(instance))
    if record is None or _REMOVED not in record or record["instance"]["boot_id"] != boot.read_boot_id():
        return None
    return None if instance.exists() else record


def describe_removed(record: dict[str, Any]) -> str:
    """Return a sentence that says when somebody removed the instance of RECORD."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record[_REMOVED]))
    return f"somebody removed its trace instance at {when} or a moment before"


def list_removed(root: str) -> list[str]:
    """Return the names of the instances of the tracefs at ROOT that somebody removed in this boot."""
    try:
        names = [name[: -len(_ENDING)] for name in os.listdir(_FOLDER) if name.endswith(_ENDING)]
    except FileNotFoundError:
        return []
    return [name for name in names if read_removed(Instance(root, name)) is not None]


@contextmanager
def noting_discarded(instance: Instance) -> Iterator[None]:
    """Note in the record of INSTANCE how many events the kernel drops in the context.

    INSTANCE must not trace. The kernel drops all events of a buffer when the clock or the tracer changes.
    """
    before = [instance.read_statistics(cpu) for cpu in instance.list_cpus()]
    try:
        yield
    finally:
        after = [instance.read_statistics(cpu) for cpu in instance.list_cpus()]
        gone = [old for old, now in zip(before, after) if old.entries > now.entries and now.entries + now.read == 0]
        if gone:
            record = read_record(instance)
            earlier = read_discarded(record)
            # If the buffer was never read, all that the kernel counted as overwritten is lost and in no account yet.
            lost = sum(cpu.overrun + cpu.dropped + cpu.commit_overrun for cpu in gone if not cpu.read)
            noted = Discarded(
                events=earlier.events + sum(cpu.entries for cpu in gone) + lost,
                exact=earlier.exact and not any(cpu.overrun for cpu in gone if cpu.read),
            )
            write_record(instance, {**record, _DISCARDED: vars(noted)})


def read_discarded(record: dict[str, Any]) -> Discarded:
    """Return what the kernel has dropped of the trace with RECORD and what no capture accounts for yet."""
    return Discarded(**record.get(_DISCARDED) or {})


def find_holdings(record: dict[str, Any], *, is_recorded: bool) -> dict[str, Any]:
    """Return what the processes held at the start of the running trace with RECORD; empty if another start is to be described.

    IS_RECORDED is True if a recording begins, which is a capture of its own.
    """
    return {} if is_recorded or "end" in record else record.get(HOLDINGS) or {}


def note_taken(instance: Instance, holdings: dict[str, Any] | None = None) -> None:
    """Note in the record of INSTANCE that its buffers were drained just now, when its processes held HOLDINGS (None: as noted before).

    The capture accounts for the events that the kernel has dropped. The next capture has all events from now on.
    """
    record = read_record(instance)
    if record:
        record.pop(_DISCARDED, None)
        if holdings is not None:
            record[HOLDINGS] = holdings
        write_record(instance, {**record, "changed": clocks.measure_offset(instance.read_clock())})


def restore(instance: Instance, record: dict[str, Any]) -> None:
    """Write RECORD of INSTANCE again after a change that was refused; what the kernel has dropped meanwhile stays noted."""
    discarded = read_record(instance).get(_DISCARDED)
    if record or discarded:
        write_record(instance, {**record, _DISCARDED: discarded})
    else:
        remove_record(instance)


def remove_record(instance: Instance) -> None:
    """Remove the record of INSTANCE, and the folder of the records if it is empty then."""
    for path in (_find_path(instance), _find_wanted_path(instance)):
        for name in (path, path + ".part"):
            with suppress(FileNotFoundError):
                os.unlink(name)
    try:
        os.rmdir(_FOLDER)
    except OSError:
        return  # the folder has other records, or does not exist
