# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Selection of containers by what a user wrote: names, ids, globs, labels, a JMESPath query.

Nothing here asks an engine.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    ContainerError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import PROCESS_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.cgroups import ENGINE_ID

RUNTIMES = frozenset(
    ("docker", "podman", "containerd", "cri-o", "runc", "crun", "lxc", "systemd-nspawn")
)  # the prefixes that a name may have, before a colon
_OF_USER = re.compile(r"([0-9]{1,10})/(.+)", re.DOTALL)  # a user's container: UID/NAME, or UID/ID
GONE = "gone"  # the state of containers that are known by their traces only; many may have had one name
_GLOB_CHARACTERS = frozenset("*?[")
_ID_DIGITS = frozenset("0123456789abcdef")


class UnknownContainerError(ContainerError):
    """A name or an id (PATTERN) that no container has."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern
        self.is_process = pattern.startswith(PROCESS_PREFIX)


@dataclass(frozen=True)
class Selector:
    """The containers that a user asked for.

    PATTERNS: any of these has to match; None where the user gave none. LABELS: all of these have to match. QUERY: decides on the rest.
    ANY_OWNER: the user named the engine, so containers of the host's users count like root's.
    """

    patterns: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    query: Callable[[Container], bool] | None = None
    any_owner: bool = False

    @property
    def is_empty(self) -> bool:
        """Return True if the user asked for nothing."""
        return self.patterns is None and not self.labels and self.query is None

    @property
    def may_mean_users(self) -> bool:
        """Return True if containers of the host's users may be among the selected ones; otherwise the users need not be asked."""
        plain = (
            pattern.partition(":")[2] if pattern.partition(":")[0] in RUNTIMES else pattern
            for pattern in self.patterns or ()
        )
        return self.is_empty or self.any_owner or any(_OF_USER.fullmatch(pattern) for pattern in plain)

    def names(self, container: Container) -> bool:
        """Return True if CONTAINER was asked for by its name or its id, and not only by a glob, a label or a query."""
        patterns = [_strip(pattern, f"{container.runtime}:") for pattern in self.patterns or ()]
        if container.owner_uid is not None:
            patterns = [_strip(pattern, f"{container.owner_uid}/") for pattern in patterns]
        return any(pattern == container.name or _is_id(pattern, container) for pattern in patterns)

    def without(self, patterns: set[str]) -> Selector | None:
        """Return the selector without some of its PATTERNS; None when no pattern is left."""
        if self.patterns is None or not patterns:
            return self
        rest = tuple(pattern for pattern in self.patterns if pattern not in patterns)
        return replace(self, patterns=rest) if rest else None


def _strip(text: str, beginning: str) -> str:
    return text[len(beginning) :] if text.startswith(beginning) else text


def select_one(
    pattern: str, containers: list[Container], *, running_only: bool = True, any_owner: bool = False
) -> Container:
    """Return the one container that PATTERN means; raises ContainerError where PATTERN means none or several."""
    found = select_containers(Selector((pattern,), any_owner=any_owner), containers, running_only=running_only)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownContainerError(f"no container matches {pattern!r}; {describe_running(containers)}", pattern)
    choices = ", ".join(f"{container.name} ({container.full_name})" for container in found)
    raise ContainerError(f"{pattern!r} has to mean one container, and may mean {choices}; give one of these")


def select_containers(
    selector: Selector,
    containers: list[Container],
    *,
    running_only: bool = True,
    refuse: Callable[[UnknownContainerError], Any] | None = None,
) -> list[Container]:
    """Return the containers that SELECTOR names, in the engine's order, each once.

    Globs, labels and queries find running containers only, unless RUNNING_ONLY is false. A name or an id finds a container in any state,
    so that the caller can say what is wrong with it. Users of the host choose the names, ids and labels of their containers. So these are
    found only where a pattern names the user, or where nothing was asked for.
    Raises ContainerError for a name, or for the digits of an id, that finds several containers. For one that finds none REFUSE is called with
    UnknownContainerError; without REFUSE that is raised.
    """
    own = [container for container in containers if container.owner_uid is None or selector.any_owner]
    others = [container for container in containers if container not in own]
    if selector.patterns is None:
        chosen = _leave(containers if selector.is_empty else own, running_only)
    else:
        keys = set()
        for pattern in selector.patterns:
            try:
                keys |= {container.key for container in _match(pattern, own, others, running_only)}
            except UnknownContainerError as error:
                if refuse is None:
                    raise
                refuse(error)
        chosen = [container for container in containers if container.key in keys]
    chosen = [container for container in chosen if _has_labels(container, selector.labels)]
    if selector.query is not None:
        chosen = [container for container in chosen if selector.query(container)]
    return chosen


