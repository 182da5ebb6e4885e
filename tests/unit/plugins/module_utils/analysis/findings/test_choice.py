# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of fail_on: those that the documentation has, and those that nobody knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.findings import choice, registry
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.modules import ftrace_report

NAMES = sorted(rule.name for rule in registry.RULES)


def test_the_documentation_names_all_rules():
    (text,) = (
        line
        for line in yaml.safe_load(ftrace_report.DOCUMENTATION)["options"]["fail_on"]["description"]
        if "rules are" in line
    )
    assert re.findall(r"V\((\w+)\)", text) == NAMES
    page = Path(ftrace_report.__file__).parents[2].joinpath("docs/guide/report.md").read_text(encoding="utf-8")
    table = page.partition("| rule | finds |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == NAMES


def test_a_word_that_is_no_rule_is_named_with_the_one_that_may_be_meant():
    choice.Choice(["any", "critical", *NAMES])
    with pytest.raises(FleetError, match="fail_on: no rule is called 'failure': failures may be meant"):
        choice.Choice(["failure"])
    with pytest.raises(FleetError, match=f"no rule is called 'xyz': there are any, critical, {', '.join(NAMES)}"):
        choice.Choice(["xyz"])
