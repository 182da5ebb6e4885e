# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make findings.json, whose form docs/findings.schema.json publishes."""

from __future__ import annotations

import json
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, describe

VERSION = 1


def make_document(findings: Sequence[Finding], captures: int, dropped: int, problems: Sequence[str]) -> dict[str, Any]:
    """Return the content of findings.json for FINDINGS, which are ranked, of so many CAPTURES.

    DROPPED is the number of findings that have no place in it, PROBLEMS are those of rules that could not look at a capture.
    """
    return {
        "version": VERSION,
        "captures": captures,
        "findings": [describe(finding) for finding in findings],
        "dropped": dropped,
        "problems": list(problems),
    }


def format_document(document: dict[str, Any]) -> str:
    """Return DOCUMENT as the text of findings.json, one finding a line."""
    rows = ",\n".join(f"  {json.dumps(finding)}" for finding in document["findings"])
    listed = f"[\n{rows}\n ]" if rows else "[]"
    rest = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items() if name != "findings"]
    return "{\n" + ",\n".join([*rest, f' "findings": {listed}']) + "\n}\n"
