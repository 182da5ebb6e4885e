# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of ftrace_capture: one call of the module on the host, and more only where the host lacks room."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_runner
from ansible_collections.crashcart.fleet.plugins.plugin_utils.controller_needs import find_missing_packages
from ansible_collections.crashcart.fleet.plugins.plugin_utils.fetching import FetchingAction
from ansible_collections.crashcart.fleet.plugins.plugin_utils.live_view import Guard, LiveView

_START = "start"
_FINISH = "finish"
_DEFAULT_S = 10.0
_OF_GUARD = ("containers", "leave", "_parts", "_broken", "_stamps", "_methods")
_OF_LATER_CALLS = ("dest", "docker_host", "format", "dat_version", "_methods")


class ActionModule(FetchingAction):
    """The action ftrace_capture."""

    module = "ftrace_capture"
    _may_ask = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Trace the selected containers, bring the captures into the host's folder below `dest`, and return them with their manifests."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        is_live = boolean(arguments.get("live", False), strict=False)
        if arguments.get("phase") == _START and not is_live:
            result: dict[str, Any] = self._execute_module(
                module_name="crashcart.fleet.ftrace_capture", module_args=arguments, task_vars=task_vars
            )
            return result
        if not is_live or arguments.get("dest"):
            self.check(arguments)
        try:
            result = self._show(arguments, task_vars) if is_live else self.bring(arguments, task_vars)
        except AnsibleConnectionFailure:
            host = str((task_vars or {}).get("inventory_hostname", "localhost"))
            self._display.warning(
                escape(
                    f"{host}: the connection broke. If traces had started there, the host finishes them without this controller:"
                    " then fetch from it (ftrace_fetch, or the playbook collect)"
                )
            )
            raise
        for name in ("cursor", "left", "leave"):
            result.pop(name, None)
        return result

    def _show(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Trace the one selected container, show its calls while they happen, and return the result of the trace's end."""
        hosts = (task_vars or {}).get("ansible_play_batch") or []
        if len(hosts) > 1 and not self._task.run_once:
            some = ", ".join(map(str, hosts[:3]))
            raise AnsibleActionFail(
                f"live shows one host, and this play has {len(hosts)} ({some}…): choose one, such as -l {hosts[0]}"
            )
        if arguments.get("phase", "whole") != "whole":
            raise AnsibleActionFail("live starts and ends the trace in one task: leave phase out")
        missing = find_missing_packages(["report"])
        if missing:
            raise AnsibleActionFail("; ".join(missing))
        started: dict[str, Any] = self._execute_module(
            module_name="crashcart.fleet.ftrace_capture",
            module_args={**arguments, "phase": _START},
            task_vars=task_vars,
        )
        described = started.pop("live", None)
        if started.get("failed") or not isinstance(described, dict):
            return started  # in check mode nothing was started
        guard = Guard(described, self._low_level_execute_command)
        view = LiveView(described, guard, self._display.display)
        problem = None
        try:
            view.show(float(arguments.get("seconds", _DEFAULT_S)))
        except FleetError as error:
            problem = str(error)
        return self._end(arguments, task_vars, guard, {**started, "shown": view.as_result()}, problem)

    def _end(
        self,
        arguments: dict[str, Any],
        task_vars: dict[str, Any] | None,
        guard: Guard,
        started: dict[str, Any],
        problem: str | None,
    ) -> dict[str, Any]:
        """End the trace that STARTED describes, and return the task's result. PROBLEM is why it could not be shown to its end."""
        ids = [one["id"] for one in started["instances"]]
        if arguments.get("dest"):
            kept = {name: arguments[name] for name in _OF_LATER_CALLS if name in arguments}
            rest = {"phase": _FINISH, "containers": ids, "leave": [], "allow_empty": True}
            result = self.join(started, self.bring({**kept, **rest}, task_vars))
            result.update(_find(result))
        else:
            result = started
            try:
                guard.drop()
            except FleetError as error:
                result = {**started, "failed": True, "msg": f"{error}; end the trace by the playbook stop"}
        if problem is None:
            return result
        return {**result, "failed": True, "msg": "; ".join(filter(None, (problem, result.get("msg"))))}

    def call(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Return the result of the module on the host for ARGUMENTS; the guard of the traces finishes them, if there is one."""
        if (
            self._may_ask
            and arguments.get("phase") == _FINISH
            and arguments.get("containers")
            and not self._task.check_mode
        ):
            self._may_ask = False
            asked: dict[str, Any] = self._execute_module(
                module_name="crashcart.fleet.ftrace_guard",
                module_args={name: arguments[name] for name in _OF_GUARD if name in arguments},
                task_vars=task_vars,
            )
            answer = asked.get("answer")
            if isinstance(answer, dict):
                return answer
        return super().call(arguments, task_vars)

    def list_next(self, result: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments that finish the traces of RESULT, whose call had ARGUMENTS and no room for all captures."""
        kept = {name: arguments[name] for name in _OF_LATER_CALLS if name in arguments}
        rest = {"phase": _FINISH, "containers": result["left"], "leave": result["leave"], "allow_empty": True}
        return {**kept, **rest}

    def join(self, earlier: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        """Return the EARLIER result, which tells what was traced, with the failures of a later RESULT."""
        failed = [*earlier.get("failed_containers", []), *result.get("failed_containers", [])]
        messages = [one["msg"] for one in (earlier, result) if boolean(one.get("failed", False), strict=False)]
        more = {"failed": True, "msg": "; ".join(dict.fromkeys(map(str, messages)))} if messages else {}
        return {**result, **earlier, "failed_containers": failed, **more}


def _find(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a report finds in the captures of RESULT, and the lines of RESULT with it; nothing where there is no report."""
    paths = [os.path.abspath(one["path"]) for one in result.get("captures", []) if one.get("path")]
    if not paths:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = report_runner.run({"captures": paths, "dest": folder, "formats": ["json"]}, folder)
    if report.get("failed"):
        return {"warnings": [*result.get("warnings", []), escape(f"no report could be made: {report.get('msg')}")]}
    found = report["findings"]
    return {"findings": found, "lines": [*result.get("lines", []), *(escape(one["statement"]) for one in found)]}
