# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of crashcart_build: show the progress of a build on this machine. A build elsewhere shows none."""

from __future__ import annotations

import tempfile
import threading
from typing import IO, Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_INTERVAL_S = 0.2


class ActionModule(ActionBase):
    """The action crashcart_build."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, show its progress meanwhile, and return its result."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._connection.transport != "local" or self._task.async_val:
            return self._execute(arguments, task_vars)
        with tempfile.NamedTemporaryFile("r", prefix="crashcart-build-", encoding="utf-8") as file:
            ended = threading.Event()
            follower = threading.Thread(target=_follow, args=(file, ended), daemon=True)
            follower.start()
            try:
                return self._execute({**arguments, "_progress": file.name}, task_vars)
            finally:
                ended.set()
                follower.join()

    def _execute(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        return self._execute_module(  # type: ignore[no-any-return]
            module_name="crashcart.fleet.crashcart_build",
            module_args=arguments,
            task_vars=task_vars,
            wrap_async=bool(self._task.async_val),
        )


def _follow(file: IO[str], ended: threading.Event) -> None:
    """Show the lines that the module writes to FILE until ENDED is set. Lines that begin with a blank are details for -vv."""
    display = Display()
    last = False
    while not last:
        last = ended.wait(_INTERVAL_S)
        for line in file:
            text = escape(f"crashcart_build: {line.strip()}")
            if line.startswith(" "):
                display.vv(text)
            else:
                display.display(text)
