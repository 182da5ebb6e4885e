# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let the tests of controllers find what the tests of hosts have."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("controllers", "engines", "fleet", "integration")]

from support import matrix

pytest_runtest_logreport = matrix.pytest_runtest_logreport  # writes down what tests have shown
