# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ftrace_fetch."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.plugin_utils.fetching import FetchingAction


class ActionModule(FetchingAction):
    """The action ftrace_fetch."""

    module = "ftrace_fetch"

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Fetch all captures of the selected traces into the host's folder below `dest`, and return them with their manifests."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        self.check(arguments)
        return self.bring(arguments, task_vars)
