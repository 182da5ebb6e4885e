# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that the connection plugin sends to a host, and the files that it fetches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from ansible.errors import AnsibleError

from ansible_collections.crashcart.fleet.plugins.connection import cart
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import connection_entry


def test_the_program_is_whole_and_always_the_same(tmp_path):
    digest, files = cart._read_program()
    cart._read_program.cache_clear()
    assert cart._read_program() == (digest, files)
    assert not [name for name in files if "/image/" in name or "/ftrace/" in name or "/analysis/" in name]
    path = tmp_path / "lib" / digest
    for _connection in range(2):
        subprocess.run([sys.executable, "-c", cart._UNPACK, str(path)], input=cart._pack(files), check=True)
    assert [one.name for one in path.parent.iterdir()] == [digest]
    order = connection_entry.Order(token="mark:", container="", argv=[], docker_host="unix:///nonesuch")
    done = subprocess.run(
        [sys.executable, "-I", str(path)],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        input=order.pack().decode(),
    )
    assert done.returncode == connection_entry.RC_OTHER, done
    _before, token, line = done.stderr.rpartition("mark:")
    assert token
    assert set(json.loads(line)) == {"error", "is_wish"}


def fetch(path, text, *, fails=False):
    with cart._replacing(str(path)) as part:
        with open(part, "w", encoding="ascii") as file:
            file.write(text)
        if fails:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_link", [False, True])
def test_a_fetch_replaces_its_target_as_a_whole_or_not_at_all(tmp_path, is_link):
    target = tmp_path / "target"
    target.write_text("old")
    target.chmod(0o640)
    path = target
    if is_link:
        path = tmp_path / "link"
        path.symlink_to("target")
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        fetch(path, "half", fails=True)
    assert (target.read_text(), sorted(os.listdir(tmp_path))) == ("old", names)
    fetch(path, "new")
    assert (target.read_text(), target.stat().st_mode & 0o777, path.is_symlink()) == ("new", 0o640, is_link)
    assert sorted(os.listdir(tmp_path)) == names


def test_a_fetch_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to("made")
    fetch(tmp_path / "link", "text")
    assert (tmp_path / "made").read_text() == "text"
    fetch("/dev/null", "text")
    with pytest.raises(AnsibleError, match="cannot be written"):
        fetch(tmp_path / "nonesuch" / "target", "text")
