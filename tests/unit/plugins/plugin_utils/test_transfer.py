# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.plugin_utils.transfer import make_arguments

OWN = "-o Compression=no -o ControlPath=none"


@pytest.mark.parametrize(
    ("shared", "made"),
    [
        ("", OWN),
        ("-C -o ControlMaster=auto -o ControlPersist=60s", OWN),
        ("-C -o ProxyJump=hop -oControlPersist=1m -J 'a b' -v", f"-o ProxyJump=hop -J 'a b' -v {OWN}"),
        ("-o", f"-o '' {OWN}"),
    ],
)
def test_the_session_is_neither_shared_nor_compressed(shared, made):
    assert make_arguments(shared) == made
