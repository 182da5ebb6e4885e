# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and sets of capabilities."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import capabilities
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import parse_status

STATUS = b"""Name:\tsleep
CapInh:\t0000000000000001
CapPrm:\t00000000a80425fb
CapEff:\t00000000a80425fa
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000000
"""


def test_names_in_all_their_forms():
    assert capabilities.parse_names(["CAP_CHOWN", "net_raw", " Cap_Sys_Ptrace "]) == 1 | 1 << 13 | 1 << 19
    assert capabilities.parse_names([]) == 0


@pytest.mark.parametrize("name", ["", "CAP_", "NET_RAWW", "CAP_CAP_CHOWN", "13"])
def test_what_is_no_name_is_told(name):
    with pytest.raises(ValueError, match=f"^{name}$"):
        capabilities.parse_names(["CHOWN", name])


@pytest.mark.parametrize(
    ("name", "number"), [("chown", 0), ("sys_admin", 21), ("syslog", 34), ("checkpoint_restore", 40)]
)
def test_numbers_are_the_kernels(name, number):
    assert capabilities.parse_names([name]) == 1 << number


def test_sets_of_a_process():
    sets = capabilities.parse_sets(parse_status(STATUS))
    assert sets == capabilities.CapabilitySets(1, 0xA80425FB, 0xA80425FA, (1 << 41) - 1, 0)
