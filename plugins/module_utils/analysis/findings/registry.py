# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All rules. A new rule is a file in rules/, a line in each of the two lists here, and a test."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings.rules import (
    connections,
    deaths,
    denied,
    differs,
    failures,
    leaks,
    limits,
    locks,
    names,
    programs,
    storms,
    waits,
)

RULES: tuple[Rule, ...] = tuple(
    module.RULE
    for module in (
        connections,
        deaths,
        denied,
        differs,
        failures,
        leaks,
        limits,
        locks,
        names,
        programs,
        storms,
        waits,
    )
)
