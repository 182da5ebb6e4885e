# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a user wrote (names, ids, globs, labels, a JMESPath query) to containers. Pure: it asks no engine."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import Callable

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError

RUNTIMES = frozenset(
    ("docker", "podman", "containerd", "cri-o", "runc", "crun", "lxc", "systemd-nspawn")
)  # before a name and a colon
_GLOB_CHARACTERS = frozenset("*?[")
_ID_DIGITS = frozenset("0123456789abcdef")
_ID_LENGTH = 64


@dataclass(frozen=True)
class Selector:
    """What a user asked for: any of PATTERNS (None: not asked) and all of LABELS; QUERY decides on what these leave."""

    patterns: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    query: Callable[[Container], bool] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.patterns is None and not self.labels and self.query is None

    def names(self, container: Container) -> bool:
        """Whether CONTAINER was asked for by its name or its id, not only by a glob, a label or a query."""
        patterns = [
            one[len(container.runtime) + 1 :] if one.startswith(container.runtime + ":") else one
            for one in self.patterns or ()
        ]
        return any(one == container.name or container.id.startswith(one) for one in patterns if one)

    def without(self, patterns: set[str]) -> Selector | None:
        """The same without some of its PATTERNS; None when these were all of them."""
        if self.patterns is None or not patterns:
            return self
        rest = tuple(pattern for pattern in self.patterns if pattern not in patterns)
        return replace(self, patterns=rest) if rest else None


def select_containers(selector: Selector, containers: list[Container], *, running_only: bool = True) -> list[Container]:
    """The containers that SELECTOR names, in the engine's order, each once.

    Globs, labels and queries look at running containers only (unless RUNNING_ONLY is false); a name or
    an id finds a container in any state, so that the caller can say what is wrong with it.
    Raises ContainerError for a name or an id that finds none, or an id prefix that finds several.
    """
    running = [container for container in containers if container.state == "running" or not running_only]
    if selector.patterns is None:
        chosen = running
    else:
        ids = set()
        for pattern in selector.patterns:
            ids |= {container.id for container in _match(pattern, containers, running)}
        chosen = [container for container in containers if container.id in ids]
    chosen = [container for container in chosen if _has_labels(container, selector.labels)]
    if selector.query is not None:
        chosen = [container for container in chosen if selector.query(container)]
    return chosen


def _match(pattern: str, containers: list[Container], running: list[Container]) -> list[Container]:
    runtime, colon, rest = pattern.partition(":")
    if colon and runtime in RUNTIMES:
        of_runtime = [one for one in containers if one.runtime == runtime]
        return _match(rest, of_runtime, [one for one in running if one.runtime == runtime])
    exact = [one for one in containers if pattern in (one.id, one.name)]
    if len(pattern) == _ID_LENGTH and _ID_DIGITS.issuperset(pattern):
        exact = [one for one in exact if one.id == pattern] or exact  # nobody can take it away by a name
    if len(exact) > 1:
        # Several runtimes use the name, or a container of a pod has followed one that has ended.
        choices = ", ".join(f"{one.runtime}:{one.id} ({one.state})" for one in exact)
        raise ContainerError(f"{pattern!r} is ambiguous: it may mean {choices}; give one of these")
    if exact:
        return exact
    if _ID_DIGITS.issuperset(pattern) and pattern:
        found = [container for container in containers if container.id.startswith(pattern)]
        if len(found) > 1:
            names = ", ".join(f"{container.name} ({container.short_id})" for container in found)
            raise ContainerError(
                f"{pattern!r} is ambiguous: it begins the ids of {names}; give more digits or the name"
            )
        if found:
            return found
    if _GLOB_CHARACTERS.isdisjoint(pattern):
        raise ContainerError(f"no container is called {pattern!r}; {describe_running(containers)}")
    return [container for container in running if fnmatch.fnmatchcase(container.name, pattern)]


def _has_labels(container: Container, labels: tuple[tuple[str, str | None], ...]) -> bool:
    return all(name in container.labels and value in (None, container.labels[name]) for name, value in labels)


def describe_running(containers: list[Container]) -> str:
    """A clause for error messages that lists what runs."""
    names = sorted(container.name for container in containers if container.state == "running")
    return "running are: " + ", ".join(names) if names else "no container runs"
