# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the catalogue's record of a capture from its manifest. Pure: manifests came from hosts, which may write anything."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape_surrogates

SECOND_NS = 10**9
HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
# Between these any clock of a host may be, 1970 included: a machine without a clock begins there.
_MAX_NS = 7_258_118_400 * SECOND_NS  # the year 2200
_MAX_COUNT = 1 << 62
_MAX_TEXT = 1000  # characters
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_STAMP = re.compile(r"([0-9]{8}T[0-9]{6})\.([0-9]{6})Z\.dat\Z", re.ASCII)


@dataclass(frozen=True)
class Record:
    """A capture, as the catalogue has it.

    PATH: its path, relative to the store. HOST, CONTAINER: their names in the manifest. CONTAINER_ID, RUNTIME, IMAGE: None where unknown.
    RUNTIME names the user of the host as well, where the container is not root's.
    BEGIN_NS, END_NS: its time by the host's clock, in nanoseconds since the epoch.
    COMPLETE, LOST, ENTRIES: what the manifest says; None where it says nothing. BYTES: of all its files. SHA256: of its trace.
    RUN: the run that brought it, or None. ADDED_NS: when it came into the store, by the controller's clock.
    """

    path: str
    host: str
    container: str
    container_id: str | None
    runtime: str | None
    image: str | None
    begin_ns: int
    end_ns: int
    complete: bool | None
    lost: int | None
    entries: int | None
    bytes: int
    sha256: str | None
    run: str | None = None
    added_ns: int = 0

    @property
    def of_container(self) -> tuple[str, str | None, str]:
        """The container's identity among all hosts: another engine of the host, or another user's, may have one of the same name."""
        return self.host, self.runtime, self.container

    @property
    def aged_from_ns(self) -> int:
        """The time from which the capture's age is counted: its end, but no later than when it came, for a host's clock may be ahead."""
        return min(self.end_ns, self.added_ns)

    def came(self, run: str | None, added_ns: int) -> Record:
        """Return the record of a capture that has come with RUN at ADDED_NS."""
        return replace(self, run=run, added_ns=added_ns)


def make_record(path: str, manifest: Mapping[str, Any], size: int, now_ns: int) -> Record | None:
    """Return the record of the capture at PATH with a sound MANIFEST and SIZE bytes of files; None if the manifest names no host or container.

    Times that the manifest does not tell, or that cannot be, are those of the fetch, of the file's name, or NOW_NS.
    """
    container = manifest.get("container")
    if not isinstance(container, Mapping):
        return None
    host, name = _text(manifest.get("inventory_hostname") or manifest.get("host")), _text(container.get("name"))
    if not host or not name:
        return None
    begin_ns, end_ns = find_times(path, manifest, now_ns)
    complete, digest = manifest.get("complete"), manifest.get("sha256")
    return Record(
        path=path,
        host=host,
        container=name,
        container_id=_text(container.get("id")),
        runtime=_name_runtime(container),
        image=_text(container.get("image")),
        begin_ns=begin_ns,
        end_ns=end_ns,
        complete=complete if isinstance(complete, bool) else None,
        lost=_count(manifest.get("lost")),
        entries=_count(manifest.get("entries")),
        bytes=size,
        sha256=digest if isinstance(digest, str) and _SHA256.match(digest) else None,
    )


def _name_runtime(container: Mapping[str, Any]) -> str | None:
    runtime, owner = _text(container.get("runtime")), _count(container.get("owner_uid"))
    return runtime if runtime is None or owner is None else f"{runtime} of user {owner}"


def find_times(path: str, manifest: Mapping[str, Any], now_ns: int) -> tuple[int, int]:
    """Return when the capture at PATH with MANIFEST begins and ends, in nanoseconds since the epoch; NOW_NS where nothing tells.

    It begins where all that was asked for is in it, which is later than the trace's start where earlier captures have what came before.
    """
    end = _read_clock(manifest, "end")
    if end is None:
        end = _seconds(manifest.get("fetched"))
    if end is None:
        end = _find_stamp(path)
    if end is None:
        end = now_ns
    begins = [
        begin for begin in (_read_clock(manifest, "changed"), _read_clock(manifest, "start")) if begin is not None
    ]
    return min([*begins[:1], end]), end


def _read_clock(manifest: Mapping[str, Any], name: str) -> int | None:
    times = manifest.get("time")
    found = times.get(name) if isinstance(times, Mapping) else None
    return _time(found.get("real_time_ns")) if isinstance(found, Mapping) else None


def _time(value: Any) -> int | None:
    is_sane = isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_NS
    return value if is_sane else None


def _seconds(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _MAX_NS / SECOND_NS:
        return None
    return None if math.isnan(value) else _time(int(value * SECOND_NS))


def _find_stamp(path: str) -> int | None:
    """Return the time in the name of the capture at PATH, as ftrace_fetch writes it, or None."""
    match = _STAMP.match(os.path.basename(path))
    if not match:
        return None
    try:
        moment = datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return _time(int(moment.timestamp()) * SECOND_NS + int(match[2]) * 1000)


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT
    return value if is_count else None


def _text(value: Any) -> str | None:
    return escape_surrogates(value[:_MAX_TEXT]) if isinstance(value, str) else None
