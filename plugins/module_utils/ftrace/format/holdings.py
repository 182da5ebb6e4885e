# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form of the tables that tell what a container's processes hold and wait for, and its bounds.

A host collects them at the beginning and at the end of a capture, which the tables call `first` and `last`. Each is None where it is not
known: the container did not run then, or /proc did not answer in time. docs/how/fetch.md describes them.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

NAMES = ("descriptors", "waits", "resource_limits")
MAX_DESCRIPTORS = 4096
MAX_DESCRIPTORS_EACH = 512  # of one process
MAX_WAITS = 2048
MAX_PROCESSES = 2048
MAX_MOUNTS = 64
MAX_TEXT = 512  # bytes
MAX_NUMBER = 1 << 62  # of all numbers but the arguments of calls, which have 64 bits
GROUP = (
    *("pids.max", "pids.current", "pids.events.max"),
    *("memory.max", "memory.current", "memory.swap.max", "memory.swap.current"),
    *("memory.events.max", "memory.events.oom", "memory.events.oom_kill"),
)
SIZES = ("size", "free", "files", "free_files")
_ARGUMENTS = 6


def join(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables by name, made of FIRST and LAST, what was collected at the beginning and at the end; {} is for nothing."""
    found = {"first": first, "last": last}
    times = {when: holdings.get("time_ns") for when, holdings in found.items()}
    left_out = {when: holdings.get("left_out") or {} for when, holdings in found.items()}
    return {
        name: {
            **{when: holdings.get(name) for when, holdings in found.items()},
            "left_out": {when: left_out[when].get(name, 0) for when in found},
            "time_ns": times,
        }
        for name in NAMES
    }


def is_sound(name: str, table: Any) -> bool:
    """Return True if TABLE, which came from a host, has the form of the table called NAME, or is None."""
    if table is None:
        return True
    if not isinstance(table, dict):
        return False
    left_out, times = table.get("left_out"), table.get("time_ns")
    return (
        isinstance(left_out, dict)
        and isinstance(times, dict)
        and all(
            (table.get(when) is None or _CHECKS[name](table[when]))
            and _is_count(left_out.get(when))
            and _is_limit(times.get(when))
            for when in ("first", "last")
        )
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_NUMBER


def _is_limit(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_text(value: Any) -> bool:
    # A byte that is no text takes four characters.
    return isinstance(value, str) and len(value) <= 4 * MAX_TEXT


def _are_all(values: Any, is_fine: Callable[[Any], bool], most: int) -> bool:
    return isinstance(values, list) and len(values) <= most and all(isinstance(v, dict) and is_fine(v) for v in values)


def _are_descriptors(entries: Any) -> bool:
    return _are_all(
        entries,
        lambda one: _is_count(one.get("pid")) and _is_count(one.get("fd")) and _is_text(one.get("target")),
        MAX_DESCRIPTORS,
    )


def _are_waits(entries: Any) -> bool:
    return _are_all(entries, _is_wait, MAX_WAITS)


def _is_wait(entry: dict[str, Any]) -> bool:
    words = entry.get("args")
    return (
        _is_count(entry.get("tid"))
        and _is_count(entry.get("number"))
        and isinstance(words, list)
        and len(words) == _ARGUMENTS
        and all(isinstance(word, int) and not isinstance(word, bool) and 0 <= word < 1 << 64 for word in words)
    )


def _are_resource_limits(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("group"), dict):
        return False
    group = found["group"]
    return (
        _are_all(found.get("processes"), _is_process, MAX_PROCESSES)
        and _are_all(found.get("mounts"), _is_mount, MAX_MOUNTS)
        and all(_is_limit(group.get(name)) for name in GROUP)
    )


def _is_process(entry: dict[str, Any]) -> bool:
    return _is_count(entry.get("pid")) and all(_is_limit(entry.get(name)) for name in ("nofile", "nproc", "open"))


def _is_mount(entry: dict[str, Any]) -> bool:
    return (
        _is_text(entry.get("path"))
        and _is_text(entry.get("filesystem"))
        and all(_is_limit(entry.get(name)) for name in SIZES)
    )


_CHECKS = {"descriptors": _are_descriptors, "waits": _are_waits, "resource_limits": _are_resource_limits}
