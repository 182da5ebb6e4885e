# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that a manifest, which came from a host, has the form that the controller relies on. Pure, and without numpy."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings


def is_sound(manifest: Any) -> bool:
    """Return True if MANIFEST, which came from a host, has the form that the analysis relies on."""
    if not isinstance(manifest, dict):
        return False
    offset, lost = manifest.get("clock_offset_ns"), manifest.get("lost")
    container = manifest.get("container")
    return (
        (offset is None or _is_int(offset))
        and (lost is None or _is_int(lost))
        and (manifest.get("entries") is None or _is_int(manifest["entries"]))
        and manifest.get("complete") in (None, True, False)
        and _are_texts(manifest.get("reasons", []))
        and (
            container is None
            or (isinstance(container, dict) and all(_is_text(container.get(n)) for n in ("id", "name")))
        )
        and all(_is_text(manifest.get(name)) for name in ("host", "inventory_hostname"))
        and all(_are_syscalls(manifest.get(name)) for name in ("syscalls", "compat_syscalls"))
        and all(_are_tasks(manifest.get(name)) for name in ("tasks", "first_tasks"))
        and all(holdings.is_sound(name, manifest.get(name)) for name in holdings.NAMES)
        and _is_specification(manifest.get("specification"))
        and _are_selections(manifest.get("earlier_syscalls", []))
    )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_syscalls(names: Any) -> bool:
    return names is None or (
        isinstance(names, dict)
        and all(
            number.isascii() and number.isdigit() and len(number) < 10 and isinstance(name, str)
            for number, name in names.items()
        )
    )


def _are_tasks(tasks: Any) -> bool:
    return tasks is None or (isinstance(tasks, list) and all(map(_is_task, tasks)))


def _are_selections(selections: Any) -> bool:
    return isinstance(selections, list) and all(
        isinstance(selection, dict) and _is_specification({"syscalls": selection}) for selection in selections
    )


def _is_specification(specification: Any) -> bool:
    if specification is None:
        return True
    if not isinstance(specification, dict) or not isinstance(specification.get("events") or [], (list, dict)):
        return False
    wanted = specification.get("syscalls")
    return wanted is None or (
        isinstance(wanted, dict)
        and all(
            isinstance(numbers, list) and all(_is_int(number) and 0 <= number < 1 << 30 for number in numbers)
            for numbers in (wanted.get("native", []), wanted.get("compat", []))
        )
    )


def _is_task(task: Any) -> bool:
    numbers = ("tid", "tgid", "container_tid")
    return isinstance(task, dict) and all(_is_int(task.get(n)) for n in numbers) and isinstance(task.get("comm"), str)
