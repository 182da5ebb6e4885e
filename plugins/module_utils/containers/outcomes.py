# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The outcome of a call for several containers.

A container that fails is noted and does not stop the others; at its end the call fails and lists the failed and the served containers.
Only the steps for the failed container are undone: each container has a stack of its own (undoing), which success empties.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Iterable, Iterator, NamedTuple, Protocol, Sequence, TypeVar

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, explain
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import ProcessGone
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape


class Named(Protocol):
    """A container that a call serves, or an object that stands for one."""

    @property
    def name(self) -> str:
        """Return the container's name."""

    @property
    def id(self) -> str:
        """Return the container's id."""


class Who(NamedTuple):
    """The name and the id of a container that may no longer exist, as far as they are known."""

    name: str
    id: str


_Named = TypeVar("_Named", bound=Named)


@dataclass(frozen=True)
class Failure:
    """The reason why a container was not served.

    CONTAINER: its name. MSG: the reason, with the next step.
    """

    container: str
    id: str
    msg: str


class Outcome:
    """The containers of a call that have failed so far, and the reasons."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], Failure] = {}
        self._blemishes: dict[tuple[str, str], Failure] = {}
        self._complaints: list[str] = []
        self._first: Exception | None = None

    @contextmanager
    def serve(self, container: Named, *, ended_ok: bool = False) -> Iterator[None]:
        """Note an error in the context as CONTAINER's failure and go on after the context; with ENDED_OK the container's end is no failure."""
        try:
            yield
        except (FleetError, OSError, ProcessGone) as error:
            self.fail(container, error, ended_ok=ended_ok)

    def fail(self, container: Named, error: Exception, *, ended_ok: bool = False) -> None:
        """Note that CONTAINER has failed by ERROR; with ENDED_OK the container's end is no failure."""
        if isinstance(error, ProcessGone):
            error = ContainerGoneError(f"container {container.name} has just ended")
        if ended_ok and isinstance(error, ContainerGoneError):
            return
        self._first = self._first or error
        text = _tell(error)
        key = container.name, container.id
        known = self._failures.get(key)
        if known is not None:
            text = known.msg if text in known.msg else f"{known.msg}; {text}"
        self._failures[key] = Failure(*key, text)

    def blame(self, container: Named, text: str) -> None:
        """Note TEXT about CONTAINER, which was served: the call fails, but the container does not count as failed."""
        key = container.name, container.id
        self._blemishes[key] = Failure(*key, escape(text))

    def fail_each(self, containers: Sequence[Named], errors: Sequence[Exception | None], **more: bool) -> None:
        """Note the ERRORS of CONTAINERS, which hold None for each container without one."""
        for container, error in zip(containers, errors):
            if error is not None:
                self.fail(container, error, **more)

    @contextmanager
    def complaining(self) -> Iterator[None]:
        """Note an error that the context raises and that belongs to no container, and go on after the context."""
        try:
            yield
        except (FleetError, OSError) as error:
            self._complaints.append(_tell(error))

    def raise_first(self) -> None:
        """Raise the first error itself, if a container has failed: a caller with one container can tell kinds of errors apart."""
        if self._first is not None:
            raise self._first

    def has_failed(self, container: Named) -> bool:
        """Return True if CONTAINER has failed so far."""
        return (container.name, container.id) in self._failures

    def list_left(self, containers: Sequence[_Named]) -> list[_Named]:
        """Return those of CONTAINERS that have not failed so far."""
        return [container for container in containers if not self.has_failed(container)]

    def as_result(self) -> list[dict[str, str]]:
        """Return the failed containers as modules report them (failed_containers)."""
        return [asdict(failure) for failure in self._failures.values()]

    def check(self, containers: Sequence[Named] = (), done: str = "", **result: Any) -> None:
        """Raise FleetError with RESULT if anything went wrong.

        The message names the containers that failed, and those of CONTAINERS for which everything was DONE (a word such as "attached").
        """
        told = [failure.msg for failure in self._failures.values()]
        # A container's failure may be met again outside any container, and is told once.
        phrases = [*self._list_phrases(), *(text for text in self._complaints if not any(text in msg for msg in told))]
        if not phrases:
            return
        text = "; ".join(dict.fromkeys(phrases))
        bad = {**self._blemishes, **self._failures}
        count = len({(container.name, container.id) for container in containers} | set(bad))
        if bad and count > 1:
            text = f"{len(bad)} of {count} containers failed: {text}"
        served = [container.name for container in containers if (container.name, container.id) not in bad]
        if served:
            text += f"; {done} all the same: {', '.join(served)}"
        raise FleetError(text, failed_containers=self.as_result(), **result)

    def _list_phrases(self) -> list[str]:
        """Return a phrase for each failure or blame; containers with the same text share a phrase."""
        failed = [
            msg if all(_is_named(name, msg) for name in names) else f"container {', '.join(names)}: {msg}"
            for msg, names in _group(self._failures.values())
        ]
        # A blame quotes the container's own words, which may hold any name, so the container is always named before it.
        return failed + [f"container {', '.join(names)}: {msg}" for msg, names in _group(self._blemishes.values())]


def _group(failures: Iterable[Failure]) -> Iterable[tuple[str, list[str]]]:
    """Return each text of FAILURES with the names of its containers."""
    names: dict[str, list[str]] = {}
    for failure in failures:
        names.setdefault(failure.msg, []).append(failure.container)
    return names.items()


def _tell(error: Exception) -> str:
    return explain(error) if isinstance(error, OSError) else escape(str(error))


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(escape(name))}(?!\.?[\w-])", text) is not None


@contextmanager
def undoing() -> Iterator[ExitStack]:
    """Yield a stack of undo steps, which run where the context fails, and at its end, unless the caller took them over by pop_all."""
    with ExitStack() as undo:
        try:
            yield undo
        except (FleetError, OSError) as error:
            try:
                undo.close()
            except (FleetError, OSError) as second:
                raise FleetError(f"{_tell(error)}; not all that was begun could be undone: {_tell(second)}") from error
            raise
