# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module's options select while containers come and go."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerGoneError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError

API = Container("a" * 64, "api", "running", 5, "image", {})
DB = Container("b" * 64, "db", "running", 6, "image", {})


class Host:
    """Runtimes that list API and DB; DB is removed behind the list."""

    errors = {}
    warnings = []

    def list_containers(self, *, users=False):
        return [API, DB]

    def inspect(self, container):
        return {}

    def refresh(self, container):
        if container is DB:
            raise ContainerGoneError("container db (bbbbbbbbbbbb) was just removed")
        return container


def select(containers, **more):
    params = {"containers": containers, "labels": None, "query": None, "docker_host": None, "allow_empty": False}
    return options.select(SimpleNamespace(params=params, warn=pytest.fail), Host(), required=True, **more)


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
