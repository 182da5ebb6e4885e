# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the results of a playbook as lines of JSON for tests: a line for each task and host, and one for the recap."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: results
type: stdout
short_description: Lines of JSON for tests
description:
  - Prints one line for each task and host, and one with the recap.
"""


class CallbackModule(CallbackBase):
    """The callback plugin `results`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "results"

    def _tell(self, status: str, result: Any) -> None:
        line = {"status": status, "task": result.task_name, "host": result.host.get_name(), "result": result.result}
        print(json.dumps(line, default=str))

    def v2_runner_on_ok(self, result: Any) -> None:
        self._tell("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._tell("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._tell("unreachable", result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        print(json.dumps({"stats": {host: stats.summarize(host) for host in stats.processed}}))
