# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A user is told of a rule for which nothing has started."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import awaiting
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule

NOTHING = "no container has started meanwhile"
MISSED = "2 were over before they were seen, and it is not known which"


@pytest.mark.parametrize(
    ("names", "missed", "troubles", "told"),
    [
        ([], 0, [], NOTHING),
        (["shop", "shop", "mail"], 0, [], "started have meanwhile: shop, mail"),
        ([], 2, [], MISSED),
        (["shop"], 2, ["one was left out"], f"started have meanwhile: shop; {MISSED}; one was left out"),
        ([], 0, ["one was left out"], f"{NOTHING}; one was left out"),
    ],
)
def test_what_has_started_and_what_was_missed_is_told(monkeypatch, names, missed, troubles, told):
    monkeypatch.setattr(awaiting, "Host", lambda _docker_host: Engines())
    rule = Rule("late", patterns=("api-*",))
    described = {
        **rule.describe(),
        "latest": [{"name": name} for name in names],
        "missed": missed,
        "troubles": troubles,
    }
    assert awaiting._tell_missing(described) == f"nothing has started that is meant by api-*: {told}"


class Engines:
    """A host's engines without a container."""

    def list_containers(self, users):
        assert not users
        return []
