# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages about long transfers."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils import progress


@pytest.mark.parametrize(
    ("size", "told"), [(0, ""), ((8 << 20) - 1, ""), (60_000_000, "pushing to web\\x1b1 (57.2 MiB)\n")]
)
def test_only_of_what_takes_its_time_a_line_is_told(capsys, size, told):
    progress.tell_transfer("pushing to web\x1b1", size)
    assert capsys.readouterr().out == told
