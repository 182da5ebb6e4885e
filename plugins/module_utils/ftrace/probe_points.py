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
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Collection, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import SHORT_ID_LENGTH
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target, hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.following import Awaited
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.probes import (
    GROUP_PREFIX,
    Definition,
    ProbeRequest,
    make_definition,
    name_group,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import dynamic_events, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.elf_symbols import ElfError, ElfFile
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracefs import Instance, TraceError

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
    """A file of a container: a descriptor of it, what the kernel knows it by, its functions."""

    path: str
    fd: int
    elf: ElfFile

    def identify(self, offset: int) -> str:
        status = os.fstat(self.fd)
        return f"{status.st_dev}:{status.st_ino}:{offset:#x}"


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
    binaries: dict[str, _Binary | None] = {}
    definitions: list[Definition] = []
    taken: set[str] = set()
    for one in requests:
        if not one.binaries:
            definitions.append(make_definition(one, one.place, one.place))
            continue
        if isinstance(target, Awaited):
            raise TraceError(
                f"container {target.container.name} does not run, and probes in programs ({one.name}) do not follow a start:"
                f" start it first, or leave {'paths, which needs such here,' if one.is_optional else 'it'} out"
            )
        for path in one.binaries:
            if path not in binaries:
                binaries[path] = _open_binary(target, path, stack)
        binary = next((found for found in map(binaries.get, one.binaries) if found), None)
        definition = _bind_one(target, one, binary)
        # Two names of one function would be two events of one call.
        if definition is not None and not (one.is_optional and definition.identity in taken):
            taken.add(definition.identity)
            definitions.append(definition)
    optional = [one for one in requests if one.is_optional]
    if optional and not {one.name for one in optional} & {one.name for one in definitions}:
        raise TraceError(
            f"container {target.container.name} has none of {', '.join(optional[0].binaries)} with functions that take paths:"
            " its programs make their system calls by themselves, and this kernel has no other way to their paths"
        )
    if not definitions:
        return ProbeSet()
    return ProbeSet(name_group(target.container.short_id, definitions), tuple(definitions))


def _bind_one(target: Target, request: ProbeRequest, binary: _Binary | None) -> Definition | None:
    """REQUEST in BINARY; None for an optional one that has no place there."""
    where = f"probe {request.name}: {', '.join(request.binaries)} of container {target.container.name}"
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
    if offset is None:
        if request.is_optional:
            return None
        raise TraceError(
            f"{where}: it has no function {request.symbol!r}; strip may have taken its name away, then give an offset"
        )
    # The kernel looks the file up once, here and now. By its descriptor it is the very one that was looked at, whatever
    # the container does to its path, and the path may hold what no definition can.
    return make_definition(request, f"/proc/self/fd/{binary.fd}:{offset:#x}", binary.identify(offset))


def _open_binary(target: Target, path: str, stack: ExitStack) -> _Binary | None:
    """The program or library PATH of TARGET, found as if its root were ours; None where there is none."""
    where = f"{path!r} of container {target.container.name}"
    root_fd = target.process.open("root", os.O_PATH | os.O_DIRECTORY)
    try:
        # First without opening it: a device or a pipe does something when it is opened.
        place_fd = syscalls.openat2(root_fd, path, os.O_PATH, syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        hint = f" ({_HINTS[error.errno]})" if error.errno in _HINTS else ""
        raise TraceError(f"cannot open {where}: {os.strerror(error.errno or 0)}{hint}") from error
    finally:
        os.close(root_fd)
    try:
        if not stat.S_ISREG(os.fstat(place_fd).st_mode):
            raise TraceError(f"{where} is no regular file")
        fd = os.open(f"/proc/self/fd/{place_fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TraceError(f"cannot open {where}: {error.strerror}") from error
    finally:
        os.close(place_fd)
    stack.callback(os.close, fd)
    try:
        return _Binary(path, fd, ElfFile(fd))
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
    """Remove the probes of those; whether any was removed. Raises TraceError as remove_unused does."""
    removed = False
    for short_id in sorted(list_orphans(root, prefix)):
        with hold_lock("trace-" + short_id):
            # Somebody may have made the instance meanwhile.
            if not Instance(root, prefix + short_id).exists():
                removed |= remove_unused(Instance(root, prefix + short_id), short_id, busy_ok=busy_ok)
    return removed
