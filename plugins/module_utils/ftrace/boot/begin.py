# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin and end standing rules by options that are kept on the host."""

from __future__ import annotations

from typing import Any, Collection, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import rule_requests
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import stop_rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.start import begin_rule


def begin(options: Mapping[str, Any], root: str, *, check_mode: bool = False) -> bool:
    """Begin the rule that OPTIONS of ftrace_instance describe, or change it to them; return True if something had to be changed.

    ROOT is the tracefs. Raises FleetError if the rule cannot be begun or changed. In CHECK_MODE nothing is changed.
    """
    parameters = rule_requests.complete(options, root, ttl=None)
    rule = rule_requests.make_rule(parameters)
    request = rule_requests.make_request(parameters, root)
    return begin_rule(rule, root, request, check_mode=check_mode)


def end(names: Collection[str]) -> None:
    """End the rules NAMES that run; what they have recorded stays for a fetch."""
    stop_rules(names.__contains__)
