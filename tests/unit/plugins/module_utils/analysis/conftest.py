# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load the compiled pass once for all tests here, before processes are forked from this one."""

from __future__ import annotations

import io

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

summarize(Trace(io.BytesIO(pages.pack_trace([[pages.pack_page(1, [pages.pack_event(pages.make_enter(1, 1))])]]))), {})
