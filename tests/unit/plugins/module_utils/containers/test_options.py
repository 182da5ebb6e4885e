# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors, warnings and results of a selection, also while containers come and go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

API, DB = (Container(digit * 64, name, "running", 2, "", {}) for digit, name in (("a", "api"), ("d", "db")))


class Module:
    def __init__(self, *, allow_empty=False):
        self.params = {"allow_empty": allow_empty}
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def choose(module, *patterns, labels=(), **more):
    found = options.choose(module, Selector(patterns or None, labels), [API, DB], running_only=True, **more)
    return [one.name for one in found]


@pytest.mark.parametrize("more", [{}, {"none_ok": True}])
def test_a_name_that_is_not_there_is_an_error(more):
    with pytest.raises(ContainerError, match="no container is called 'nonesuch'; running are: api, db"):
        choose(Module(), "api", "nonesuch", **more)


def test_a_selection_that_matches_nothing_is_an_error_unless_that_is_no_matter():
    for patterns, labels in ((["none*"], ()), ([], (("tier", "front"),))):
        with pytest.raises(ContainerError, match=r"matches no container; running are: api, db \(allow_empty=true"):
            choose(Module(), *patterns, labels=labels)
        module = Module()
        assert choose(module, *patterns, labels=labels, none_ok=True) == []
        assert module.warnings == []


def test_allow_empty_accepts_all_that_is_not_there_without_a_word():
    module = Module(allow_empty=True)
    assert choose(module, "api", "nonesuch", "pid:77") == ["api"]
    assert choose(module, "nonesuch") == []
    assert choose(module, "none*") == []
    assert choose(module, "nonesuch", missing_ok=True) == []
    assert module.warnings == []
    twin = Container("e" * 64, "api", "running", 3, "", {}, "podman")
    with pytest.raises(ContainerError, match="'api' is ambiguous"):
        options.choose(module, Selector(("api",)), [API, twin], running_only=True)


def test_what_need_not_be_there_is_named_in_a_warning():
    module = Module()
    assert choose(module, "nonesuch", "api", "a\x1b", missing_ok=True) == ["api"]
    assert module.warnings == [
        r"nothing to do for 'nonesuch', 'a\x1b': no container here is called so",
    ]
    module = Module()
    assert choose(module, "none*", missing_ok=True) == []
    assert module.warnings == ["nothing to do: the selection matches no container here"]


class Host:
    """Runtimes that list API and DB; DB is removed behind the list."""

    errors = {}
    warnings = []
    is_complete = True

    def list_containers(self, *, users=False):
        return [API, DB]

    def inspect(self, container):
        return {}

    def find_meant(self, pattern):
        return pattern

    def refresh(self, container):
        if container is DB:
            raise ContainerGoneError("container db (bbbbbbbbbbbb) was just removed")
        return container


class HostInPart(Host):
    """A host on which one runtime does not answer."""

    errors = {"podman": "it hangs"}
    is_complete = False

    def explain(self, error):
        return ContainerError(f"podman hangs; {error}")


def select(containers, *, host=None, warn=pytest.fail, **more):
    params = {"containers": containers, "labels": None, "query": None, "docker_host": None, "allow_empty": False}
    return options.select(SimpleNamespace(params=params, warn=warn), host or Host(), required=True, **more)


def test_one_that_is_removed_meanwhile_is_named_and_costs_no_other():
    outcome = Outcome()
    found = select(["api", "db"], refuse=outcome.fail)
    assert found == [API]
    with pytest.raises(
        FleetError, match="1 of 2 containers failed: container db .* just removed; run all the same: api"
    ) as told:
        outcome.check(found, "run")
    assert [one["container"] for one in told.value.result["failed_containers"]] == ["db"]


def test_one_that_nobody_named_may_go():
    outcome = Outcome()
    assert select(["*"], refuse=outcome.fail) == select(["*"]) == [API]
    outcome.check()


def test_without_a_list_of_failures_it_is_an_error():
    with pytest.raises(ContainerGoneError, match="just removed"):
        select(["api", "db"])


@pytest.mark.parametrize("wanted", ["nonesuch", "none*", "1000/nonesuch"])
@pytest.mark.parametrize("missing_ok", [True, False])
def test_what_is_not_found_may_be_a_silent_runtimes(wanted, missing_ok):
    warnings = []
    with pytest.raises(ContainerError, match="^podman hangs; (no container is called|the selection matches no)"):
        select([wanted], host=HostInPart(), warn=warnings.append, missing_ok=missing_ok)
    assert warnings == ["containers of podman are not looked at: it hangs"]
