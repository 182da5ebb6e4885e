# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of ftrace_report: captures are on the controller, where a process of its own decodes them."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, explain
from ansible_collections.crashcart.fleet.plugins.plugin_utils import controller_needs, report_runner
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import selection


class ActionModule(ActionBase):
    """The action ftrace_report."""

    _supports_async = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make the report on the controller, and return the process's result."""
        super().run(tmp, task_vars)
        _found, arguments = self.validate_argument_spec(
            report_runner.ARGUMENTS, required_one_of=report_runner.REQUIRED_ONE_OF
        )
        missing = controller_needs.find_missing_packages(["report"])
        if missing:
            raise AnsibleActionFail("; ".join(missing))
        request = {**arguments, "check_mode": bool(self._task.check_mode)}
        try:
            # As for any task of this machine, relative paths are below the playbook's folder.
            return selection.report(request, self._loader.get_basedir())
        except FleetError as error:  # Ansible would show the causes, too, which the message has
            raise AnsibleActionFail(str(error)) from None
        except OSError as error:
            raise AnsibleActionFail(explain(error)) from None
