# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the paths of system calls can be had from this kernel: by the calls' own events, by probes of those, by probes of the
kernel's functions, or by probes of the container's C library; the first that there is.
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
_OWN_WAYS = WAYS[:-1]  # these slow no container but the one that is traced
_FIELD = re.compile(r"field:(?P<type>[^;]*?)(?P<name>\w+)(?:\[\w*\])?;")
_KERNEL_FUNCTION = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}
# Where a function of the kernel finds the arguments of a call: bytes into pt_regs, whose address is its only argument.
_REGISTERS = {"x86_64": (0x70, 0x68, 0x60, 0x38), "aarch64": (0, 8, 16, 24)}
_FIRST_ARGUMENT = {"x86_64": "%di", "aarch64": "%x0"}
# The registers of a function's arguments in programs.
_USER_REGISTERS = {"x86_64": ("%di", "%si", "%dx", "%cx"), "aarch64": ("%x0", "%x1", "%x2", "%x3")}
_FOLDERS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}


@dataclass(frozen=True)
class PathPlan:
    """The way (BY, None for none) that paths are recorded, and WHY; EVENTS of the kernel's own and PROBES of ours; calls of which they are
    MISSING.
    """

    by: str | None
    why: str
    events: tuple[str, ...] = ()
    probes: tuple[ProbeRequest, ...] = ()
    missing: tuple[str, ...] = ()

    def as_result(self) -> dict[str, Any]:
        """What modules return of it."""
        return {"by": self.by, "why": self.why, "missing": list(self.missing)}


def list_calls(numbers: SyscallNumbers | None) -> list[str]:
    """The calls among those with NUMBERS (all, where there are none) that take paths. Raises TraceError where none does."""
    names = syscall_names.list_names()
    wanted = names.values() if numbers is None or numbers == SyscallNumbers() else map(names.get, numbers.native)
    calls = sorted({name for name in wanted if name in FAMILY_OF_CALL})
    if not calls:
        raise TraceError("paths: none of the system calls to record takes a path")
    return calls


def choose_plan(root: str, numbers: SyscallNumbers | None, wish: str, by: str, machine: str = "") -> PathPlan | None:
    """How the paths of the calls with NUMBERS (None: no calls are recorded) are to be had by WISH, one of WISHES, and BY as for find_plan.

    For 'true' there has to be a way; for 'auto' there may be none, and none is taken that slows others. Raises TraceError.
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
    """The best of WAYS to the paths of CALLS in the tracefs at ROOT, or the one called BY unless that is 'auto'.

    Raises TraceError, which says why, where there is none.
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
    """Type and name of the arguments in CALL's event, in their order, and of what the kernel adds; none where it has no such event."""
    folder = f"events/syscalls/sys_enter_{name_in_kernel(call)}"
    if not os.path.isdir(os.path.join(root, folder)):
        return []
    fields = [
        (match["type"], match["name"]) for match in _FIELD.finditer(Instance(root, "..").read(f"{folder}/format"))
    ]
    return [one for one in fields if not one[1].startswith(("common_", "__syscall_nr"))]


def _plan_by_event(root: str, calls: list[str], _machine: str) -> PathPlan:
    told = [call for call in calls if any("__data_loc" in kind for kind, _name in _list_fields(root, call))]
    if not told:
        raise TraceError("the kernel's events of system calls have no text (Linux 6.19)")
    names = tuple(f"syscalls:sys_enter_{name_in_kernel(call)}" for call in told)
    missing = tuple(call for call in calls if call not in told)
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
        raise TraceError(f"where the kernel has a call's arguments on {machine} is not known here")

    def find_pointer(_fields: list[tuple[str, str]], position: int) -> str:
        return f"+{_REGISTERS[machine][position]}({_FIRST_ARGUMENT[machine]})"

    # A call's event is made from its function, so where there is that there is this.
    return _plan_in_kernel(root, calls, "kprobe", prefix, find_pointer, "the kernel's functions")


def _plan_in_kernel(
    root: str,
    calls: list[str],
    kind: str,
    prefix: str,
    find_pointer: Callable[[list[tuple[str, str]], int], str],
    place: str,
) -> PathPlan:
    """Probes of KIND, of what is called PREFIX and the call's name. FIND_POINTER gives by the event's fields where its argument at a
    position is; PLACE says in words where the probes are."""
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
        raise TraceError(f"where programs have a function's arguments on {machine} is not known here")
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
    """Where C libraries are in containers, glibc's and musl's."""
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
