# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose how the paths of system calls are recorded on this kernel.

The ways, in the order of preference: the calls' own events, probes on these events, probes on the kernel's functions, and probes on the
container's C library.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import (
    FAMILIES,
    FAMILY_OF_CALL,
    find_positions,
    name_in_kernel,
    name_paths,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import PATH_PREFIX, ProbeRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, syscall_names
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.syscall_names import SyscallNumbers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

WAYS = ("event", "eprobe", "kprobe", "uprobe")
WISHES = ("false", "true", "auto")
_OWN_WAYS = WAYS[:-1]  # these slow down only the container that is traced
_FIELD = re.compile(r"field:(?P<type>[^;]*?)(?P<name>\w+)(?:\[\w*\])?;")
_KERNEL_FUNCTION = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
# Offsets, in bytes, of a call's arguments in pt_regs. The address of pt_regs is the only argument of the kernel's function for the call.
_REGISTERS = {"x86_64": (0x70, 0x68, 0x60, 0x38), "aarch64": (0, 8, 16, 24)}
_FIRST_ARGUMENT = {"x86_64": "%di", "aarch64": "%x0"}
# The registers that hold a function's arguments in a program.
_USER_REGISTERS = {"x86_64": ("%di", "%si", "%dx", "%cx"), "aarch64": ("%x0", "%x1", "%x2", "%x3")}
_FOLDERS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


@dataclass(frozen=True)
class PathPlan:
    """A decision on how the paths of system calls are recorded.

    BY: one of WAYS; None if no paths are recorded.
    WHY: the reason for this way, in words.
    EVENTS: the kernel's own events that have to be on.
    PROBES: the probes that have to be defined.
    MISSING: the calls whose paths are not recorded.
    """

    by: str | None
    why: str
    events: tuple[str, ...] = ()
    probes: tuple[ProbeRequest, ...] = ()
    missing: tuple[str, ...] = ()

    def as_result(self) -> dict[str, Any]:
        """Return the plan as the modules return it."""
        return {"by": self.by, "why": self.why, "missing": list(self.missing)}


def list_calls(numbers: SyscallNumbers | None) -> list[str]:
    """Return the names of the calls with NUMBERS that take paths, sorted.

    None, or an object without numbers, means all calls. Raises TraceError if none of the calls takes a path.
    """
    names = syscall_names.list_names()
    wanted = names.values() if numbers is None or numbers == SyscallNumbers() else map(names.get, numbers.native)
    calls = sorted({name for name in wanted if name in FAMILY_OF_CALL})
    if not calls:
        raise TraceError("paths: none of the system calls to record takes a path")
    return calls


def choose_plan(root: str, numbers: SyscallNumbers | None, wish: str, by: str, machine: str = "") -> PathPlan | None:
    """Return how the paths of the calls with NUMBERS are recorded; None if WISH is 'false'.

    NUMBERS is None if no calls are recorded. WISH is one of WISHES, BY one of WAYS or 'auto'.
    With 'auto' as WISH the plan may have no way, and never one that slows down other containers.
    Raises TraceError if WISH is 'true' and there is no way, and if WISH is 'auto' and BY is 'uprobe'.
    """
    if wish == "false":
        return None
    if wish == "true":
        return find_plan(root, list_calls(numbers), by, machine)
    if by == "uprobe":
        raise TraceError(
            "paths=auto never uses probes of programs, which slow other containers: give paths=true with paths_by=uprobe"
        )
    if numbers is None:
        return PathPlan(None, "no system calls are recorded")
    calls: list[str] = []
    try:
        calls = list_calls(numbers)
        return find_plan(root, calls, by, machine, ways=_OWN_WAYS)
    except TraceError as error:
        return PathPlan(None, str(error), missing=tuple(calls))


def find_plan(root: str, calls: Iterable[str], by: str, machine: str = "", *, ways: Sequence[str] = WAYS) -> PathPlan:
    """Return a plan that records the paths of CALLS by the first of WAYS that works, or by BY unless that is 'auto'.

    ROOT is the kernel's tracefs, MACHINE its architecture ('' for this one's).
    Raises TraceError, with the reason for each way, if none works.
    """
    machine = machine or platform.machine()
    reasons: list[str] = []
    for way in ways if by == "auto" else (by,):
        try:
            plan = _PLANS[way](root, list(calls), machine)
        except TraceError as error:
            reasons.append(f"{way}: {error}")
            continue
        return replace(plan, why="; ".join([*reasons, plan.why]))
    raise TraceError(f"the paths of system calls cannot be recorded on this host: {'; '.join(reasons)}")


def _list_fields(root: str, call: str) -> list[tuple[str, str]]:
    """Return type and name of the arguments in CALL's event, in order, then of fields that the kernel adds; empty without such an event."""
    folder = f"events/syscalls/sys_enter_{name_in_kernel(call)}"
    if not os.path.isdir(os.path.join(root, folder)):
        return []
    fields = [
        (match["type"], match["name"]) for match in _FIELD.finditer(Instance(root, "..").read(f"{folder}/format"))
    ]
    return [(kind, name) for kind, name in fields if not name.startswith(("common_", "__syscall_nr"))]


