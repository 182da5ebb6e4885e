# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Trace containers by the playbook, as operators do, and read what it finds: the lines that it prints, and findings.json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import host

_HEADING = re.compile(r"^TASK \[.*\bShow the report\]", re.M)

# What a kernel without a way to record paths, and a program without a C library, make ftrace_instance say.
_LACKING = ("the paths of system calls cannot be recorded on this host", "with functions that take paths")


@dataclass(frozen=True)
class Answer:
    """The output of a run of trace.yml.

    LINES: of its report on the screen. FINDINGS: of findings.json, the worst first. CAPTURES: of summary.json.
    """

    lines: list[str]
    findings: list[dict[str, Any]]
    captures: list[dict[str, Any]]

    def list_about(self, container: str) -> list[dict[str, Any]]:
        """Return all findings about CONTAINER, the worst first."""
        return [
            finding for finding in self.findings if any(place["container"] == container for place in finding["where"])
        ]

    def count_events(self) -> int:
        """Return how many events were recorded."""
        return sum(capture["events"] for capture in self.captures)


def choose_paths(way: str, container: str) -> dict[str, str]:
    """Return the options that record paths by WAY. The test is skipped where this kernel, or a program of CONTAINER, does not have it."""
    if way == "none":
        return {"paths": "false"}
    wish = {"paths": "true", "paths_by": way}
    try:
        host.call_module("ftrace_instance", check_mode=True, containers=[container], syscalls=["openat"], **wish)
    except host.ModuleFailed as failed:
        if not any(reason in str(failed) for reason in _LACKING):
            raise
        pytest.skip(f"{way}: {failed}")
    return wish


def trace(containers: Sequence[str], dest: Path, seconds: float, **variables: Any) -> Answer:
    """Trace CONTAINERS for so many SECONDS by the playbook, and return its answer."""
    done = host.playbook(
        "trace",
        *("-l", "localhost"),
        containers=list(containers),
        dest=str(dest),
        seconds=max(1, round(host.seconds(seconds))),
        **{"profile": "diagnose", **variables},
    )
    findings = json.loads((dest / "report/findings.json").read_text())["findings"]
    captures = json.loads((dest / "report/summary.json").read_text())["captures"]
    return Answer(parse_report(done.stdout), findings, captures)


def parse_report(stdout: str) -> list[str]:
    """Return the lines of the report in STDOUT, which a playbook has printed. Raises AssertionError where it has none."""
    found = _HEADING.search(stdout)
    assert found, f"no report: {stdout}"
    text = re.split(r"^(?:TASK|PLAY) ", stdout[found.end() :], maxsplit=1, flags=re.M)[0]
    lines: list[str] = yaml.safe_load(text.partition("=>")[2])["msg"]
    return lines
