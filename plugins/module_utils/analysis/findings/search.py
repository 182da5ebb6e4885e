# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what captures have in common, and in what they differ: all rules over all captures, merged and ranked."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.digest import Digest, digest
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding, Key, merge
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.registry import RULES
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_RETRIES = "storms"  # the rule that tells retries at a steady rate
MAX_SHOWN = 20
MAX_KEPT = 1000  # in findings.json
_MAX_KEYS = 20_000  # in memory
_MAX_OF_RULE = 500  # from one capture
_MAX_PROBLEMS = 20


class Search:
    """The findings of a report, capture by capture: `add` each one, then `finish`."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._found: dict[Key, Finding] = {}
        self._digests: list[Digest] = []
        self.captures = 0
        self.dropped = 0  # findings that neither have a place of their own nor are merged into others
        self.problems: list[str] = []  # rules that could not look at a capture, in words

    def add(self, capture: Capture) -> None:
        """Look at CAPTURE by each rule. A rule that fails is one of `problems`, and the others look all the same."""
        self.captures += 1
        for rule in self._rules:
            if rule.find is not None:
                with self._noting(rule.name, capture.file):
                    self._keep(rule.find(capture))
        with self._noting("all that compare captures", capture.file):
            self._digests.append(digest(capture))

    def finish(self) -> list[Finding]:
        """Return the findings, the worst first, at most MAX_KEPT of them; `dropped` counts the others. Call it once."""
        for rule in self._rules:
            if rule.find_across is not None and len(self._digests) > 1:
                with self._noting(rule.name, "all captures"):
                    self._keep(rule.find_across(self._digests))
        ranked = sorted(_leave_out_retold(self._found.values()), key=lambda finding: finding.rank)
        self.dropped += len(ranked[MAX_KEPT:])
        return ranked[:MAX_KEPT]

    @contextmanager
    def _noting(self, rule: str, where: str) -> Iterator[None]:
        """Add an exception of RULE, which looks at WHERE, to the problems: a capture may hold anything."""
        try:
            yield
        except Exception as error:
            if len(self.problems) < _MAX_PROBLEMS:
                self.problems.append(
                    escape(f"rule {rule} could not look at {where}: {type(error).__name__}: {error}")[:300]
                )

    def _keep(self, found: Iterator[Finding]) -> None:
        """Merge the findings FOUND, of one rule and one capture, into those of the captures before it."""
        ranked = sorted(found, key=lambda finding: finding.rank)
        self.dropped += len(ranked[_MAX_OF_RULE:])
        for finding in ranked[:_MAX_OF_RULE]:
            known = self._found.get(finding.key)
            if known is not None:
                self._found[finding.key] = merge(known, finding)
            elif len(self._found) < _MAX_KEYS:
                self._found[finding.key] = finding
            else:
                self.dropped += 1


def _leave_out_retold(findings: Iterable[Finding]) -> list[Finding]:
    """Return FINDINGS without the retries of what another finding tells, with its number of times, too."""
    all_findings = list(findings)
    told = {(finding.object, finding.error) for finding in all_findings if finding.rule != _RETRIES and finding.object}
    return [
        finding
        for finding in all_findings
        if finding.rule != _RETRIES or finding.error is None or (finding.object, finding.error) not in told
    ]
