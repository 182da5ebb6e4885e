# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Meaning of a user's query. No runtime is asked."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import compile_query

CONTAINER = Container("0123456789ab" + "f" * 52, "web", "running", 4242, "nginx:1", {"tier": "front"})
INSPECTED = {
    "Id": CONTAINER.id,
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "Pid": 4242, "ExitCode": 0},
    "Config": {"Image": "nginx:1", "Labels": {"tier": "front"}, "Env": ["A=1"]},
    "HostConfig": {"Privileged": False},
}


def answer(container):
    """Stands where a runtime would: it answers with what was inspected."""
    assert container is CONTAINER
    return INSPECTED


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("State.Running", True),
        ("HostConfig.Privileged", False),
        ("State.Pid == `4242`", True),
        ("Config.Labels.tier == 'front'", True),
        ("Config.Labels.tier == 'back'", False),
        ("contains(Config.Env, 'A=1')", True),
        ("State.Running && HostConfig.Privileged == `false`", True),
        # Only a plain true selects: what is merely there would select everything by mistake.
        ("Name", False),
        ("State", False),
        ("Config.Env", False),
        ("`1`", False),
        ("Missing", False),
    ],
)
def test_a_query_selects_by_true_only(expression, selected):
    pytest.importorskip("jmespath")
    assert compile_query(expression, answer)(CONTAINER) is selected


@pytest.mark.parametrize("expression", [" ", "a[", "State.", "'open", '"open', "a b", "==", "\0", "foo(", "[?x"])
def test_what_is_no_query_is_refused_before_anyone_is_asked(expression):
    pytest.importorskip("jmespath")
    with pytest.raises(ContainerError, match="is not JMESPath"):
        compile_query(expression, answer)


@pytest.mark.parametrize("expression", ["length(State.Pid)", "no_such_function(Name)", "contains(Name)", "abs(Name)"])
def test_a_query_that_fails_names_the_container(expression):
    pytest.importorskip("jmespath")
    matches = compile_query(expression, answer)
    with pytest.raises(ContainerError, match="fails on container web"):
        matches(CONTAINER)


def test_one_that_is_removed_meanwhile_is_not_selected():
    def inspect(_container):
        raise ContainerGoneError("it was just removed")

    matches = compile_query("Name != 'x'", inspect)
    assert not matches(Container("a" * 64, "api", "running", 5, "image", {}))
