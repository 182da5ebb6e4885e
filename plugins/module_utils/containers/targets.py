# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running containers whose first processes are held open during a call, and locks against other operators."""

from __future__ import annotations

import errno
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Iterator, Sequence, TypeVar

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
from ansible_collections.crashcart.fleet.plugins.module_utils.names import LOCKS

TIMEOUT_S = 30.0
_PAUSE_S = 0.02
# Descriptors that are open at once: for each container its process, namespaces, mounts, control groups and pipes; and a module's others.
_FILES_EACH = 16
_FILES_BESIDES = 256


class MountsTooMany(ContainerError):
    """A container whose table of mounts is too long to be read."""


@dataclass(frozen=True)
class Target:
    """A running container, and its first process, held open."""

    container: Container
    process: Process

    @property
    def name(self) -> str:
        """Return the container's name."""
        return self.container.name

    @property
    def id(self) -> str:
        """Return the container's id."""
        return self.container.id

    def read_mounts(self, *needles: str) -> list[mounts.Mount]:
        """Return the container's mounts; with NEEDLES only those whose line in mountinfo holds one of NEEDLES, which is much faster.

        Raises MountsTooMany where the table is too long, and ContainerGoneError where the container has ended.
        """
        fd = self.process.open("mountinfo")
        try:
            return mounts.read_open_mounts(fd, *needles)
        except TableTooLong as error:
            raise MountsTooMany(f"container {self.container.name}: {error.strerror}") from error
        except OSError as error:  # EINVAL: a dying process has lost its namespaces already
            raise ContainerGoneError(f"container {self.container.name} has just ended") from error
        finally:
            os.close(fd)


Refuse = Callable[[Container, ContainerError], Any]
_Item = TypeVar("_Item")


def read_all_mounts(targets: Sequence[Target], *needles: str) -> list[list[mounts.Mount] | OSError]:
    """Return the mounts of the whole mount namespace of each of TARGETS, or the OSError that says why they cannot be read.

    With NEEDLES only those whose lines of mountinfo hold one of these. A process's own mountinfo ends at its root, and a container's first
    process may have changed its root.
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
    return [outcome if isinstance(outcome, OSError) else list(mounts.parse_mountinfo(outcome)) for outcome in outcomes]


@contextmanager
def open_targets(
    containers: Sequence[Container], *, ended_ok: bool = False, refused_ok: bool = False, refuse: Refuse | None = None
) -> Iterator[list[Target]]:
    """Hold the first process of each of CONTAINERS open; raises ContainerError before any container is touched.

    ENDED_OK leaves out containers that have just ended. REFUSED_OK leaves out those whose process is not the one that the runtime names.
    With REFUSE, REFUSE(container, error) is called for every other container that cannot be held, instead of the exception.
    """
    # Commands do not inherit the raised limit: their supervisor was started before.
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


class Patience:
    """The time that a call waits, in all, for containers that other operators hold; free containers are served meanwhile."""

    def __init__(self) -> None:
        self._left_s = TIMEOUT_S

    def wait(self) -> bool:
        """Wait a moment and return True; return False where no time is left."""
        if self._left_s <= 0:
            return False
        time.sleep(_PAUSE_S)
        self._left_s -= _PAUSE_S
        return True


def serve_held(
    targets: Sequence[Target],
    serve: Callable[[list[Target]], Any],
    refuse: Callable[[Target, ContainerError], Any],
    patience: Patience,
) -> None:
    """Call SERVE with the TARGETS that no other attach or detach holds, holding their locks, and then with the rest as they become free.

    REFUSE is called for each target that is still locked when PATIENCE is at its end. A caller never waits while it holds a lock, so no two
    callers wait for each other.
    """

    def attempt(waiting: list[Target]) -> list[tuple[Target, ContainerError]]:
        kept = []
        with ExitStack() as stack:
            held = []
            for target in waiting:
                try:
                    stack.enter_context(try_lock(f"container-{target.container.short_id}"))
                    held.append(target)
                except LockTimeout as timeout:
                    kept.append((target, ContainerError(str(timeout))))
            if held:
                serve(held)
        return kept

    _attempt_until_served(targets, attempt, refuse, patience)


def serve_in_turns(
    items: Sequence[_Item],
    serve: Callable[[_Item], Any],
    refuse: Callable[[_Item, ContainerError], Any],
    patience: Patience,
) -> None:
    """Call SERVE with each of ITEMS, and again later where it raises LockTimeout because another operator holds the item.

    REFUSE is called for each item that is still held when PATIENCE is at its end.
    """

    def attempt(waiting: list[_Item]) -> list[tuple[_Item, ContainerError]]:
        kept = []
        for item in waiting:
            try:
                serve(item)
            except LockTimeout as timeout:
                kept.append((item, ContainerError(str(timeout))))
        return kept

    _attempt_until_served(items, attempt, refuse, patience)


def _attempt_until_served(
    items: Sequence[_Item],
    attempt: Callable[[list[_Item]], list[tuple[_Item, ContainerError]]],
    refuse: Callable[[_Item, ContainerError], Any],
    patience: Patience,
) -> None:
    """Call ATTEMPT with the remaining ITEMS, of which it returns those that others hold, until none remains or PATIENCE is at its end."""
    waiting = list(items)
    while waiting:
        kept = attempt(waiting)
        if len(kept) == len(waiting) and not patience.wait():
            for item, error in kept:
                refuse(item, error)
            return
        waiting = [item for item, _error in kept]


def try_lock(name: str) -> ContextManager[int]:
    """Keep other operators away from the thing called NAME; raises LockTimeout at once where another operator holds it."""
    return lock(os.path.join(LOCKS, name), 0.0)


@contextmanager
def hold_container(container: Container) -> Iterator[None]:
    """Keep other attaches and detaches away from CONTAINER; raises ContainerError after TIMEOUT_S."""
    with hold_lock("container-" + container.short_id):
        yield


@contextmanager
def hold_lock(name: str, *, may_make_folder: bool = True) -> Iterator[None]:
    """Keep other operators away from the thing called NAME; raises ContainerError where another operator holds it for TIMEOUT_S.

    Without MAY_MAKE_FOLDER, raises FileNotFoundError where a cleanup has removed the folder of locks.
    """
    try:
        with lock(os.path.join(LOCKS, name), TIMEOUT_S, may_make_folder=may_make_folder):
            yield
    except LockTimeout as error:
        raise ContainerError(str(error)) from error
