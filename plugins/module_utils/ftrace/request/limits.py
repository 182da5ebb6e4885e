# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parse and apply the limits of a trace: when it ends by itself, and how much of a recording is kept. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes, parse_seconds

# A trace may exceed its rate by the events of this time: programs start with a burst.
BURST_S = 5.0
RECORD_ONLY = ("max_loss", "max_size", "max_age", "rotate_size", "rotate_time", "when_full", "min_free")
_MAX_ROTATE_BYTES = 64 << 20
_DEFAULTS = {
    "max_size": "1GiB",
    "rotate_time": "1m",
    "when_full": "stop",
    "min_free": "512MiB",
}


@dataclass(frozen=True)
class Limits:
    """The limits of one trace. Times are in seconds, sizes in bytes; None means no limit.

    TTL_S: how long the trace may last.
    MAX_RATE: events per second on the average.
    WATCH: True if the recorder looks for new processes of the container.
    TOOLS: True if processes of this collection's tools belong to the trace.
    RESTARTS: True if the recorder waits for the container's next starts.
    DESCENDS: True if the recorder follows the container's shim at such a start.
    IS_RECORDED: True if the recorder drains the buffers to files. The fields below are for such a trace only.
    MAX_LOSS: how many events may be lost.
    MAX_BYTES, MAX_AGE_S: size of the recording, and the age at which a segment is removed.
    ROTATE_BYTES, ROTATE_S: size and time after which a new segment begins.
    WHEN_FULL: what happens at MAX_BYTES, 'stop' or 'rotate'.
    MIN_FREE: free space that the recording leaves on its file system.
    """

    ttl_s: float | None = None
    max_rate: int | None = None
    watch: bool = False
    tools: bool = False
    restarts: bool = False
    descends: bool = False
    is_recorded: bool = False
    max_loss: int | None = None
    max_bytes: int = 0
    max_age_s: float | None = None
    rotate_bytes: int = 0
    rotate_s: float = 0.0
    when_full: str = "stop"
    min_free: int = 0

    def describe(self) -> dict[str, Any]:
        """Return the limits that were asked for, for a diff and a manifest; empty if there are none."""
        names = asdict(self)
        if not self.is_recorded:
            names = {name: names[name] for name in ("ttl_s", "max_rate", "watch", "tools", "restarts", "descends")}
        return {name: value for name, value in names.items() if value is not None and value is not False}


NO_LIMITS = Limits()


def parse_limits(parameters: Mapping[str, Any]) -> Limits:
    """Return the limits that PARAMETERS of ftrace_instance ask for.

    Raises FleetError for a value that cannot be parsed and for options that do not fit together.
    """
    is_recorded = parameters["mode"] == "record"
    for name in RECORD_ONLY:
        if parameters[name] is not None and not is_recorded:
            raise TraceError(f"{name} is for mode=record: a ring overwrites what is old, and has no files")
    for name in ("max_rate", "max_loss"):
        if parameters[name] is not None and parameters[name] < (name == "max_rate"):
            raise TraceError(f"{name}: {parameters[name]} is too small")
    texts = {name: text if parameters[name] is None else parameters[name] for name, text in _DEFAULTS.items()}
    return Limits(
        ttl_s=parse_seconds(parameters["ttl"], "ttl"),
        max_rate=parameters["max_rate"],
        is_recorded=is_recorded,
        **(_parse_recording(parameters, texts) if is_recorded else {}),
    )


def _parse_recording(parameters: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    max_bytes = parse_bytes(texts["max_size"], "max_size")
    # Room is made by removing whole segments. With fewer segments than eight, each removal would take much of a recording.
    rotate_bytes = min(_MAX_ROTATE_BYTES, max_bytes // 8)
    if parameters["rotate_size"] is not None:
        rotate_bytes = parse_bytes(parameters["rotate_size"], "rotate_size")
        if texts["when_full"] == "rotate" and rotate_bytes > max_bytes // 2:
            raise TraceError(
                f"rotate_size: {parameters['rotate_size']} is more than half of max_size ({texts['max_size']}), so that when_full=rotate"
                " would leave next to nothing: ask for less, or leave it out for an eighth"
            )
    return {
        "max_loss": parameters["max_loss"],
        "max_bytes": max_bytes,
        "max_age_s": parse_seconds(parameters["max_age"], "max_age"),
        "rotate_bytes": rotate_bytes,
        "rotate_s": parse_seconds(texts["rotate_time"], "rotate_time"),
        "when_full": texts["when_full"],
        "min_free": parse_bytes(texts["min_free"], "min_free"),
    }


def check_buffers(limits: Limits, buffers: int) -> None:
    """Raise TraceError if a recording with LIMITS cannot hold four times the ring buffers of all CPUs.

    BUFFERS is the size of these ring buffers in bytes.
    """
    if limits.is_recorded and limits.max_bytes < 4 * buffers:
        raise TraceError(
            f"max_size: {limits.max_bytes >> 10} KiB is less than four times the ring buffers of all CPUs ({buffers >> 10} KiB),"
            " whose content has to fit in when the recording ends: ask for more, or for a smaller buffer_size"
        )


class Brake:
    """A check of a trace's rate: MAX_RATE events per second on the average, with a burst of BURST_S seconds' worth of events."""

    def __init__(self, max_rate: int, now_s: float, events: int) -> None:
        self._max_rate = max_rate
        self._last = (now_s, events)
        self._ahead = 0.0

    def look(self, now_s: float, events: int) -> str | None:
        """Return why the trace has to stop, or None if its rate is low enough.

        NOW_S is a clock's reading in seconds, EVENTS the number of events since the trace began.
        """
        (before_s, before), self._last = self._last, (now_s, events)
        passed_s, more = now_s - before_s, events - before
        self._ahead = max(0.0, self._ahead + more - self._max_rate * passed_s)
        if self._ahead <= self._max_rate * BURST_S:
            return None
        rate = int(more / passed_s) if passed_s > 0 else more
        return f"it recorded {rate} events per second, more than max_rate ({self._max_rate}) allows"
