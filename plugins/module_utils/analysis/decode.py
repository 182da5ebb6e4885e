# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open the buffers of a trace.dat for reading, and find out what their clocks count. The compiled pass decodes their pages."""

from __future__ import annotations

from typing import BinaryIO

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import EventFormat, read_formats
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat, trace_dat_reader

# The kernel's trace clocks (trace.c) that count nanoseconds. A file that names no clock has `local`.
_NANOSECONDS = frozenset({"local", "global", "perf", "mono", "mono_raw", "boot", "tai"})
_HUNDREDTHS = "uptime"  # in units of USER_HZ
# trace-cmd writes tsc2nsec for x86-tsc when the file has the factor that turns the ticks into nanoseconds.
_TICKS = frozenset({"x86-tsc", "tsc2nsec"})
_OTHER_CLOCK = "record it again with -C mono, or read it by trace-cmd report"
_MAX_SHIFT = 32


class Trace:
    """One buffer of a trace.dat that is open for reading: the buffer of HEAD, or the only one of FILE."""

    def __init__(
        self, file: BinaryIO, head: trace_dat.Head | None = None, formats: dict[str, EventFormat] | None = None
    ) -> None:
        self.file = file
        self.head = head or trace_dat_reader.read_head(file)
        self.formats = read_formats(self.head) if formats is None else formats
        self.scale = find_scale(self.head)


def read_traces(file: BinaryIO) -> list[Trace]:
    """Return a Trace for each buffer in the trace.dat FILE. Raises TraceFileError when a buffer cannot be read."""
    heads = trace_dat_reader.read_heads(file)
    formats = read_formats(heads[0])
    return [Trace(file, head, formats) for head in heads]


def find_scale(head: trace_dat.Head) -> tuple[int, int]:
    """Return the factor, and then the bits to shift right, that turn HEAD's time stamps into nanoseconds.

    Raises TraceFileError when the file does not say what its clock counts.
    """
    clock = head.clock or "local"
    if clock in _NANOSECONDS:
        # trace-cmd extract writes the name of the host's clock, whatever clock the instance had.
        if head.has_seconds() is False:
            raise trace_dat.TraceFileError(
                f"its clock is not {clock!r}, as the file says: the kernel's statistics in it do not count nanoseconds",
                _OTHER_CLOCK,
            )
        return 1, 0
    if clock == _HUNDREDTHS:
        return 10**7, 0
    scale = head.find_tsc_factor() if clock in _TICKS else None
    if scale is None or scale[1] > _MAX_SHIFT:
        raise trace_dat.TraceFileError(
            f"its clock {clock!r} does not count nanoseconds, nor does the file say what it counts",
            _OTHER_CLOCK,
        )
    return scale
