# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin sends to a host."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)

from ansible_collections.crashcart.fleet.plugins.connection import cart
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import entrance


def test_the_program_is_whole_and_always_the_same(tmp_path):
    digest, files = cart._read_program()
    cart._read_program.cache_clear()
    assert cart._read_program() == (digest, files)
    assert not [name for name in files if "/image/" in name or "/ftrace/" in name or "/analysis/" in name]
    path = tmp_path / "lib" / digest
    for _connection in range(2):
        subprocess.run([sys.executable, "-c", cart._UNPACK, str(path)], input=cart._pack(files), check=True)
    assert [one.name for one in path.parent.iterdir()] == [digest]
    order = entrance.Order(token="mark:", container="", argv=[], docker_host="unix:///nonesuch")
    done = subprocess.run(
        [sys.executable, "-I", str(path)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        input=order.pack().decode(),
    )
    assert done.returncode == entrance.RC_OTHER, done
    _before, token, line = done.stderr.rpartition("mark:")
    assert token
    assert set(json.loads(line)) == {"error", "is_wish"}
