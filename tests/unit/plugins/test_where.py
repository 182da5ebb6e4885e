# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page that says where things are decided names files that are there."""

from __future__ import annotations

import re
from pathlib import Path

from ansible_collections.crashcart.fleet.plugins.module_utils import errors

TOP = Path(errors.__file__).parents[2]
PAGE = TOP / "docs/where.md"


def test_each_question_has_a_file():
    answers = re.findall(r"^\| .*\? \| `([\w/.]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(answers) == len(set(answers)) == 20
    for answer in answers:
        path = TOP / answer if answer.startswith("plugins/") else TOP / "plugins/module_utils" / answer
        assert path.is_file(), answer
