# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Labels as the kernel writes them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.labels import parse_label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"docker-default (enforce)\n", "docker-default"),
        (b"unconfined\n", "unconfined"),
        (b"/usr/bin/man (complain)\n", "/usr/bin/man"),
        (b"a profile (enforce) (kill)\n", "a profile (enforce)"),
        (b"lxc-one//&:lxc-one_<var>:unconfined (enforce)\n", "lxc-one//&:lxc-one_<var>:unconfined"),
        (b"system_u:system_r:container_t:s0:c1,c2\0", "system_u:system_r:container_t:s0:c1,c2"),
        (b"", ""),
    ],
)
def test_labels(text, label):
    assert parse_label(text) == label
