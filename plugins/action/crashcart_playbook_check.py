# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of crashcart_playbook_check: it checks variables and packages of the controller, so nothing runs on a host."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ansible_collections.crashcart.fleet.plugins.plugin_utils import (
    command_line,
    controller_needs,
    playbook_values,
    playbook_variables,
)


class ActionModule(ActionBase):
    """The action crashcart_playbook_check."""

    _supports_async = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check the variables of all hosts of the play and the controller's packages, and fail with all problems at once."""
        result = super().run(tmp, task_vars)
        _found, arguments = self.validate_argument_spec(
            {"needs": {"type": "list", "elements": "str", "choices": list(_NEEDS), "default": []}}
        )
        variables = task_vars or {}
        needs = arguments["needs"]
        own = variables["hostvars"][variables["inventory_hostname"]]
        # hostvars lacks the variables of the play itself, such as those of import_playbook.
        of_play = {name: value for name, value in variables.items() if name not in own}
        problems: dict[str, list[str]] = {}  # problem → hosts that have it
        for host in variables["ansible_play_hosts_all"]:
            # It looks only at what is asked for: another variable may be a template that needs the host's facts.
            of_host = ChainMap(variables["hostvars"][host], of_play)
            for problem in (
                *playbook_variables.find_unknown(of_host),
                *playbook_variables.find_dropped(of_host),
                *playbook_variables.find_misshapen(of_host),
                *playbook_values.find_wrong(of_host),
                *playbook_variables.find_missing(of_host, needs),
            ):
                problems.setdefault(problem, []).append(host)
        count = len(variables["ansible_play_hosts_all"])
        messages = [
            problem if len(hosts) == count else f"{problem} (on {', '.join(hosts)})"
            for problem, hosts in problems.items()
        ] + controller_needs.find_missing(needs, self._find_dest(variables))
        if messages:
            return {**result, "failed": True, "msg": "; ".join(messages)}
        return {
            **result,
            "changed": False,
            "given": dict(load_extra_vars(self._loader)),
            "environment": command_line.make_environment(context.CLIARGS),
            "questions": command_line.list_questions(context.CLIARGS),
        }

    def _find_dest(self, variables: dict[str, Any]) -> str:
        """Return the controller's folder for captures."""
        given = variables.get("trace_dest") or variables.get("crashcart_dest")
        return str(self._templar.template(given)) if given else "traces"


_NEEDS = ("containers", "command", "report", "report_packages", "build", "cron", "terminal")
