# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin sends to a host."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile

import pytest

if sys.version_info < (3, 11):
    pytest.skip("the controller runs Python 3.11 or newer", allow_module_level=True)

from ansible_collections.crashcart.fleet.plugins.connection import cart
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import entrance


def test_the_program_is_whole_and_always_the_same(tmp_path):
    digest, content = cart._pack_program()
    cart._pack_program.cache_clear()
    assert cart._pack_program() == (digest, content)
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert not [name for name in names if "/image/" in name or "/ftrace/" in name or "/analysis/" in name]
    path = tmp_path / "program.pyz"
    path.write_bytes(content)
    order = entrance.Order(token="mark:", container="", argv=[], docker_host="unix:///nonesuch")
    done = subprocess.run(
        [sys.executable, "-I", str(path), order.as_json()], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == entrance.RC_OTHER, done
    _before, token, line = done.stderr.rpartition("mark:")
    assert token
    assert set(json.loads(line)) == {"error", "is_wish"}
