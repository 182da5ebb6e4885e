# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of a standing rule: their defaults, those that it cannot have, and the rule that they make."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments, rule_requests
from ansible_collections.crashcart.fleet.plugins.modules import ftrace_instance

# The documentation of state=awaiting.
ABOUT = ftrace_instance.DOCUMENTATION.partition("V(awaiting) has defaults of its own")[2].partition("With V(absent)")[0]
GIVEN = {"rule": None, "max_containers": None, "max_time": None, "query": None, "docker_host": None, "labels": None}


@pytest.fixture
def complete(tmp_path):
    """Give complete(OPTION=value, …): the complete options of a rule, on a kernel with two CPUs."""
    for number in range(2):
        (tmp_path / f"per_cpu/cpu{number}").mkdir(parents=True)
    (tmp_path / "instances").mkdir()
    defaults = {name: about.get("default") for name, about in arguments.ARGUMENTS.items()}

    def make(**options):
        return rule_requests.complete({**defaults, **GIVEN, "containers": ["shop-*"], **options}, str(tmp_path))

    return make


def test_a_rule_has_defaults_of_its_own(complete):
    wanted = {"profile": "startup", "mode": "record", "ttl": "1h", "max_size": "256MiB", "when_full": "rotate"}
    found = complete()
    assert {name: found[name] for name in wanted} == wanted
    assert (found["paths"], found["max_containers"]) == ("auto", 100)
    assert all(f"O({name}={value})" in ABOUT for name, value in {**wanted, "paths": "auto"}.items())


@pytest.mark.parametrize(
    "options", [{"syscalls": ["connect"]}, {"events": ["sched:*"]}, {"errors_only": True}, {"profile": "files"}]
)
def test_where_something_else_says_what_to_record_there_is_no_profile(complete, options):
    assert complete(**options)["profile"] == options.get("profile")


def test_what_is_given_stays(complete):
    wanted = {"ttl": "8h", "max_size": "1GiB", "when_full": "stop", "paths": "false", "max_containers": 3}
    found = complete(**wanted)
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expose", {"path": "/x"}),
        ("probes", [{"name": "x"}]),
        ("query", "[0]"),
        ("docker_host", "unix:///x"),
        ("follow_restarts", True),
        ("follow_tools", True),
        ("mode", "ring"),
        ("tracer", "function"),
        ("clock", "global"),
        ("clock", "local"),
        ("follow_exec", False),
    ],
)
def test_what_a_rule_cannot_have_is_refused_by_name_and_documented(complete, name, value):
    with pytest.raises(FleetError, match=f"^{name}.* cannot be used with state=awaiting: "):
        complete(**{name: value})
    assert f"O({name}" in ABOUT


def test_the_rule_is_called_by_what_it_selects_or_as_is_said(complete):
    found = complete(containers=["shop-*", " api "], labels={"tier": "front", "any": None})
    assert rule_requests.make_rule(found).name == "shop-*,api,tier=front,any"
    assert rule_requests.make_rule({**found, "rule": "late", "max_time": "30s"}).describe() == {
        "name": "late",
        "patterns": ["shop-*", "api"],
        "labels": {"tier": "front", "any": None},
        "max_containers": 100,
        "max_time_s": 30.0,
        "is_announced": False,
        "idle_s": None,
    }


def test_a_rule_without_a_selection_or_without_room_is_refused(complete):
    with pytest.raises(FleetError, match="say which containers to await: give containers or labels"):
        rule_requests.make_rule(complete(containers=None))
    with pytest.raises(FleetError, match="max_containers: 0 is too small"):
        complete(max_containers=0)
    with pytest.raises(FleetError, match="max_time"):
        rule_requests.make_rule(complete(max_time="soon"))
