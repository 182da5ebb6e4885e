# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes that the tests start, each with all that it starts itself: none of them outlives the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

_started: list[subprocess.Popen[str]] = []


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start COMMAND in a session of its own, with its output in pipes."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    _started.append(process)
    return process


def bind(command: list[Any]) -> list[Any]:
    """COMMAND so that it is killed when the thread that starts it has ended, in whatever way."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


def end(process: subprocess.Popen[str], patience_s: float = 10) -> None:
    """End PROCESS and all of its session; it has PATIENCE_S to tidy up."""
    if process.returncode is None:
        process.terminate()
        deadline = time.monotonic() + patience_s
        while not _has_ended(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        _kill(process)
    process.communicate()


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether it has; it is not waited for yet, so that its number and its session's stay its own."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_all() -> None:
    """Kill what still runs."""
    for process in _started:
        if process.returncode is None:
            _kill(process)


def end_all_on_sigterm(clean_up: Callable[[], None]) -> None:
    """Have this process, when it is told to end, kill what still runs, call CLEAN_UP and end at once, whatever its threads wait for."""

    def end_now(number: int, _frame: object) -> NoReturn:
        end_all()
        clean_up()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end_now)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the session of PROCESS, which has not been waited for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
