# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define a standing rule: containers that are traced from their first instruction whenever they start on the host, also new ones.

A rule has one trace instance, which all its containers share. Its events are sorted by container when they are fetched.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Callable, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector, is_meant
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.names import BOOT_RULES

RUNTIME = "rule"  # in place of a container's runtime, in the description of a rule's trace
_STATE = "awaited"


@dataclass(frozen=True)
class Rule:
    """A standing rule.

    NAME: its name, which no other rule of the host has.
    PATTERNS: names, ids or globs of containers, of which one has to match; None for any container.
    LABELS: pairs of a label and its value (None for any value), which all have to match.
    MAX_CONTAINERS: how many containers it traces at once.
    MAX_TIME_S: how many seconds of each container it traces; None for no bound.
    IS_ANNOUNCED: True if a start hook announces its containers, so that control groups need no watch. It means all that are announced.
    IDLE_S: it ends when none of its containers has run for so many seconds; None for no such end.
    """

    name: str
    patterns: tuple[str, ...] | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    max_containers: int = 100
    max_time_s: float | None = None
    is_announced: bool = False
    idle_s: float | None = None

    @property
    def needs_labels(self) -> bool:
        """Return True if a container's name and id alone do not tell whether the rule means it."""
        return bool(self.labels)

    def make_matcher(self) -> Callable[[Container], bool]:
        """Return a function that is true for the containers that the rule means."""
        return partial(is_meant, Selector(patterns=self.patterns, labels=self.labels))

    def as_container(self) -> Container:
        """Return the rule in the form in which a trace names its container; no container has such a name or id."""
        name = f"{RUNTIME}:{self.name}"
        return Container(id=name, name=name, state=_STATE, pid=0, image="", labels={}, runtime=RUNTIME)

    def describe(self) -> dict[str, Any]:
        """Return the rule for results and manifests, and for from_json."""
        described = asdict(self)
        described["patterns"] = None if self.patterns is None else list(self.patterns)
        described["labels"] = dict(self.labels)
        return described


NAMES = tuple(field.name for field in fields(Rule))  # of what describe() returns


def from_json(document: Mapping[str, Any]) -> Rule:
    """Return the rule that describe() has returned as DOCUMENT. Raises KeyError, TypeError or ValueError for another form."""
    patterns = document["patterns"]
    return Rule(
        **{
            **document,
            "patterns": None if patterns is None else tuple(patterns),
            "labels": tuple((name, value) for name, value in document["labels"].items()),
        }
    )


def read_at_boot() -> dict[str, Any]:
    """Return name → options of ftrace_instance of the rules that begin when the host starts; raises FleetError for a damaged list."""
    try:
        with open(BOOT_RULES, encoding="utf-8") as file:
            return dict(json.load(file)["rules"])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FleetError(
            f"{BOOT_RULES} cannot be read ({error.strerror}): run the role standing_rules again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise FleetError(f"{BOOT_RULES} is damaged: run the role standing_rules again") from error


def name_selection(rule: Rule) -> str:
    """Return what RULE selects, as text."""
    labels = [name if value is None else f"{name}={value}" for name, value in rule.labels]
    return ",".join([*(rule.patterns or ()), *labels])


def is_rule(description: Mapping[str, Any] | None) -> bool:
    """Return True if DESCRIPTION, that of a trace's container in a record or a manifest, is of a rule."""
    return description is not None and description.get("runtime") == RUNTIME
