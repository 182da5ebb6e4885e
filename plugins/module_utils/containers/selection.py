# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a user wrote (names, ids, globs, labels, a JMESPath query) to containers. Pure: it asks no engine."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from typing import Any, Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    ContainerError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import PROCESS_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.cgroups import ENGINE_ID

RUNTIMES = frozenset(
    ("docker", "podman", "containerd", "cri-o", "runc", "crun", "lxc", "systemd-nspawn")
)  # before a name and a colon
_OF_USER = re.compile(r"([0-9]{1,10})/(.+)", re.DOTALL)  # a user's container: UID/NAME, or UID/ID
_GLOB_CHARACTERS = frozenset("*?[")
_ID_DIGITS = frozenset("0123456789abcdef")


class UnknownContainerError(ContainerError):
    """PATTERN, a name or an id, finds no container."""

    def __init__(self, message: str, pattern: str) -> None:
        super().__init__(message)
        self.pattern = pattern
        self.is_process = pattern.startswith(PROCESS_PREFIX)


@dataclass(frozen=True)
class Selector:
    """What a user asked for: any of PATTERNS (None: not asked) and all of LABELS; QUERY decides on what these leave.

    ANY_OWNER says that the engine was named, so that the containers of the host's users are as good as root's.
    """

    patterns: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    query: Callable[[Container], bool] | None = None
    any_owner: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.patterns is None and not self.labels and self.query is None

    @property
    def may_mean_users(self) -> bool:
        """Whether what the host's users run can be among what it selects; else nobody has to ask them."""
        plain = (one.partition(":")[2] if one.partition(":")[0] in RUNTIMES else one for one in self.patterns or ())
        return self.is_empty or self.any_owner or any(_OF_USER.fullmatch(one) for one in plain)

    def names(self, container: Container) -> bool:
        """Whether CONTAINER was asked for by its name or its id, not only by a glob, a label or a query."""
        patterns = [_strip(one, f"{container.runtime}:") for one in self.patterns or ()]
        if container.owner_uid is not None:
            patterns = [_strip(one, f"{container.owner_uid}/") for one in patterns]
        return any(one == container.name or _is_id(one, container) for one in patterns)

    def without(self, patterns: set[str]) -> Selector | None:
        """The same without some of its PATTERNS; None when these were all of them."""
        if self.patterns is None or not patterns:
            return self
        rest = tuple(pattern for pattern in self.patterns if pattern not in patterns)
        return replace(self, patterns=rest) if rest else None


def _strip(text: str, beginning: str) -> str:
    return text[len(beginning) :] if text.startswith(beginning) else text


def select_one(
    pattern: str, containers: list[Container], *, running_only: bool = True, any_owner: bool = False
) -> Container:
    """The one container that PATTERN means, where an option is for one. Raises ContainerError where it means none, or several."""
    found = select_containers(Selector((pattern,), any_owner=any_owner), containers, running_only=running_only)
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownContainerError(f"no container matches {pattern!r}; {describe_running(containers)}", pattern)
    choices = ", ".join(f"{one.name} ({one.full_name})" for one in found)
    raise ContainerError(f"{pattern!r} has to mean one container, and may mean {choices}; give one of these")


def select_containers(
    selector: Selector,
    containers: list[Container],
    *,
    running_only: bool = True,
    refuse: Callable[[UnknownContainerError], Any] | None = None,
) -> list[Container]:
    """The containers that SELECTOR names, in the engine's order, each once.

    Globs, labels and queries look at running containers only (unless RUNNING_ONLY is false); a name or
    an id finds a container in any state, so that the caller can say what is wrong with it.
    What the host's users have, under names, ids and labels of their choice, is found only where a pattern names the user, or where
    nothing was asked for.
    Raises ContainerError for a name, or for digits of an id, that finds several. One that finds none is told to REFUSE; without that it raises
    UnknownContainerError.
    """
    own = [one for one in containers if one.owner_uid is None or selector.any_owner]
    others = [one for one in containers if one not in own]
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


def _leave(containers: list[Container], running_only: bool) -> list[Container]:
    return [one for one in containers if one.state == "running" or not running_only]


def _match(pattern: str, own: list[Container], others: list[Container], running_only: bool) -> list[Container]:
    """What PATTERN finds among root's OWN containers or, where it names a user, among that user's of the OTHERS."""
    all_of_them = [*own, *others]
    runtime, colon, rest = pattern.partition(":")
    if colon and runtime in RUNTIMES:
        pattern = rest
        own, others = ([one for one in some if one.runtime == runtime] for some in (own, others))
    found = _find(pattern, own)
    if found:
        return found
    named = _OF_USER.fullmatch(pattern)
    of_user = [one for one in others if named and one.owner_uid == int(named.group(1))]
    if named and of_user:
        own, pattern = of_user, named.group(2)
        found = _find(pattern, of_user)
    if found or not _GLOB_CHARACTERS.isdisjoint(pattern):
        return found or [one for one in _leave(own, running_only) if fnmatch.fnmatchcase(one.name, pattern)]
    if pattern.startswith(PROCESS_PREFIX):
        raise UnknownContainerError(f"{pattern}: the host has no such process", pattern)
    choices = ", ".join(one.full_name for one in others if pattern in (one.id, one.name))
    hint = f"; a user of the host has one: give {choices} if that is meant" if choices else ""
    begun = [one for one in own if _ID_DIGITS.issuperset(pattern) and one.id.startswith(pattern)]
    if pattern and begun:
        names = ", ".join(f"{one.name} ({one.short_id})" for one in begun)
        hint += f"; it begins the id of {names}, of which {SHORT_ID_LENGTH} digits are needed"
    message = f"no container is called {pattern!r}{hint}; {describe_running(all_of_them)}"
    raise UnknownContainerError(message, pattern)


def _find(pattern: str, containers: list[Container]) -> list[Container]:
    """The one of CONTAINERS that has PATTERN as its name, its id, or the beginning of that; none where nothing has it."""
    found = [one for one in containers if pattern == one.name or _is_id(pattern, one)]
    if ENGINE_ID.match(pattern):
        found = [one for one in found if one.id == pattern] or found  # nobody can take it away by a name
    if len(found) > 1:
        # Several runtimes use the name, or a container of a pod has followed one that has ended.
        choices = ", ".join(f"{one.full_name} ({one.state})" for one in found)
        raise ContainerError(f"{pattern!r} is ambiguous: it may mean {choices}; give one of these")
    return found


def _is_id(pattern: str, container: Container) -> bool:
    """Whether PATTERN is CONTAINER's id, or the beginning of an engine's that is no word: the digits that engines print, or more."""
    is_beginning = len(pattern) >= SHORT_ID_LENGTH and bool(ENGINE_ID.match(container.id))
    return container.id.startswith(pattern) if is_beginning else container.id == pattern


def _has_labels(container: Container, labels: tuple[tuple[str, str | None], ...]) -> bool:
    return all(name in container.labels and value in (None, container.labels[name]) for name, value in labels)


def describe_running(containers: list[Container]) -> str:
    """A clause for error messages that lists what runs."""
    names = []
    for one in containers:
        # Where an engine is silent the runtime below it knows ids alone.
        name = one.short_id if one.name == one.id else one.name
        if one.state == "running":
            names.append(name if one.owner_uid is None else f"{one.runtime}:{one.owner_uid}/{name}")
    return "running are: " + ", ".join(sorted(names)) if names else "no container runs"
