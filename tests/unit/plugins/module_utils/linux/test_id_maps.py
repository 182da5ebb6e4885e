# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers inside and outside of a user namespace."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.id_maps import IdRange, find_outside, parse_id_map

ROOTLESS = b"         0       1000          1\n         1     100000      65536\n"


def test_ranges():
    assert parse_id_map(ROOTLESS) == [IdRange(0, 1000, 1), IdRange(1, 100000, 65536)]
    assert parse_id_map(b"") == []


@pytest.mark.parametrize(("inside", "outside"), [(0, 1000), (1, 100000), (65536, 165535), (65537, None)])
def test_numbers(inside, outside):
    assert find_outside(inside, parse_id_map(ROOTLESS)) == outside


def test_the_hosts_own_map_changes_nothing():
    assert find_outside(4294967294, parse_id_map(b"0 0 4294967295\n")) == 4294967294
