# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Note, for a schedule, what came of each host of a run of ansible-playbook."""

from __future__ import annotations

DOCUMENTATION = """
name: run_record
type: notification
short_description: Notes what came of each host
description:
  - Writes, at the end of C(ansible-playbook), a JSON file with the state of each host (V(ok), V(failed) or V(unreachable)) and the first
    message of those that failed, with the hosts that were meant and not tried, and with the message of a task that failed for all hosts.
  - The schedules that the role C(crashcart.fleet.schedule) sets up use it. By itself it does nothing.
author:
  - crashcart.fleet contributors (@crashcart-fleet)
version_added: 0.1.0
options:
  path:
    description: The file to write. Without it, nothing is written.
    type: path
    env:
      - name: CRASHCART_RUN_RECORD
"""

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

_MAX_MESSAGE = 500  # characters


class CallbackModule(CallbackBase):
    """The callback plugin `run_record`."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "crashcart.fleet.run_record"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._messages: dict[str, str] = {}
        self._problem = ""
        self._meant: set[str] = set()

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Note which hosts are meant: a play ends when all hosts of a turn (`serial`) have failed, and tries no others."""
        self._meant.update(play.get_variable_manager().get_vars(play=play)["ansible_play_hosts_all"])

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note why a host failed, unless that does not matter."""
        if ignore_errors:
            return
        message = _read_message(result)
        if result.task.run_once:
            self._problem = self._problem or f"{result.task.get_name()}: {message}"
        else:
            self._messages.setdefault(result.host.get_name(), message)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note why a host could not be reached."""
        self._messages.setdefault(result.host.get_name(), _read_message(result))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write what was noted."""
        path = self.get_option("path")
        if not path:
            return
        hosts = {}
        for name in stats.processed:
            found = stats.summarize(name)
            state = "unreachable" if found["unreachable"] else "failed" if name in self._messages else "ok"
            hosts[name] = {"state": state, "message": self._messages.get(name, "")}
        with open(path + ".new", "w", encoding="utf-8") as file:
            untried = sorted(self._meant - hosts.keys())
            json.dump({"hosts": hosts, "untried": untried, "problem": self._problem}, file)
        os.rename(path + ".new", path)


def _read_message(result: Any) -> str:
    """Return the message of RESULT in one line."""
    return " ".join(str(result.result.get("msg", "it failed")).split())[:_MAX_MESSAGE]
