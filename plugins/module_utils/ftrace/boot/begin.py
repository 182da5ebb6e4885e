# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin and end standing rules by options that are kept on the host."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Collection, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import rule_requests
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.end import stop
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import find_instance


def begin(options: Mapping[str, Any], root: str, *, check_mode: bool = False) -> bool:
    """Have the rule run that OPTIONS of ftrace_instance describe; return True if it did not, or not so. ROOT is the tracefs.

    Raises FleetError where it cannot be. In CHECK_MODE nothing begins.
    """
    parameters = rule_requests.complete(options, root, ttl=None)
    rule = rule_requests.make_rule(parameters)
    request = rule_requests.make_request(parameters, root)
    outcome = Outcome()
    with ExitStack() as begun:
        started = start.ensure_awaiting(rule, outcome, begun, root, request, check_mode=check_mode)
        outcome.raise_first()
        begun.pop_all()
    if not check_mode:
        client.ensure_recorder()  # somebody may have killed it
    return started.changed


def end(names: Collection[str]) -> None:
    """End the rules NAMES that run; what they have recorded stays for a fetch."""
    wanted = {Rule(name).as_container().id for name in names}
    found = [
        find_instance(order.root, order.container) for order in orders.list_orders() if order.container.id in wanted
    ]
    outcome = Outcome()
    stop([trace for trace in found if trace.find_state() == "started"], outcome)
    outcome.raise_first()
