# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running containers that are held while something is done to them, and the locks that keep other operators away."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    open_process,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, namespaces, open_files
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.locks import LockTimeout, lock
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

RUN = "/run/crashcart"
TIMEOUT_S = 30.0
# Descriptors: for a container those of its process, namespaces, mounts, control groups and pipes; and what a module has besides.
_FILES_EACH = 16
_FILES_BESIDES = 256


@dataclass(frozen=True)
class Target:
    """A running container whose process is held."""

    container: Container
    process: Process

    def read_mounts(self, *needles: str) -> list[mounts.Mount]:
        """Its mounts; with NEEDLES only those whose line in mountinfo holds one of them, which saves most of the time."""
        fd = self.process.open("mountinfo")
        try:
            return mounts.read_open_mounts(fd, *needles)
        except OSError as error:  # EINVAL: its namespaces went while it died
            raise ContainerGoneError(f"container {self.container.name} has just ended") from error
        finally:
            os.close(fd)


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
    containers: Sequence[Container], *, ended_ok: bool = False, refused_ok: bool = False
) -> Iterator[list[Target]]:
    """Hold the first process of each of CONTAINERS; raises ContainerError before any is touched.

    With ENDED_OK those that have just ended are left out, with REFUSED_OK also those whose process is not what its runtime says.
    """
    # A command does not inherit it: its supervisor was started before.
    with open_files.allow(_FILES_BESIDES + _FILES_EACH * len(containers)), ExitStack() as stack:
        targets = []
        for container in containers:
            try:
                targets.append(Target(container, stack.enter_context(open_process(container))))
            except ContainerGoneError:
                if not ended_ok:
                    raise
            except ContainerError:
                if not refused_ok:
                    raise
        try:
            yield targets
        except ProcessGone as gone:
            names = [container.name for container in containers if container.pid == gone.pid]
            raise ContainerGoneError(f"container {', '.join(names)} has just ended") from gone


@contextmanager
def hold_locks(containers: Sequence[Container]) -> Iterator[None]:
    """Keep other attaches and detaches away from CONTAINERS; in the order of ids, so that no two callers wait in a ring."""
    with ExitStack() as stack:
        for short_id in sorted({container.short_id for container in containers}):
            stack.enter_context(hold_lock("container-" + short_id))
        yield


@contextmanager
def hold_lock(name: str) -> Iterator[None]:
    """Keep other operators away from the thing called NAME."""
    try:
        with lock(os.path.join(RUN, "locks", name), TIMEOUT_S):
            yield
    except LockTimeout as error:
        raise ContainerError(str(error)) from error
