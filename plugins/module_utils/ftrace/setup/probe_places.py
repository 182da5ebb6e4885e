# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the place of each probe of a container: the offset of a function in one of the container's programs, which are held open."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Sequence, Tuple

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S, Target
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow.following import Awaited
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import hold_alone
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.resources import read_group
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import (
    Definition,
    ProbeRequest,
    ProbeSet,
    make_definition,
    name_group,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, mounts, strange_files
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.elf_symbols import ElfError, ElfFile
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

_HINTS = {
    errno.ENOSYS: "it needs openat2 (Linux 5.6)",
    errno.ELOOP: "too many symbolic links, or one of /proc, and none of those is followed",
}


@dataclass(frozen=True)
class _Binary:
    """A program or library of a container: FD is its descriptor, ELF tells its functions."""

    fd: int
    elf: ElfFile


def check_possible(root: str, requests: Sequence[ProbeRequest]) -> None:
    """Raise TraceError if the kernel of the tracefs at ROOT lacks a kind of probe that REQUESTS need; nothing is changed."""
    missing = dynamic_events.find_missing_kinds(root) if requests else {}
    for request in requests:
        if request.kind in missing:
            raise TraceError(f"probe {request.name}: {missing[request.kind]}")


def bind(target: Target | Awaited, requests: Sequence[ProbeRequest], stack: ExitStack) -> ProbeSet:
    """Return the probes for REQUESTS in TARGET, whose programs stay open until STACK ends.

    Raises TraceError if a probe's place does not exist, and for a probe in a program of an awaited container.
    """
    (found,) = bind_all([target], requests, stack)
    if isinstance(found, FleetError):
        raise found
    return found


def bind_all(
    targets: Sequence[Target | Awaited], requests: Sequence[ProbeRequest], stack: ExitStack
) -> list[ProbeSet | FleetError]:
    """Return for each of TARGETS its probes for REQUESTS, or the error for which it has none.

    The programs stay open until STACK ends. A child that can be killed opens and reads them: a file system that the container serves
    itself may never answer. An error for one target does not affect the others.
    """
    needed = [request for request in requests if request.binaries]
    running = [target for target in targets if not isinstance(target, Awaited)]
    looks = iter(_look_at_programs(running, requests, stack) if needed else [])
    found: list[ProbeSet | FleetError] = []
    for target in targets:
        places: _Places | FleetError = {}
        if needed and isinstance(target, Awaited):
            places = TraceError(
                f"container {target.container.name} does not run, and probes in programs ({needed[0].name}) do not follow a start:"
                f" start it first, or leave out {'paths, which needs such probes here' if needed[0].is_optional else 'this probe'}"
            )
        elif needed:
            places = next(looks)
        try:
            found.append(places if isinstance(places, FleetError) else _make_probes(target, requests, places))
        except TraceError as error:
            found.append(error)
    return found


# Index of a request → its place for the kernel, and the identity of that place.
_Places = Dict[int, Tuple[str, str]]


def _look_at_programs(
    targets: Sequence[Target], requests: Sequence[ProbeRequest], stack: ExitStack
) -> list[_Places | FleetError]:
    found: dict[int, _Places | FleetError] = {}
    with ExitStack() as roots:
        root_fds: dict[int, int] = {}
        for number, target in enumerate(targets):
            try:
                check_memory(target.name, read_group(hold_alone(target.process, target.id)))
                root_fds[number] = target.process.open("root", os.O_PATH | os.O_DIRECTORY)
            except ProcessGone:
                found[number] = _make_gone(target)
                continue
            except TraceError as error:
                found[number] = error
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


def check_memory(name: str, group: Mapping[str, int | None]) -> None:
    """Raise TraceError if the container NAME has run out of the memory that its control GROUP permits.

    To switch a probe of a program on or off, the kernel takes a page in each process that has the file mapped, at the cost of the container.
    Where there is none left it kills a process for that, and be it the container's first.
    """
    kills = group.get("memory.events.oom_kill") or 0
    if kills and group.get("memory.max") is not None:
        raise TraceError(
            f"container {name} ran out of memory {kills} times, so that a process was killed, and probes of programs need some of it: the"
            " kernel might kill the container's first process; leave out paths, or record them in another way, and leave out such probes"
        )


def _make_gone(target: Target) -> ContainerGoneError:
    return ContainerGoneError(f"container {target.name} has just ended")


def _parse_places(target: Target, outcome: Any) -> _Places:
    if isinstance(outcome, OSError):
        raise TraceError(
            f"the programs of container {target.name} cannot be read: {outcome.strerror}; trace it without probes in programs"
        )
    if isinstance(outcome, dict):
        raise TraceError(outcome["error"])
    # The kernel reads a probe's place when the probe is defined. Nobody can kill it while it waits for a file system's answer.
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
    """Return True if DEVICE is a FUSE mount of the container with the mounts FOUND, or may lie on one.

    The container's root never counts: its runtime has mounted it.
    """
    roots = {mounts.parse_device(mount.device) for mount in found if mount.mount_point == "/"}
    served = {
        mounts.parse_device(mount.device) for mount in found if mount.filesystem.split(".")[0] in ("fuse", "fuseblk")
    }
    known = {mounts.parse_device(mount.device) for mount in found}
    return device not in roots and (device in served or (device not in known and bool(served - roots)))


def _make_probes(target: Target | Awaited, requests: Sequence[ProbeRequest], places: _Places) -> ProbeSet:
    definitions: list[Definition] = []
    taken: set[str] = set()
    for number, request in enumerate(requests):
        if request.binaries and number not in places:
            continue  # an optional probe
        place, identity = places[number] if request.binaries else (request.place, request.place)
        definition = make_definition(request, place, identity)
        # With probes on two names of one function, a call would be recorded as two events.
        if not (request.is_optional and definition.identity in taken):
            definitions.append(definition)
        if request.binaries:
            taken.add(definition.identity)
    optional = [request for request in requests if request.is_optional]
    if optional and not {request.name for request in optional} & {definition.name for definition in definitions}:
        raise TraceError(
            f"container {target.container.name} has none of {', '.join(optional[0].binaries)} with functions that take paths:"
            " its programs make their system calls without a C library, and this kernel has no other way to their paths"
        )
    if not definitions:
        return ProbeSet()
    return ProbeSet(name_group(target.container.short_id, definitions), tuple(definitions))


def _find_places(name: str, root_fd: int, requests: Sequence[ProbeRequest]) -> bounded.Held:
    """Return the places of REQUESTS in the programs of container NAME: index, descriptor, offset and identity of each."""
    binaries: dict[str, _Binary | None] = {}
    fds: list[int] = []
    places = []
    for number, request in enumerate(requests):
        for path in request.binaries:
            if path not in binaries:
                binaries[path] = _open_binary(name, root_fd, path)
        binary = next((found for found in map(binaries.get, request.binaries) if found), None)
        offset = _find_offset(name, request, binary) if request.binaries else None
        if binary is None or offset is None:
            continue
        if binary.fd not in fds:
            fds.append(binary.fd)
        status = os.fstat(binary.fd)
        places.append([number, fds.index(binary.fd), offset, f"{status.st_dev}:{status.st_ino}:{offset:#x}"])
    return bounded.Held({"places": places, "devices": [os.fstat(fd).st_dev for fd in fds]}, tuple(fds))


def _find_offset(name: str, request: ProbeRequest, binary: _Binary | None) -> int | None:
    """Return the offset of REQUEST in BINARY; None for an optional probe that has no place there."""
    where = f"probe {request.name}: {', '.join(request.binaries)} of container {name}"
    # The optional probes fit 64-bit programs only: 32-bit programs pass their arguments in other places.
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
            f"{where}: it has no function {request.symbol!r}; if strip has removed its name, give an offset instead"
        )
    # The kernel looks the file up once, when the probe is defined. The descriptor names the very file that was read here, whatever the
    # container does to its path. A path may also hold characters that no definition can.
    return offset


def _open_binary(name: str, root_fd: int, path: str) -> _Binary | None:
    """Open the program or library PATH below ROOT_FD, the root of container NAME; return None if it does not exist."""
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
