# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds need the integration tests' support and neither their engine nor their host."""

from __future__ import annotations

import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "integration"))

# A shell has what it starts in the background ignore this, and so all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
