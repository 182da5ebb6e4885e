# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Records of what came of a run of a schedule: JSON for programs, and metrics for node_exporter."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SUCCESS, FAILURE, HOSTS_MISSING, SKIPPED = "success", "failure", "hosts_missing", "skipped"
STATUSES: Mapping[str, int] = {SUCCESS: 0, FAILURE: 1, HOSTS_MISSING: 3, SKIPPED: 75}
"""Outcome → exit status. 75 is EX_TEMPFAIL of sysexits.h: another run of the schedule, or of its store, goes on.

Python itself ends with 1 or 2, as where the program is gone, and systemd should count that as a failure.
"""
_STATES = ("ok", "failed", "unreachable")  # of a host, the worst last
RECORD = "last-run.json"


@dataclass(frozen=True)
class Host:
    """A host of a run. STATE: ok, failed or unreachable. MESSAGE: why, '' for ok."""

    state: str
    message: str = ""


@dataclass
class Run:
    """A run of a schedule. Times are seconds since the epoch.

    RUN: its id, by which the catalogue knows it. OUTCOME, STATUS: one of STATUSES, and the exit status for it. MESSAGE: the reason.
    HOSTS: the hosts by name. MISSED: times since the run before at which the schedule was due and did not run, the latest of MISSED_COUNT.
    MISSED_TOTAL: missed runs since the schedule was set up. LAST_SUCCESS: when a run without missing hosts has ended, 0.0 for never.
    LOG: the file with what the run has printed. DUE_SINCE: None, or where a signal, as a shutdown's, has cut the run off, the
    time since which nothing was made up for.
    """

    schedule: str
    run: str
    began: float
    ended: float = 0.0
    outcome: str = FAILURE
    status: int = STATUSES[FAILURE]
    message: str = ""
    hosts: dict[str, Host] = field(default_factory=dict)
    missed: list[float] = field(default_factory=list)
    missed_count: int = 0
    missed_total: int = 0
    last_success: float = 0.0
    log: str = ""
    due_since: float | None = None

    def end(self, outcome: str, message: str, now: float) -> None:
        """Note that the run has ended NOW with OUTCOME, for the reason MESSAGE."""
        self.outcome, self.status, self.message, self.ended = outcome, STATUSES[outcome], message, now
        if outcome == SUCCESS:
            self.last_success = now

    def list_missing(self) -> list[str]:
        """Return a sentence for each host whose captures did not come."""
        return [
            f"{name}: {host.state} ({host.message})" for name, host in sorted(self.hosts.items()) if host.state != "ok"
        ]


def merge(hosts: dict[str, Host], more: Mapping[str, Host]) -> None:
    """Add to HOSTS what came of MORE in another part of the run; of a host that is in both the worse state counts."""
    for name, host in more.items():
        known = hosts.get(name)
        if known is None or _STATES.index(host.state) > _STATES.index(known.state):
            hosts[name] = host


def judge(hosts: Mapping[str, Host], problem: str) -> tuple[str, str]:
    """Return the outcome of a run and the reason, from what came of HOSTS and from PROBLEM, which concerns all of them, '' for none."""
    if problem:
        return FAILURE, problem
    if not hosts:
        return FAILURE, "no host of the inventory was meant: look at the schedule's inventory and limit"
    missing = sum(host.state != "ok" for host in hosts.values())
    if not missing:
        return SUCCESS, f"{len(hosts)} hosts"
    text = f"{missing} of {len(hosts)} hosts are missing; what they have comes with the next run"
    return (FAILURE if missing == len(hosts) else HOSTS_MISSING), text


def read_record(state: str) -> dict[str, Any]:
    """Return the record of the last run in the folder STATE; {} where there is none that can be read."""
    try:
        record = json.loads(Path(state, RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(run: Run, state: str) -> None:
    """Write the record of RUN to the folder STATE."""
    _replace(Path(state, RECORD), json.dumps(asdict(run), indent=2) + "\n")


def write_metrics(run: Run, folder: str) -> None:
    """Write the metrics of RUN to FOLDER, from which node_exporter's textfile collector reads."""
    # The role removes the file by this name.
    _replace(Path(folder, f"crashcart_schedule_{run.schedule}.prom"), format_metrics(run))


def format_metrics(run: Run) -> str:
    """Return the metrics of RUN in Prometheus' text format."""
    states = Counter(host.state for host in run.hosts.values())
    found: list[tuple[str, str, str, list[tuple[str, float]]]] = [
        ("last_run_timestamp_seconds", "gauge", "When the last run began.", [("", run.began)]),
        ("last_run_duration_seconds", "gauge", "How long the last run took.", [("", run.ended - run.began)]),
        (
            "last_run_status",
            "gauge",
            "Exit status of the last run: 0 success, 1 failure, 3 hosts missing.",
            [("", run.status)],
        ),
        (
            "last_success_timestamp_seconds",
            "gauge",
            "When a run without missing hosts last ended.",
            [("", run.last_success)],
        ),
        ("missed_runs_total", "counter", "Runs that were due and did not begin.", [("", run.missed_total)]),
        (
            "last_run_hosts",
            "gauge",
            "Hosts of the last run.",
            [(f',state="{state}"', states[state]) for state in _STATES],
        ),
    ]
    lines = []
    for name, kind, text, values in found:
        metric = f"crashcart_schedule_{name}"
        lines += [f"# HELP {metric} {text}", f"# TYPE {metric} {kind}"]
        lines += [f'{metric}{{schedule="{run.schedule}"{label}}} {value:.17g}' for label, value in values]
    return "\n".join(lines) + "\n"


def _replace(path: Path, text: str) -> None:
    """Make TEXT the content of the file PATH, which others may read at any time."""
    # A process that was killed has left one by this name, which the role removes, too.
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    try:
        with open(new, "x", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.rename(new, path)
    finally:
        new.unlink(missing_ok=True)
