# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes of a call for several containers. One that fails is noted and costs no other, and the call fails at its end with both lists.

What was begun for the one that fails is undone alone: it stands on a stack of its own (undoing), which who succeeds takes over.
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
    """Whom a call serves: a container, or what stands for one."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def id(self) -> str:
        """Its id."""


class Who(NamedTuple):
    """A container that may be known no more: its name and its id, or what is left of these."""

    name: str
    id: str


_Named = TypeVar("_Named", bound=Named)


@dataclass(frozen=True)
class Failure:
    """Why a container was not served: MSG says so, with the next step. CONTAINER is its name."""

    container: str
    id: str
    msg: str


class Outcome:
    """Which containers of a call have failed so far, and why."""

    def __init__(self) -> None:
        self._failures: dict[tuple[str, str], Failure] = {}
        self._blemishes: dict[tuple[str, str], Failure] = {}
        self._complaints: list[str] = []
        self._first: Exception | None = None

    @contextmanager
    def serve(self, container: Named, *, ended_ok: bool = False) -> Iterator[None]:
        """Note what goes wrong with CONTAINER in the context, and go on behind it. With ENDED_OK its end is nothing wrong."""
        try:
            yield
        except (FleetError, OSError, ProcessGone) as error:
            self.fail(container, error, ended_ok=ended_ok)

    def fail(self, container: Named, error: Exception, *, ended_ok: bool = False) -> None:
        """Note that CONTAINER has failed by ERROR, unless that is its end and ENDED_OK."""
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
        """Note TEXT, for which the call is to fail although CONTAINER was served: it counts as one that has not failed."""
        key = container.name, container.id
        self._blemishes[key] = Failure(*key, escape(text))

    def fail_each(self, containers: Sequence[Named], errors: Sequence[Exception | None], **more: bool) -> None:
        """Note the ERRORS of CONTAINERS, None for each one that has none."""
        for container, error in zip(containers, errors):
            if error is not None:
                self.fail(container, error, **more)

    @contextmanager
    def complaining(self) -> Iterator[None]:
        """Note what goes wrong in the context with no container in particular, and go on behind it."""
        try:
            yield
        except (FleetError, OSError) as error:
            self._complaints.append(_tell(error))

    def raise_first(self) -> None:
        """Raise the first error as it was, where a container has failed: for a call for one, whose caller tells errors apart."""
        if self._first is not None:
            raise self._first

    def has_failed(self, container: Named) -> bool:
        """Whether CONTAINER has failed so far."""
        return (container.name, container.id) in self._failures

    def list_left(self, containers: Sequence[_Named]) -> list[_Named]:
        """Those of CONTAINERS that have not failed so far."""
        return [one for one in containers if not self.has_failed(one)]

    def as_result(self) -> list[dict[str, str]]:
        """What modules return of those that have failed, as failed_containers."""
        return [asdict(one) for one in self._failures.values()]

    def check(self, containers: Sequence[Named] = (), done: str = "", **result: Any) -> None:
        """Raise FleetError with RESULT where anything went wrong. It names who has failed, and for which of CONTAINERS all was DONE."""
        told = [one.msg for one in self._failures.values()]
        # What a container has failed by may be met again where no container is in particular.
        phrases = [*self._list_phrases(), *(one for one in self._complaints if not any(one in msg for msg in told))]
        if not phrases:
            return
        text = "; ".join(dict.fromkeys(phrases))
        bad = {**self._blemishes, **self._failures}
        count = len({(one.name, one.id) for one in containers} | set(bad))
        if bad and count > 1:
            text = f"{len(bad)} of {count} containers failed: {text}"
        served = [one.name for one in containers if (one.name, one.id) not in bad]
        if served:
            text += f"; {done} all the same: {', '.join(served)}"
        raise FleetError(text, failed_containers=self.as_result(), **result)

    def _list_phrases(self) -> list[str]:
        """What to say of those that have failed, or are blamed: who and why, once for all of whom the same is true."""
        failed = [
            msg if all(_is_named(name, msg) for name in names) else f"container {', '.join(names)}: {msg}"
            for msg, names in _group(self._failures.values())
        ]
        # These texts hold a container's own words, which may be anybody's name.
        return failed + [f"container {', '.join(names)}: {msg}" for msg, names in _group(self._blemishes.values())]


def _group(failures: Iterable[Failure]) -> Iterable[tuple[str, list[str]]]:
    """Each text of FAILURES, with the names of the containers that it is said of."""
    names: dict[str, list[str]] = {}
    for one in failures:
        names.setdefault(one.msg, []).append(one.container)
    return names.items()


def _tell(error: Exception) -> str:
    return explain(error) if isinstance(error, OSError) else escape(str(error))


def _is_named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(escape(name))}(?!\.?[\w-])", text) is not None


@contextmanager
def undoing() -> Iterator[ExitStack]:
    """Give a stack for what undoes that which is done in the context: it is called where the context fails, and at its end, unless
    somebody has taken it over by pop_all."""
    with ExitStack() as undo:
        try:
            yield undo
        except (FleetError, OSError) as error:
            try:
                undo.close()
            except (FleetError, OSError) as second:
                raise FleetError(f"{_tell(error)}; not all that was begun could be undone: {_tell(second)}") from error
            raise
