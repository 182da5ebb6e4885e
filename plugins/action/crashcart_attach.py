# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of crashcart_attach: turn the host's shell commands into commands of the controller."""

from __future__ import annotations

import shlex
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.crashcart.fleet.plugins.module_utils.summaries import summarize_attachment

_DEFAULT_SSH_ARGUMENTS = "-C -o ControlMaster=auto -o ControlPersist=60s"


class ActionModule(ActionBase):
    """The action crashcart_attach."""

    _supports_async = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module and return its result with shell commands for the controller."""
        super().run(tmp, task_vars)
        result: dict[str, Any] = self._execute_module(
            module_name="crashcart.fleet.crashcart_attach", module_args=dict(self._task.args), task_vars=task_vars
        )
        for attachment in result.get("attachments", ()):
            attachment["shell"] = self._extend(attachment["shell"])
        if "attachments" in result:
            result["lines"] = [summarize_attachment(attachment) for attachment in result["attachments"]]
        return result

    def _extend(self, line: str) -> str:
        """Return LINE, a command for the host, as a command for the controller."""
        become = self._connection.become
        # The base class decides in the same way: the login user does not become itself.
        if (
            become is not None
            and become.name.rpartition(".")[2] in ("sudo", "doas", "dzdo")
            and self._get_remote_user() != self.get_become_option("become_user")
        ):
            line = f"{become.name.rpartition('.')[2]} {line}"
        if self._connection.transport != "ssh":
            return line
        return shlex.join([*self._list_ssh_words(), line])

    def _list_ssh_words(self) -> list[str]:
        option = self._connection.get_option
        words = ["ssh", "-t"]
        if option("port"):
            words += ["-p", str(option("port"))]
        if option("private_key_file"):
            words += ["-i", str(option("private_key_file"))]
        for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
            text = option(name) or ""
            words += shlex.split(text) if text != _DEFAULT_SSH_ARGUMENTS else []
        user = option("remote_user")
        return [*words, f"{user}@{option('host')}" if user else str(option("host"))]
