# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes of one container: where they sit in its programs, their definition in the kernel, and their end.

They are in a group of the container's own, whose name also says what is in it. So what is defined is read from the kernel, and a
change defines new ones beside the old ones. These are off then and stay as long as the instance does: its buffer may hold events of
theirs, which nobody could read without them.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Collection, Dict, Sequence, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S, Target, hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import Awaited
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import (
    GROUP_PREFIX,
    Definition,
    ProbeRequest,
    make_definition,
    name_group,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, mounts, strange_files
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.elf_symbols import ElfError, ElfFile
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

_GROUP = re.compile(rf"{GROUP_PREFIX}([0-9a-f]{{{SHORT_ID_LENGTH}}})_")
_REMOVE_TIMEOUT_S = 3.0
_HINTS = {
    errno.ENOSYS: "it takes openat2 (Linux 5.6)",
    errno.ELOOP: "too many symbolic links, or one of /proc, and none of those is followed",
}


@dataclass(frozen=True)
class ProbeSet:
    """The probes of a container, all in GROUP."""

    group: str = ""
    definitions: tuple[Definition, ...] = ()

    def list_events(self) -> dict[str, str]:
        """Event → filter."""
        return {f"{self.group}:{one.name}": one.filter for one in self.definitions}


@dataclass(frozen=True)
class _Binary:
    """A file of a container: a descriptor of it, and its functions."""

    fd: int
    elf: ElfFile


def check_possible(root: str, requests: Sequence[ProbeRequest]) -> None:
    """Raise TraceError, before anything is changed, for probes of a kind that the kernel of the tracefs at ROOT does not have."""
    missing = dynamic_events.find_missing_kinds(root) if requests else {}
    for one in requests:
        if one.kind in missing:
            raise TraceError(f"probe {one.name}: {missing[one.kind]}")


def bind(target: Target | Awaited, requests: Sequence[ProbeRequest], stack: ExitStack) -> ProbeSet:
    """What REQUESTS come to in TARGET; its programs stay open until STACK ends. Raises TraceError where one has no such place.

    In one that is awaited there are none but the kernel's.
    """
    (found,) = bind_all([target], requests, stack)
    if isinstance(found, FleetError):
        raise found
    return found


def bind_all(
    targets: Sequence[Target | Awaited], requests: Sequence[ProbeRequest], stack: ExitStack
) -> list[ProbeSet | FleetError]:
    """The same for each of TARGETS: its probes, or why it has none, which costs no other.

    A container's programs are opened and read by a child that can be killed: what it serves itself may never answer.
    """
    needed = [one for one in requests if one.binaries]
    running = [target for target in targets if not isinstance(target, Awaited)]
    looks = iter(_look_at_programs(running, requests, stack) if needed else [])
    found: list[ProbeSet | FleetError] = []
    for target in targets:
        places: _Places | FleetError = {}
        if needed and isinstance(target, Awaited):
            places = TraceError(
                f"container {target.container.name} does not run, and probes in programs ({needed[0].name}) do not follow a start:"
                f" start it first, or leave {'paths, which needs such here,' if needed[0].is_optional else 'it'} out"
            )
        elif needed:
            places = next(looks)
        try:
            found.append(places if isinstance(places, FleetError) else _make_probes(target, requests, places))
        except TraceError as error:
            found.append(error)
    return found


_Places = Dict[
    int, Tuple[str, str]
]  # for the number of a request: its place for the kernel, and what place that is for good


def _look_at_programs(
    targets: Sequence[Target], requests: Sequence[ProbeRequest], stack: ExitStack
) -> list[_Places | FleetError]:
    found: dict[int, _Places | FleetError] = {}
    with ExitStack() as roots:
        root_fds: dict[int, int] = {}
        for number, target in enumerate(targets):
            try:
                root_fds[number] = target.process.open("root", os.O_PATH | os.O_DIRECTORY)
            except ProcessGone:
                found[number] = _make_gone(target)
                continue
            roots.callback(os.close, root_fds[number])
        entered = list(root_fds)

        def look(index: int) -> Any:
            number = entered[index]
            try:
                return _find_places(targets[number].name, root_fds[number], requests)
            except TraceError as error:
                return {"error": str(error)}

        outcomes = bounded.run(len(entered), look, list(root_fds.values()), TIMEOUT_S, gives_descriptors=True)
    for outcome in outcomes:
        for fd in outcome.fds if isinstance(outcome, bounded.Held) else ():
            stack.callback(os.close, fd)
    for number, outcome in zip(entered, outcomes):
        try:
            found[number] = _parse_places(targets[number], outcome)
        except (FleetError, ProcessGone) as error:
            found[number] = error if isinstance(error, FleetError) else _make_gone(targets[number])
    return [found[number] for number in range(len(targets))]


def _make_gone(target: Target) -> ContainerGoneError:
    return ContainerGoneError(f"container {target.name} has just ended")


def _parse_places(target: Target, outcome: Any) -> _Places:
    if isinstance(outcome, OSError):
        raise TraceError(
            f"the programs of container {target.name} cannot be looked at: {outcome.strerror}; trace it without probes"
            " in programs"
        )
    if isinstance(outcome, dict):
        raise TraceError(outcome["error"])
    # The kernel reads a probe's place, and nobody can kill it while it waits for an answer.
    found = target.read_mounts()
    if any(is_served(found, device) for device in outcome.value["devices"]):
        raise TraceError(
            f"programs of container {target.name} are on a file system that a process serves (FUSE), where no probe can"
            " sit: trace it without probes in programs"
        )
    return {
        number: (f"/proc/self/fd/{outcome.fds[slot]}:{offset:#x}", identity)
        for number, slot, offset, identity in outcome.value["places"]
    }


def is_served(found: Sequence[mounts.Mount], device: int) -> bool:
    """Whether DEVICE is a FUSE mount of the container with the mounts FOUND, or may be upon one. Its root is its runtime's, and is none."""
    roots = {mounts.parse_device(one.device) for one in found if one.mount_point == "/"}
    served = {mounts.parse_device(one.device) for one in found if one.filesystem.split(".")[0] in ("fuse", "fuseblk")}
    known = {mounts.parse_device(one.device) for one in found}
    return device not in roots and (device in served or (device not in known and bool(served - roots)))


def _make_probes(target: Target | Awaited, requests: Sequence[ProbeRequest], places: _Places) -> ProbeSet:
    definitions: list[Definition] = []
    taken: set[str] = set()
    for number, one in enumerate(requests):
        if one.binaries and number not in places:
            continue  # an optional one
        definition = make_definition(one, *(places[number] if one.binaries else (one.place, one.place)))
        # Two names of one function would be two events of one call.
        if not (one.is_optional and definition.identity in taken):
            definitions.append(definition)
        if one.binaries:
            taken.add(definition.identity)
    optional = [one for one in requests if one.is_optional]
    if optional and not {one.name for one in optional} & {one.name for one in definitions}:
        raise TraceError(
            f"container {target.container.name} has none of {', '.join(optional[0].binaries)} with functions that take paths:"
            " its programs make their system calls by themselves, and this kernel has no other way to their paths"
        )
    if not definitions:
        return ProbeSet()
    return ProbeSet(name_group(target.container.short_id, definitions), tuple(definitions))


def _find_places(name: str, root_fd: int, requests: Sequence[ProbeRequest]) -> bounded.Held:
    """Where REQUESTS sit in the programs of container NAME: number, descriptor, offset and identity of each, and the descriptors."""
    binaries: dict[str, _Binary | None] = {}
    fds: list[int] = []
    places = []
    for number, one in enumerate(requests):
        for path in one.binaries:
            if path not in binaries:
                binaries[path] = _open_binary(name, root_fd, path)
        binary = next((found for found in map(binaries.get, one.binaries) if found), None)
        offset = _find_offset(name, one, binary) if one.binaries else None
        if binary is None or offset is None:
            continue
        if binary.fd not in fds:
            fds.append(binary.fd)
        status = os.fstat(binary.fd)
        places.append([number, fds.index(binary.fd), offset, f"{status.st_dev}:{status.st_ino}:{offset:#x}"])
    return bounded.Held({"places": places, "devices": [os.fstat(fd).st_dev for fd in fds]}, tuple(fds))


def _find_offset(name: str, request: ProbeRequest, binary: _Binary | None) -> int | None:
    """Where REQUEST sits in BINARY; None for an optional one that has no place there."""
    where = f"probe {request.name}: {', '.join(request.binaries)} of container {name}"
    # The optional ones are of the kernel's own word size: 32-bit programs have their arguments elsewhere.
    if request.is_optional and (binary is None or not binary.elf.is_64):
        return None
    if binary is None:
        raise TraceError(f"{where}: there is no such file")
    try:
        offset = request.offset
        if offset is None:
            offset = binary.elf.find_offset(request.symbol)
        else:
            binary.elf.check_code(offset)
    except ElfError as error:
        if request.is_optional:
            return None
        raise TraceError(f"{where}: {error}") from error
    if offset is None and not request.is_optional:
        raise TraceError(
            f"{where}: it has no function {request.symbol!r}; strip may have taken its name away, then give an offset"
        )
    # The kernel looks the file up once, here and now. By its descriptor it is the very one that was looked at, whatever
    # the container does to its path, and the path may hold what no definition can.
    return offset


def _open_binary(name: str, root_fd: int, path: str) -> _Binary | None:
    """The program or library PATH of container NAME, found as if its root were ours; None where there is none."""
    where = f"{path!r} of container {name}"
    try:
        fd = strange_files.open_regular(root_fd, path)
        return _Binary(fd, ElfFile(fd))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        hint = f" ({_HINTS[error.errno]})" if error.errno in _HINTS else ""
        raise TraceError(f"cannot open {where}: {os.strerror(error.errno or 0)}{hint}") from error
    except strange_files.StrangeFile as error:
        raise TraceError(f"{where}: {error}") from error
    except ElfError as error:
        raise TraceError(f"{where}: {error}") from error


def define(root: str, probes: ProbeSet) -> None:
    """Define those of PROBES that the kernel does not have yet: their group's name says that they are the same."""
    for one in probes.definitions:
        if not dynamic_events.exists(root, f"{probes.group}:{one.name}"):
            dynamic_events.define(root, one.file, one.format(probes.group))


def list_defined(root: str, short_id: str) -> list[dynamic_events.Probe]:
    """The probes of the container with SHORT_ID that the kernel of the tracefs at ROOT has, on or off."""
    return dynamic_events.list_probes(root, f"{GROUP_PREFIX}{short_id}_")


def list_own(instance: Instance, short_id: str) -> list[dynamic_events.Probe]:
    """The probes of the container with SHORT_ID that are on in INSTANCE."""
    return [one for one in list_defined(instance.root, short_id) if dynamic_events.is_on(instance, one.event)]


def remove_unused(
    instance: Instance, short_id: str, *, kept: Collection[dynamic_events.Probe] = (), busy_ok: bool = False
) -> bool:
    """Remove the probes of the container with SHORT_ID that are not on in INSTANCE, but for those KEPT; whether any was removed.

    Raises TraceError for those that others have switched on, unless BUSY_OK.
    """
    found = [one for one in list_defined(instance.root, short_id) if one not in kept]
    is_there = instance.exists()
    removed = False
    failures: list[str] = []
    for one in found:
        if is_there and dynamic_events.is_on(instance, one.event):
            continue
        try:
            dynamic_events.remove(instance.root, one, _REMOVE_TIMEOUT_S if not failures else 0.0)
            removed = True
        except TraceError as error:
            failures.append(str(error))
    if failures and not busy_ok:
        raise TraceError("; ".join(failures))
    return removed


def list_orphans(root: str, prefix: str) -> set[str]:
    """Short ids of containers that have probes and no instance, which is called PREFIX and the id: a killed task has left them."""
    matches = (_GROUP.match(one.group) for one in dynamic_events.list_probes(root, GROUP_PREFIX))
    short_ids = {match[1] for match in matches if match}
    return {short_id for short_id in short_ids if not Instance(root, prefix + short_id).exists()}


def remove_orphans(root: str, prefix: str, *, busy_ok: bool) -> bool:
    """Remove the probes of those; whether any was removed. Raises TraceError as remove_unused does, when all were tried."""
    removed = False
    failures = []
    for short_id in sorted(list_orphans(root, prefix)):
        with hold_lock("trace-" + short_id):
            # Somebody may have made the instance meanwhile.
            if not Instance(root, prefix + short_id).exists():
                try:
                    removed |= remove_unused(Instance(root, prefix + short_id), short_id, busy_ok=busy_ok)
                except TraceError as error:
                    failures.append(str(error))
    if failures:
        raise TraceError("; ".join(failures))
    return removed
