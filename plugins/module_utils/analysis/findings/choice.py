# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Choose the findings that fail a task, by words of the option fail_on."""

from __future__ import annotations

import difflib
from typing import Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import CRITICAL, Finding
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.registry import RULES
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_ANY, _CRITICAL = "any", "critical"


class Choice:
    """The findings that WORDS mean: names of rules, `any`, or `critical`. Raises FleetError for other words."""

    def __init__(self, words: Sequence[str]) -> None:
        known = [_ANY, _CRITICAL, *sorted(rule.name for rule in RULES)]
        for word in words:
            if word not in known:
                near = difflib.get_close_matches(word, known, 1)
                hint = f"{near[0]} may be meant" if near else f"there are {', '.join(known)}"
                raise FleetError(f"fail_on: no rule is called {word!r}: {hint}")
        self._words = frozenset(words)

    def explain(self, findings: Sequence[Finding], path: str | None) -> str | None:
        """Return why FINDINGS, which are ranked and written to PATH, fail the task; None where none of them does."""
        chosen = [finding for finding in findings if self._includes(finding)]
        if not chosen:
            return None
        count = f"{len(chosen)} finding{'s' if len(chosen) != 1 else ''}"
        place = f"; all are in {path}" if path else ""
        return escape(f"{count} that fail_on names, the worst one: {chosen[0].statement[:300]}{place}")

    def _includes(self, finding: Finding) -> bool:
        is_critical = _CRITICAL in self._words and finding.severity >= CRITICAL
        return is_critical or _ANY in self._words or finding.rule in self._words
