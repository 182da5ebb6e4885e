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
  - Writes a file of JSON objects, one a line. During a run these tell which hosts are meant (C(meant)), which task a host is at (C(host),
    C(task), or V(null) when it has ended), and why a host failed (C(host), C(state), C(message)).
  - The last one, at the end of C(ansible-playbook), has the state of each host (V(ok), V(failed) or V(unreachable)) and the first message of
    those that failed, the hosts that were meant and not tried, and the message of a task that failed for all hosts.
  - The schedules that the role C(crashcart.fleet.schedule) sets up use it. By itself it does nothing.
author:
  - crashcart.fleet contributors (@crashcart-fleet)
version_added: 0.1.0
options:
  path:
    description: The file to add the lines to. Without it, nothing is written.
    type: path
    env:
      - name: CRASHCART_RUN_RECORD
"""

import json
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
        self._note(meant=sorted(self._meant))

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Note which task HOST is at: should the run be ended, the record names those that it waited for."""
        self._note(host=host.get_name(), task=task.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        """Note that the host is done with its task."""
        self._note(host=result.host.get_name(), task=None)

    def v2_runner_on_skipped(self, result: Any) -> None:
        """Note that the host is done with its task."""
        self.v2_runner_on_ok(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Note why a host failed, unless that does not matter."""
        self.v2_runner_on_ok(result)
        if ignore_errors:
            return
        message = _read_message(result)
        if result.task.run_once:
            self._problem = self._problem or f"{result.task.get_name()}: {message}"
        else:
            self._fail(result.host.get_name(), "failed", message)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Note why a host could not be reached."""
        self.v2_runner_on_ok(result)
        self._fail(result.host.get_name(), "unreachable", _read_message(result))

    def _fail(self, host: str, state: str, message: str) -> None:
        if host not in self._messages:
            self._messages[host] = message
            self._note(host=host, state=state, message=message)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write what came of each host."""
        hosts = {}
        for name in stats.processed:
            found = stats.summarize(name)
            state = "unreachable" if found["unreachable"] else "failed" if name in self._messages else "ok"
            hosts[name] = {"state": state, "message": self._messages.get(name, "")}
        self._note(hosts=hosts, untried=sorted(self._meant - hosts.keys()), problem=self._problem)

    def _note(self, **about: Any) -> None:
        """Add a line with ABOUT."""
        path = self.get_option("path")
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(about) + "\n")


def _read_message(result: Any) -> str:
    """Return the message of RESULT in one line."""
    return " ".join(str(result.result.get("msg", "it failed")).split())[:_MAX_MESSAGE]
