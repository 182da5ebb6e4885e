# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Select the captures of a report from the catalogue of their folder: by time, host, container and run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds
from ansible_collections.crashcart.fleet.plugins.plugin_utils import report_runner
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.catalogue import open_catalogue
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.database import NAME
from ansible_collections.crashcart.fleet.plugins.plugin_utils.store.records import SECOND_NS

_TIMES, _LISTS = ("since", "until"), ("hosts", "containers", "runs")
OPTIONS = (*_TIMES, *_LISTS)
_MAX_NAMED = 20  # files that cannot be read, in the warnings


@dataclass(frozen=True)
class Selection:
    """The options of a selection: SINCE_NS and UNTIL_NS, nanoseconds since the epoch or None; HOSTS, CONTAINERS: globs; RUNS: ids of runs.

    TEXT has them as the user wrote them.
    """

    since_ns: int | None
    until_ns: int | None
    hosts: Sequence[str]
    containers: Sequence[str]
    runs: Sequence[str]
    text: str


def parse_selection(arguments: Mapping[str, Any], now_ns: int) -> Selection | None:
    """Return the selection in ARGUMENTS, options of ftrace_report, at NOW_NS; None if they select nothing. Raise FleetError for a wrong one."""
    given = {name: arguments[name] for name in OPTIONS if arguments.get(name)}
    if not given:
        return None
    times = {name: parse_moment(given[name], name, now_ns) if name in given else None for name in _TIMES}
    since_ns, until_ns = times["since"], times["until"]
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise FleetError(f"since={given['since']} is later than until={given['until']}: exchange them")
    shown = (f"{name}={value if name in _TIMES else ','.join(value)}" for name, value in given.items())
    hosts, containers, runs = (given.get(name, []) for name in _LISTS)
    return Selection(since_ns, until_ns, hosts, containers, runs, escape(" ".join(shown)))


def parse_moment(text: str, option: str, now_ns: int) -> int:
    """Return the time that TEXT means, in nanoseconds since the epoch: a time in ISO 8601, UTC unless it says otherwise, or 2h before NOW_NS.

    Raises FleetError, which names OPTION, for what is neither.
    """
    text = text.strip()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            seconds = parse_seconds(text, option)
        except FleetError as error:
            raise FleetError(
                f"{option}: {text!r} is no time: write for example 2h or 3d (ago), 2026-11-29 or 2026-11-29T10:00:00Z"
            ) from error
        return now_ns - int((seconds or 0) * SECOND_NS)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    since_epoch = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    return (since_epoch.days * 86400 + since_epoch.seconds) * SECOND_NS + since_epoch.microseconds * 1000


def select_captures(folder: str, selection: Selection, warnings: list[str], *, check_mode: bool) -> list[str]:
    """Return the paths of the captures below FOLDER that SELECTION means, in the order of time.

    Its catalogue is brought up to date first, in memory in CHECK_MODE or where it cannot be written. WARNINGS names what cannot be read.
    """
    in_memory = check_mode or not is_writable(folder)
    with open_catalogue(folder, warnings, in_memory=in_memory) as catalogue:
        found = catalogue.sync()
        chosen = catalogue.select(
            selection.since_ns, selection.until_ns, selection.hosts, selection.containers, selection.runs
        )
    problems = list(found.problems.values())
    warnings += [f"not selected: {problem}" for problem in problems[:_MAX_NAMED]]
    if len(problems) > _MAX_NAMED:
        warnings.append(f"not selected: {len(problems) - _MAX_NAMED} more files that cannot be read")
    return [os.path.join(folder, record.path) for record in chosen]


def report(request: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Return the result of ftrace_report for REQUEST, its arguments and check_mode, whose relative paths are below the folder BASE.

    A report is made of the captures that its selection means, if it has one. Raises FleetError for a wrong selection.
    """
    own = {name: value for name, value in request.items() if name not in OPTIONS}
    selection = parse_selection(request, time.time_ns())
    if selection is None:
        return report_runner.run(own, base)
    source = request.get("src")
    if not source or request.get("captures") is not None:
        raise FleetError(f"{selection.text} selects captures of a folder: give src, and not captures")
    folder = os.path.join(base, source)
    if not os.path.isdir(folder):
        # One capture is named more exactly than by any selection, which may be in shared variables. What is missing is named there, too.
        result = report_runner.run(own, base)
        if os.path.lexists(folder):
            _add_warnings(result, [f"{source} is one capture: {selection.text} selects nothing"])
        return result
    warnings: list[str] = []
    captures = select_captures(folder, selection, warnings, check_mode=bool(request.get("check_mode")))
    result = report_runner.run({**own, "captures": captures}, base)
    if not captures and "lines" in result:
        result["lines"] = [escape(f"No capture in {source} matches {selection.text}: there is nothing to report on.")]
    return _add_warnings(result, warnings)


def _add_warnings(result: dict[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    if warnings:
        result["warnings"] = [*result.get("warnings", []), *warnings]
    return result


def is_writable(folder: str) -> bool:
    """Return True if this user can write the catalogue in FOLDER, or make one there."""
    path = os.path.join(folder, NAME)
    return os.access(folder, os.W_OK | os.X_OK) and (not os.path.lexists(path) or os.access(path, os.R_OK | os.W_OK))
