# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule

ID = "3f" * 32


def make(name="web", **about):
    return Container(**{"id": ID, "name": name, "state": "running", "pid": 0, "image": "", "labels": {}, **about})


@pytest.mark.parametrize(
    "rule, container, is_meant",
    [
        (Rule("r", ("web",)), make(), True),
        (Rule("r", ("web",)), make("web-1"), False),
        (Rule("r", ("web*", "api")), make("web-1"), True),
        (Rule("r", (ID[:12],)), make("any"), True),
        (Rule("r", ("docker:web",)), make(runtime="podman"), False),
        (Rule("r", ("*",), (("tier", "front"),)), make(labels={"tier": "front"}), True),
        (Rule("r", ("*",), (("tier", "front"),)), make(labels={"tier": "back"}), False),
        (Rule("r", None, (("tier", None),)), make(labels={"tier": ""}), True),
        (Rule("r", None, (("tier", None),)), make(), False),
    ],
)
def test_a_rule_means_what_it_names(rule, container, is_meant):
    assert rule.make_matcher()(container) is is_meant


def test_a_rule_survives_json():
    rule = Rule("r", ("web", "a*"), (("tier", "front"), ("x", None)), 7, 2.5)
    assert rules.from_json(json.loads(json.dumps(rule.describe()))) == rule
    assert rules.from_json(Rule("r").describe()) == Rule("r")


def test_a_rule_stands_for_no_container():
    container = Rule("web").as_container()
    assert (container.pid, container.runtime, container.may_start) == (0, "rule", False)
    assert (container.id, container.name) == ("rule:web", "rule:web")
    assert Rule(ID).as_container().short_id != make().short_id
    assert container.short_id != make().short_id
    assert rules.is_rule({"runtime": "rule"})
    assert not rules.is_rule({"runtime": "docker"})
    assert not rules.is_rule(None)