def pair_labels(labels: Mapping[str, Any] | None) -> tuple[tuple[str, str | None], ...]:
    """Return the pairs of a selector for the value of the option LABELS."""
    return tuple((name, None if value is None else str(value)) for name, value in (labels or {}).items())


def is_meant(selector: Selector, container: Container) -> bool:
    """Return True if SELECTOR means CONTAINER, which may be in any state."""
    return bool(select_containers(selector, [container], running_only=False, refuse=lambda _error: None))


def _leave(containers: list[Container], running_only: bool) -> list[Container]:
    return [container for container in containers if container.state == "running" or not running_only]


def _match(pattern: str, own: list[Container], others: list[Container], running_only: bool) -> list[Container]:
    """Return the containers that PATTERN finds among root's OWN ones or, where it names a user, among that user's of the OTHERS."""
    all_of_them = [*own, *others]
    runtime, colon, rest = pattern.partition(":")
    if colon and runtime in RUNTIMES:
        pattern = rest
        own, others = ([container for container in some if container.runtime == runtime] for some in (own, others))
    found = _find(pattern, own)
    if found:
        return found
    named = _OF_USER.fullmatch(pattern)
    of_user = [container for container in others if named and container.owner_uid == int(named.group(1))]
    if named and of_user:
        own, pattern = of_user, named.group(2)
        found = _find(pattern, of_user)
    if found or not _GLOB_CHARACTERS.isdisjoint(pattern):
        return found or [
            container for container in _leave(own, running_only) if fnmatch.fnmatchcase(container.name, pattern)
        ]
    if pattern.startswith(PROCESS_PREFIX):
        raise UnknownContainerError(f"{pattern}: the host has no such process", pattern)
    choices = ", ".join(container.full_name for container in others if pattern in (container.id, container.name))
    hint = f"; a user of the host has one: give {choices} if that is meant" if choices else ""
    begun = [container for container in own if _ID_DIGITS.issuperset(pattern) and container.id.startswith(pattern)]
    if pattern and begun:
        names = ", ".join(f"{container.name} ({container.short_id})" for container in begun)
        hint += f"; it begins the id of {names}, of which {SHORT_ID_LENGTH} digits are needed"
    message = f"no container is called {pattern!r}{hint}; {describe_running(all_of_them)}"
    raise UnknownContainerError(message, pattern)


def _find(pattern: str, containers: list[Container]) -> list[Container]:
    """Return the container that has PATTERN as its name, its id, or the beginning of its id, as a list; empty where none has it.

    All that are gone and had the name are meant together.
    """
    found = [container for container in containers if pattern == container.name or _is_id(pattern, container)]
    if ENGINE_ID.match(pattern):
        # A container's name must not hide another one's id.
        found = [container for container in found if container.id == pattern] or found
    if len(found) > 1 and any(container.state != GONE for container in found):
        # Several runtimes may use the name, and a pod may have replaced a container that has ended.
        choices = ", ".join(f"{container.full_name} ({container.state})" for container in found)
        raise ContainerError(f"{pattern!r} is ambiguous: it may mean {choices}; give one of these")
    return found


def _is_id(pattern: str, container: Container) -> bool:
    """Return True if PATTERN is CONTAINER's id, or begins an engine's id with at least the twelve digits that engines print."""
    is_beginning = len(pattern) >= SHORT_ID_LENGTH and bool(ENGINE_ID.match(container.id))
    return container.id.startswith(pattern) if is_beginning else container.id == pattern


def _has_labels(container: Container, labels: tuple[tuple[str, str | None], ...]) -> bool:
    return all(name in container.labels and value in (None, container.labels[name]) for name, value in labels)


def describe_running(containers: list[Container]) -> str:
    """Return a clause for error messages that lists the running containers."""
    names = []
    for container in containers:
        # Where an engine does not answer, the runtime below it knows only ids.
        name = container.short_id if container.name == container.id else container.name
        if container.state == "running":
            names.append(name if container.owner_uid is None else f"{container.runtime}:{container.owner_uid}/{name}")
    return "running are: " + ", ".join(sorted(names)) if names else "no container runs"
