# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the tests' processes in sessions of their own, and end each with all processes that it starts, before the tests end."""

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
    """Return COMMAND extended so that it is killed at the end of the thread that starts it, however the thread ends."""
    return ["setpriv", "--pdeathsig", "KILL", *command]


def end(process: subprocess.Popen[str], patience_s: float = 10) -> None:
    """End PROCESS, which has PATIENCE_S seconds to tidy up, and kill the rest of its session."""
    if process.returncode is None:
        process.terminate()
        deadline = time.monotonic() + patience_s
        while not _has_ended(process) and time.monotonic() < deadline:
            time.sleep(0.05)
        _kill(process)
    process.communicate()


def _has_ended(process: subprocess.Popen[str]) -> bool:
    """Return True if PROCESS has ended. It stays a zombie, so that its number and its session's are not used again."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_all() -> None:
    """Kill the sessions of all started processes that still run."""
    for process in _started:
        if process.returncode is None:
            _kill(process)


def end_all_on_sigterm(clean_up: Callable[[], None]) -> None:
    """Make SIGTERM kill all started processes, call CLEAN_UP() and end this process at once, whatever its threads wait for."""

    def end_now(number: int, _frame: object) -> NoReturn:
        end_all()
        clean_up()
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, end_now)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill the session of PROCESS, which has not been waited for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
