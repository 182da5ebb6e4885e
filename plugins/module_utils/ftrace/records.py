# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was known when a trace began and cannot be read from the kernel later: who was there, what time it was, what was asked for.

A record is no state: without it a capture says less, and is right all the same. It belongs to one instance of one boot.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import RUN
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import clocks
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance

_FOLDER = os.path.join(RUN, "traces")
_DISCARDED = "discarded"


@dataclass(frozen=True)
class Discarded:
    """EVENTS that the kernel has dropped when a setting changed; more than that may be gone where that is not EXACT."""

    events: int = 0
    exact: bool = True


NOTHING_DISCARDED = Discarded()


def read_boot_id() -> str:
    """The identity of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _find_path(instance: Instance) -> str:
    return os.path.join(_FOLDER, instance.name + ".json")


def _identify(instance: Instance) -> dict[str, Any]:
    status = os.stat(instance.path)
    return {"boot_id": read_boot_id(), "inode": status.st_ino, "made_ns": status.st_ctime_ns}


def write_record(instance: Instance, record: dict[str, Any]) -> None:
    """Keep RECORD of INSTANCE in place of the one there was."""
    make_folder(_FOLDER)
    path = _find_path(instance)
    fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump({**record, "instance": _identify(instance)}, file)
    os.rename(path + ".part", path)


def read_record(instance: Instance) -> dict[str, Any]:
    """The record of INSTANCE; empty when there is none, or it is of another one of that name."""
    try:
        with open(_find_path(instance), encoding="utf-8") as file:
            record: dict[str, Any] = json.load(file)
        return record if record.pop("instance", None) == _identify(instance) else {}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


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
    for path in (_find_path(instance), _find_path(instance) + ".part"):
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
    try:
        os.rmdir(_FOLDER)
    except OSError:
        return  # others are there, or it never was
