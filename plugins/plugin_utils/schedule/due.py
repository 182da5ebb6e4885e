# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the times at which a schedule was due, from systemd's calendar expressions or from the five fields of crontab(5)."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime, timezone, tzinfo
from pathlib import Path

from zoneinfo import ZoneInfo

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.plugin_utils.schedule.plan import Plan

_ITERATIONS = 1000  # times that systemd is asked for at once
# The five fields of Debian's cron. Other readers of such fields know more words, of which cron makes nothing.
_CRON_ITEM = r"(?:\*|[0-9]+|[A-Za-z]{3})(?:-(?:[0-9]+|[A-Za-z]{3}))?(?:/[0-9]+)?"
_CRON = re.compile(rf"\s*{_CRON_ITEM}(?:,{_CRON_ITEM})*(?:\s+{_CRON_ITEM}(?:,{_CRON_ITEM})*){{4}}\s*")
# systemd 252 says "Iter. #2", later versions say "Iteration #2".
_FIELD = r"^\s*(?:Next elapse|Iter(?:\.|ation) #\d+): "
_ELAPSE = re.compile(_FIELD + r"\w{3} (\S+ \S+) UTC$", re.M)
_LOCAL = re.compile(_FIELD + r".*\n\s*\(in UTC\): ", re.M)
_LIMIT_S = 60


def list_due(plan: Plan, after: float, until: float) -> list[float]:
    """Return the times, in seconds since the epoch, at which PLAN was due after AFTER and not after UNTIL.

    Raises FleetError where the expression is none, or what reads it is not here.
    """
    return _list_of_cron(plan.cron, after, until) if plan.cron else _list_of_calendar(plan.calendar, after, until)


def _list_of_calendar(expression: str, after: float, until: float) -> list[float]:
    times: list[float] = []
    while True:
        some = _ask_systemd(expression, times[-1] if times else after)
        times += [time for time in some if time <= until]
        if len(some) < _ITERATIONS or some[-1] > until:
            return times


def _ask_systemd(expression: str, after: float) -> list[float]:
    """Return the next _ITERATIONS times after AFTER of systemd's calendar EXPRESSION, or as many as there are."""
    base = datetime.fromtimestamp(after, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    words = ["systemd-analyze", "calendar", f"--base-time={base}", f"--iterations={_ITERATIONS}", expression]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FleetError(f"systemd-analyze cannot be asked when the schedule was due: {error}") from error
    if done.returncode != 0:
        raise FleetError(f"{expression!r} is no calendar expression of systemd: {done.stderr.strip()[:200]}")
    return parse_times(done.stdout)


def parse_times(text: str) -> list[float]:
    """Return the times, in seconds since the epoch, that TEXT, the output of `systemd-analyze calendar`, lists."""
    # In a time zone that is not UTC, a line of its own has each time in UTC.
    found = (
        datetime.strptime(time, "%Y-%m-%d %H:%M:%S") for time in _ELAPSE.findall(_LOCAL.sub("Next elapse: ", text))
    )
    return [time.replace(tzinfo=timezone.utc).timestamp() for time in found]


def _list_of_cron(fields: str, after: float, until: float) -> list[float]:
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise FleetError(
            "this Python lacks cronsim, which reads the fields of cron: python -m pip install cronsim"
        ) from error
    if not _CRON.fullmatch(fields):
        raise FleetError(f"{fields!r} are not the five fields of crontab(5)")
    try:
        coming = CronSim(fields, datetime.fromtimestamp(after, find_time_zone()))
    except CronSimError as error:
        raise FleetError(f"{fields!r} are not the five fields of crontab(5): {error}") from error
    times: list[float] = []
    for due in coming:
        if due.timestamp() > until:
            break
        times.append(due.timestamp())
    return times


def find_time_zone() -> tzinfo:
    """Return this machine's time zone, by which cron counts; UTC where the machine names none."""
    path = Path("/etc/localtime")
    try:
        with path.open("rb") as file:
            return ZoneInfo.from_file(file, key=str(path.resolve()))
    except (OSError, ValueError):
        return timezone.utc
