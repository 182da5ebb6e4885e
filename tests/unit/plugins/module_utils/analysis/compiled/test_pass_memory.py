# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pass has tables of more than a hundred megabytes of addresses, so it must not wait for Python's search for circles."""

from __future__ import annotations

import gc
import io
import weakref

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.compiled.capture_pass import CapturePass
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages


@pytest.mark.parametrize("is_run", [True, False])
def test_a_pass_is_gone_when_nobody_has_it_any_more(is_run):
    page = pages.pack_page(1000, [pages.pack_event(pages.make_enter(5, 1)), pages.pack_event(pages.make_exit(5, 1, 0))])
    made = CapturePass(Trace(io.BytesIO(pages.pack_trace([[page], [page]]))), {})
    if is_run:
        made.run()
    watch = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert watch() is None
    finally:
        gc.enable()
