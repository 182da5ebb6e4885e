# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Record and tell who began and ended a trace, and when. A host knows accounts only, and never which controller called."""

from __future__ import annotations

import os
import time
from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import find_account

_NO_LOGIN = 2**32 - 1


def describe_caller() -> dict[str, Any]:
    """Return the time (seconds since the epoch), the user of this process, and the login user.

    The kernel remembers the login user across sudo and su (/proc/self/loginuid, proc(5)). Without one, SUDO_USER counts; None if it is
    not set either.
    """
    return {"time": time.time(), "user": _find_name(os.geteuid()), "login": _find_login()}


def _find_login() -> str | None:
    try:
        with open("/proc/self/loginuid", encoding="ascii") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        uid = _NO_LOGIN
    return _find_name(uid) if uid != _NO_LOGIN else os.environ.get("SUDO_USER") or None


def _find_name(uid: int) -> str:
    return find_account(uid).name or str(uid)


def summarize(
    begun: Mapping[str, Any] | None,
    ended: Mapping[str, Any] | None,
    stopped: str | None,
    expires: float | None,
    *,
    is_on: bool,
) -> str:
    """Return a trace's history in one line.

    BEGUN and ENDED are what describe_caller returned then; None if not known. STOPPED is why the trace ended by itself; None if it did not.
    EXPIRES is when its ttl ends, in seconds since the epoch. IS_ON is True if it traces now.
    """
    text = "begun by somebody who is not known"
    if begun is not None:
        text = f"begun {_format_time(begun['time'])} by {_format_caller(begun)}"
    if is_on:
        return f"{text}, records" + (
            f" until {_format_time(expires)} by its ttl" if expires is not None else " without a ttl"
        )
    when = f" {_format_time(ended['time'])}" if ended is not None else ""
    if stopped is not None:
        return f"{text}, stopped{when}: {stopped}"
    if ended is not None and ended["user"] is not None:
        return f"{text}, stopped{when} by {_format_caller(ended)}"
    return f"{text}, does not record"


def _format_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _format_caller(caller: Mapping[str, Any]) -> str:
    login = caller["login"]
    return f"{caller['user']} (login {login})" if login not in (None, caller["user"]) else str(caller["user"])
