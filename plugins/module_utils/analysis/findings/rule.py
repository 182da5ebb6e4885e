# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The form of a rule. Each file in rules/ ends with its RULE, and registry.py lists the files.

Severities, so that rules rank alike:

| from | means | for example |
|---|---|---|
| 90 | a process died, or cannot start | SIGSEGV, out of memory, no such interpreter |
| 80 | a program cannot do its work (CRITICAL) | refused by its database, no space left, its limit reached |
| 60 | something fails again and again, or waits for long | a lock that another one holds, a missing file that is asked for all the time |
| 40 | something failed | a missing file, a denied call |
| 20 | worth a look | one of twenty is configured differently |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.capture import Capture
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.digest import Digest
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.finding import Finding

Find = Callable[[Capture], Iterator[Finding]]
FindAcross = Callable[[Sequence[Digest]], Iterator[Finding]]


@dataclass(frozen=True)
class Rule:
    """A rule: FIND looks at one capture after the other, FIND_ACROSS at the digests of all captures of a report at its end."""

    name: str  # that of the file
    title: str  # of what the rule finds, in a few words
    find: Find | None = None
    find_across: FindAcross | None = None
