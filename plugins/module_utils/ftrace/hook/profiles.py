# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make of a profile of the start hook the rule for its containers, and what their trace records."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import rule_requests
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.plan import TraceRequest
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_RULE_PREFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds


def make_rule(profile: str, options: Mapping[str, Any]) -> Rule:
    """Return the rule for the containers that are started with PROFILE, which has OPTIONS; raises FleetError for times that are none."""
    return Rule(
        name=HOOK_RULE_PREFIX + profile,
        max_containers=options["max_containers"],
        max_time_s=parse_seconds(options["max_time"], "max_time"),
        is_announced=True,
        idle_s=parse_seconds(options["idle"], "idle"),
    )


def make_request(options: Mapping[str, Any], root: str) -> TraceRequest:
    """Return the request for the trace of a profile with OPTIONS. ROOT is the tracefs. Raises FleetError for options that a rule cannot have."""
    return rule_requests.make_request(rule_requests.complete(options, root, ttl=None), root)
