# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Call the collection's functions for several containers without a module. Like a module they raise where a container fails."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import attach as attaching
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import Command, Output
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import plan, start
from support import host


def attach(containers: list[Container], method: str = "fsmount", ttl_s: float | None = None) -> attaching.Change:
    """Attach the default image to CONTAINERS."""
    outcome = Outcome()
    change = attaching.ensure_attached(containers, outcome, "default", None, method, ttl_s, check_mode=False)
    outcome.check(containers, "attached")
    return change


def detach(containers: list[Container]) -> attaching.Change:
    """Detach every image from CONTAINERS."""
    outcome = Outcome()
    change = attaching.ensure_detached(containers, outcome, attaching.Detaching(), check_mode=False)
    outcome.check(containers, "detached")
    return change


def execute(containers: list[Container], command: Command, server: Server) -> list[dict[str, Any]]:
    """Run COMMAND in CONTAINERS and return the results."""
    outcome = Outcome()
    results = execution.execute(containers, outcome, command, server, Output(), check_mode=False)
    outcome.check(containers, "run")
    return results


def start_traces(containers: list[Container], wish: plan.TraceRequest, **more: Any) -> start.Started:
    """Start traces of CONTAINERS by WISH."""
    outcome = Outcome()
    with ExitStack() as begun:
        started = start.ensure_started(containers, outcome, begun, host.TRACEFS, wish, check_mode=False, **more)
        begun.pop_all()
    outcome.check(containers, "traced")
    return started