def _plan_by_event(root: str, calls: list[str], _machine: str) -> PathPlan:
    with_text = [call for call in calls if any("__data_loc" in kind for kind, _name in _list_fields(root, call))]
    if not with_text:
        raise TraceError("the kernel's events of system calls have no text (Linux 6.19)")
    names = tuple(f"syscalls:sys_enter_{name_in_kernel(call)}" for call in with_text)
    missing = tuple(call for call in calls if call not in with_text)
    return PathPlan("event", "the events of system calls have their paths", names, (), missing)


def _plan_by_eprobe(root: str, calls: list[str], _machine: str) -> PathPlan:
    _check_kind(root, "eprobe")

    def find_pointer(fields: list[tuple[str, str]], position: int) -> str:
        return f"${fields[position][1]}"

    return _plan_in_kernel(root, calls, "eprobe", "syscalls/sys_enter_", find_pointer, "the events of system calls")


def _plan_by_kprobe(root: str, calls: list[str], machine: str) -> PathPlan:
    _check_kind(root, "kprobe")
    prefix = _KERNEL_FUNCTION.get(machine)
    if prefix is None:
        raise TraceError(f"this collection does not know where the kernel keeps a call's arguments on {machine}")

    def find_pointer(_fields: list[tuple[str, str]], position: int) -> str:
        return f"+{_REGISTERS[machine][position]}({_FIRST_ARGUMENT[machine]})"

    # The kernel makes a call's event from its function: a call that has the event has the function, too.
    return _plan_in_kernel(root, calls, "kprobe", prefix, find_pointer, "the kernel's functions")


def _plan_in_kernel(
    root: str,
    calls: list[str],
    kind: str,
    prefix: str,
    find_pointer: Callable[[list[tuple[str, str]], int], str],
    place: str,
) -> PathPlan:
    """Return a plan with probes of KIND on PREFIX and the kernel's name of each call.

    FIND_POINTER takes the event's fields and an argument's position, and returns the fetch argument for the pointer.
    PLACE says in words where the probes sit.
    """
    probes, missing = [], []
    for call in calls:
        fields, positions = _list_fields(root, call), find_positions(call)
        if len(fields) <= max(positions):
            missing.append(call)
            continue
        pointers = [find_pointer(fields, position) for position in positions]
        probes.append(ProbeRequest(PATH_PREFIX + call, kind, prefix + name_in_kernel(call), arguments=_fetch(pointers)))
    if not probes:
        raise TraceError("the kernel has no events of system calls (CONFIG_FTRACE_SYSCALLS)")
    why = f"probes of {place} read them; what is not in memory at that moment cannot be read"
    return PathPlan(kind, why, (), tuple(probes), tuple(missing))


def _plan_by_uprobe(root: str, calls: list[str], machine: str) -> PathPlan:
    _check_kind(root, "uprobe")
    registers = _USER_REGISTERS.get(machine)
    if registers is None:
        raise TraceError(f"this collection does not know where programs keep a function's arguments on {machine}")
    binaries = list_libraries(machine)
    probes = []
    for name in dict.fromkeys(FAMILY_OF_CALL[call] for call in calls):
        for function, positions in FAMILIES[name].functions.items():
            pointers = [registers[position] for position in positions]
            probes.append(
                ProbeRequest(
                    PATH_PREFIX + function,
                    "uprobe",
                    binaries=binaries,
                    symbol=function,
                    arguments=_fetch(pointers),
                    is_optional=True,
                )
            )
    why = (
        "probes of the container's C library read them; programs that make system calls without it (static ones, Go's), 32-bit"
        " ones and the dynamic loader show none"
    )
    return PathPlan("uprobe", why, (), tuple(probes))


def list_libraries(machine: str) -> tuple[str, ...]:
    """Return the paths where containers have their C library: those of glibc, then that of musl."""
    folders = [f"/lib/{_FOLDERS[machine]}", f"/usr/lib/{_FOLDERS[machine]}", "/lib64", "/usr/lib64", "/lib", "/usr/lib"]
    return (*(f"{folder}/libc.so.6" for folder in folders), f"/lib/ld-musl-{machine}.so.1")


def _fetch(pointers: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, f"+0({pointer}):ustring") for name, pointer in zip(name_paths(len(pointers)), pointers))


def _check_kind(root: str, kind: str) -> None:
    missing = dynamic_events.find_missing_kinds(root)
    if kind in missing:
        raise TraceError(missing[kind])


_PLANS: dict[str, Callable[[str, list[str], str], PathPlan]] = {
    "event": _plan_by_event,
    "eprobe": _plan_by_eprobe,
    "kprobe": _plan_by_kprobe,
    "uprobe": _plan_by_uprobe,
}
