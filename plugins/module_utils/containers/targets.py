# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running containers that are held while something is done to them, and the locks that keep other operators away."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, namespaces, open_files
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.locks import LockTimeout, lock
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mount_tables import TableTooLong
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

RUN = "/run/crashcart"
TIMEOUT_S = 30.0
# Descriptors: for a container those of its process, namespaces, mounts, control groups and pipes; and what a module has besides.
_FILES_EACH = 16
_FILES_BESIDES = 256


class MountsTooMany(ContainerError):
    """A container's table of mounts is given up."""


@dataclass(frozen=True)
class Target:
    """A running container whose process is held."""

    container: Container
    process: Process

    @property
    def name(self) -> str:
        """The container's name."""
        return self.container.name

    @property
    def id(self) -> str:
        """The container's id."""
        return self.container.id

    def read_mounts(self, *needles: str) -> list[mounts.Mount]:
        """Its mounts; with NEEDLES only those whose line in mountinfo holds one of them, which saves most of the time.

        Raises MountsTooMany, or ContainerGoneError.
        """
        fd = self.process.open("mountinfo")
        try:
            return mounts.read_open_mounts(fd, *needles)
        except TableTooLong as error:
            raise MountsTooMany(f"container {self.container.name}: {error.strerror}") from error
        except OSError as error:  # EINVAL: its namespaces went while it died
            raise ContainerGoneError(f"container {self.container.name} has just ended") from error
        finally:
            os.close(fd)


Refuse = Callable[[Container, ContainerError], Any]


def read_all_mounts(targets: Sequence[Target], *needles: str) -> list[list[mounts.Mount] | OSError]:
    """The mounts of the whole mount namespace of each of TARGETS, NEEDLES as for Target.read_mounts; or why they cannot be read.

    What a process is told of its mounts ends at its root, and a container's first process may have taken another one.
    """
    with ExitStack() as stack:
        fds = {}
        for index, target in enumerate(targets):
            with suppress(ProcessGone):
                fds[index] = target.process.open("ns/mnt")
                stack.callback(os.close, fds[index])
        found = dict(zip(fds, namespaces.read_mountinfo(list(fds.values()), needles, TIMEOUT_S)))
    gone = ProcessLookupError(errno.ESRCH, "it has just ended")
    outcomes = (found.get(index, gone) for index in range(len(targets)))
    return [one if isinstance(one, OSError) else list(mounts.parse_mountinfo(one)) for one in outcomes]


@contextmanager
def open_targets(
    containers: Sequence[Container], *, ended_ok: bool = False, refused_ok: bool = False, refuse: Refuse | None = None
) -> Iterator[list[Target]]:
    """Hold the first process of each of CONTAINERS; raises ContainerError before any is touched.

    With ENDED_OK those that have just ended are left out, with REFUSED_OK also those whose process is not what its runtime says. With
    REFUSE all that cannot be held are left out, and it is told which and why.
    """
    # A command does not inherit it: its supervisor was started before.
    with open_files.allow(_FILES_BESIDES + _FILES_EACH * len(containers)), ExitStack() as stack:
        targets = []
        for container in containers:
            try:
                targets.append(Target(container, stack.enter_context(open_process(container))))
            except ContainerError as error:
                if ended_ok if isinstance(error, ContainerGoneError) else refused_ok:
                    continue
                if refuse is None:
                    raise
                refuse(container, error)
        try:
            yield targets
        except ProcessGone as gone:
            names = [container.name for container in containers if container.pid == gone.pid]
            raise ContainerGoneError(f"container {', '.join(names)} has just ended") from gone


@contextmanager
def hold_locks(containers: Sequence[Container], refuse: Refuse | None = None) -> Iterator[None]:
    """Keep other attaches and detaches away from CONTAINERS; in the order of ids, so that no two callers wait in a ring.

    REFUSE is told of each one that somebody else keeps, which is not held then; without it that raises ContainerError.
    """
    patience_s = TIMEOUT_S
    with ExitStack() as stack:
        for short_id, container in sorted({one.short_id: one for one in containers}.items()):
            try:
                stack.enter_context(hold_lock("container-" + short_id, patience_s))
            except ContainerError as error:
                if refuse is None:
                    raise
                refuse(container, error)
                patience_s = 0.0  # who keeps one may keep many: all of them are waited for once
        yield


@contextmanager
def hold_lock(name: str, timeout_s: float | None = None) -> Iterator[None]:
    """Keep other operators away from the thing called NAME; who has it is waited for TIMEOUT_S, by default as long as for a container."""
    try:
        with lock(os.path.join(RUN, "locks", name), TIMEOUT_S if timeout_s is None else timeout_s):
            yield
    except LockTimeout as error:
        raise ContainerError(str(error)) from error
