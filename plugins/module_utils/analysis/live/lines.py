# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Show a system call as one line, as strace does: time, program, call with its arguments by name, result, duration. Pure."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.calls import Call
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import format_duration
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.arguments import format_arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import find_compat_machine
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_ADDRESSES = frozenset({"mmap", "mmap2", "mremap", "brk", "shmat"})
_FD_POSITIONS = {"mmap": 4, "mmap2": 4}  # of the argument that Call.descriptor is about, where it is not the first
_UNKNOWN = "…"
_MAX_LINE = 2000  # characters: a path may have 4096


def format_call(call: Call, manifest: Mapping[str, Any]) -> str:
    """Return CALL of the trace that MANIFEST describes as a line, such as: 12:00:00.000 cat[7] close(3</etc/passwd>) = 0 in 12 us.

    The time is that of the call's beginning, in UTC. A process whose number inside the container is not known has the host's.
    Characters that are not printable are escaped.
    """
    number = f"host {call.pid}" if call.container_pid is None else str(call.container_pid)
    lasted = "" if call.duration_ns is None else f" in {format_duration(call.duration_ns)}"
    shown = f"{call.call}({_show_arguments(call, manifest)}) = {_show_result(call)}{lasted}"
    line = escape(f"{_show_time(call.start_ns, manifest)} {call.program}[{number}] {shown}")
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}{_UNKNOWN}"


def _show_time(time_ns: int, manifest: Mapping[str, Any]) -> str:
    offset_ns = manifest.get("clock_offset_ns")
    if not isinstance(offset_ns, int):
        return f"{time_ns / 1e9:.3f}"
    try:
        real = datetime.fromtimestamp((time_ns + offset_ns) / 1e9, timezone.utc)
    except (OverflowError, ValueError, OSError):  # the numbers came from a host
        return f"{time_ns / 1e9:.3f}"
    return real.strftime("%H:%M:%S.") + f"{real.microsecond // 1000:03}"


def _show_arguments(call: Call, manifest: Mapping[str, Any]) -> str:
    if not call.arguments:
        return _UNKNOWN if call.path is None else f'"{call.path}", {_UNKNOWN}'
    arch = str(manifest.get("arch", ""))
    fd = call.arguments[_FD_POSITIONS.get(call.call, 0)] & 0xFFFFFFFF
    return format_arguments(
        call.call,
        call.arguments,
        find_compat_machine(arch) if call.compat else arch,
        path=call.path,
        fd_text=lambda number: call.descriptor if number == fd else None,
    )


def _show_result(call: Call) -> str:
    if call.result is None:
        return "?"
    if call.denied:
        return f"? ({'SIGSYS' if call.trapped else call.error or 'denied'} by seccomp)"
    if call.restarted:
        return f"? {call.error}"
    if call.error is not None:
        return f"-1 {call.error}"
    return hex(call.result & (1 << 64) - 1) if call.call in _ADDRESSES else str(call.result)
