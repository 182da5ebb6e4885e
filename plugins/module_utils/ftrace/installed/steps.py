# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe a change of what stays on a host as steps, which check mode names and does not take."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import hold_lock
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.files import File


@dataclass(frozen=True)
class Step:
    """A step of a change: it is done by calling DO if it IS_NEEDED. WHAT is the file that it changes; '' for none."""

    what: str
    is_needed: bool
    do: Callable[[], Any]


def plan_write(file: File) -> Step:
    """Return the step that writes FILE."""
    return Step(file.path, not files.is_there(file), partial(files.write, file))


def plan_removal(path: str) -> Step:
    """Return the step that removes the file PATH."""
    return Step(path, files.is_left(path), partial(files.remove, path))


@contextmanager
def changing(*, check_mode: bool) -> Iterator[None]:
    """Keep other processes away from what stays on the host while a change is planned and taken, but for CHECK_MODE, in which nothing is.

    Raises FleetError where another one does not end.
    """
    if check_mode:
        yield
        return
    with hold_lock("installed"):
        yield


def take(steps: Sequence[Step], *, check_mode: bool) -> list[str]:
    """Take those of STEPS that are needed, unless in CHECK_MODE, and return the files that they change.

    Raises FleetError where a file cannot be written.
    """
    needed = [step for step in steps if step.is_needed]
    for step in [] if check_mode else needed:
        try:
            step.do()
        except OSError as error:
            raise FleetError(f"{step.what}: {error.strerror}") from error
    return [step.what for step in needed if step.what]
