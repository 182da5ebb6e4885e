# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pytest imports test files by their names alone, so two of one name cannot be run together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def test_each_test_file_has_a_name_of_its_own():
    counts = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(counts) > 100 and max(counts.values()) == 1, counts.most_common(3)
