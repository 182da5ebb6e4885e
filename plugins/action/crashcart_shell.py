# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole of crashcart_shell: the user's terminal belongs to the controller, so nothing else runs on a host."""

from __future__ import annotations

import os
import shlex
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.plugin_utils.terminal import NoTerminalError, open_terminal, run_at

_NOT_FOUND, _SSH_FAILED = 127, 255


class ActionModule(ActionBase):
    """The action crashcart_shell."""

    _supports_async = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task's line at the user's terminal and return its exit code. Fail where no shell could be started."""
        result = super().run(tmp, task_vars)
        _found, arguments = self.validate_argument_spec({"line": {"type": "str", "required": True}})
        words = shlex.split(arguments["line"])
        if self._task.check_mode:
            return {**result, "changed": True}
        try:
            terminal_fd = open_terminal(os.getppid())
        except NoTerminalError as error:
            raise AnsibleActionFail(str(error)) from error
        try:
            rc = run_at(terminal_fd, words)
        finally:
            os.close(terminal_fd)
        if rc in (_NOT_FOUND, _SSH_FAILED):
            raise AnsibleActionFail(
                f"the shell ended with exit code {rc}, probably before it could start: run this line yourself: {arguments['line']}"
            )
        if rc:
            # The user's last command may have failed, or sudo has refused to start the shell.
            self._display.display(f"crashcart_shell: it ended with exit code {rc}")
        return {**result, "changed": True, "failed": False, "rc": rc}
