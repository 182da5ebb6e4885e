# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of ftrace_store: the captures of a store are on the controller."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, explain
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store import update

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "phase": {"type": "str", "choices": ["check", "update"], "default": "update"},
    "run": {"type": "str"},
    "captures": {"type": "list", "elements": "path"},
    "findings": {"type": "path"},
    "keep_age": {"type": "str"},
    "keep_count": {"type": "str"},
    "keep_size": {"type": "str"},
    "keep_total": {"type": "str"},
    "keep_free": {"type": "str"},
}


class ActionModule(ActionBase):
    """The action ftrace_store."""

    _supports_async = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do the phase on the controller, and return its result."""
        super().run(tmp, task_vars)
        _found, arguments = self.validate_argument_spec(ARGUMENTS)
        try:
            # As for any task of this machine, relative paths are below the playbook's folder.
            request = update.make_request(arguments, self._loader.get_basedir(), check_mode=bool(self._task.check_mode))
            return update.check(request) if arguments["phase"] == "check" else update.update(request)
        except FleetError as error:  # Ansible would show the causes, too, which the message has
            raise AnsibleActionFail(str(error), result=error.result) from None
        except OSError as error:
            raise AnsibleActionFail(explain(error)) from None
