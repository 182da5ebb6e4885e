# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of ours have the modes that are wanted, whatever the umask is and whoever made them."""

from __future__ import annotations

import os
import stat

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import own_files

# Of what is made with a umask of 0o777 only root can open anything.
NOTHING = pytest.param(0o777, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))


@pytest.fixture(name="top", params=[0o000, 0o022, 0o077, NOTHING])
def make_top(request, tmp_path, monkeypatch):
    """A place of ours that is not there yet, with a umask of the process."""
    top = tmp_path / "crashcart"
    monkeypatch.setattr(own_files, "_TOPS", {str(top): 0o755})
    before = os.umask(request.param)
    yield top
    os.umask(before)


def read_mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_are_those_that_are_wanted(top):
    own_files.make_folder(f"{top}/a/b")
    assert [read_mode(path) for path in (top, top / "a", top / "a" / "b")] == [0o755, 0o700, 0o700]
    own_files.make_folder(f"{top}/shown", 0o711)
    assert read_mode(top / "shown") == 0o711


def test_wrong_modes_are_put_right(top):
    for path in (top, top / "a"):
        path.mkdir()
        path.chmod(0o2777)
    own_files.make_folder(f"{top}/a")
    assert [read_mode(path) for path in (top, top / "a")] == [0o755, 0o700]


def test_a_link_or_a_file_in_our_place_is_refused(tmp_path, monkeypatch):
    top = tmp_path / "crashcart"
    monkeypatch.setattr(own_files, "_TOPS", {str(top): 0o755})
    (tmp_path / "other").mkdir(mode=0o777)
    top.symlink_to("other")
    with pytest.raises(FleetError, match=f"{top} is no folder but a link or a file"):
        own_files.make_folder(f"{top}/a")
    assert list((tmp_path / "other").iterdir()) == []
    top.unlink()
    top.write_text("")
    with pytest.raises(FleetError, match=f"{top} is no folder"):
        own_files.make_folder(f"{top}/a")


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    top = tmp_path / "crashcart"
    top.mkdir()
    monkeypatch.setattr(own_files, "_TOPS", {str(top): 0o755})
    monkeypatch.setattr(own_files.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(FleetError, match=f"{top} belongs to user {os.getuid()}"):
        own_files.make_folder(f"{top}/a")


def test_what_is_missing_is_made_and_what_is_there_stays(top):
    top.mkdir()
    top.chmod(0o750)
    own_files.make_missing(f"{top}/a/b")
    assert [read_mode(path) for path in (top, top / "a", top / "a" / "b")] == [0o750, 0o700, 0o700]
    (top / "file").write_text("")
    with pytest.raises(OSError):
        own_files.make_missing(f"{top}/file/a")
    with pytest.raises(OSError):
        own_files.make_missing(f"{top}/file")


def test_a_private_file(top):
    top.mkdir()
    top.chmod(0o700)
    with open(top / "file", "w", encoding="ascii", opener=own_files.open_private) as file:
        file.write("x")
    assert read_mode(top / "file") & 0o077 == 0
    (top / "link").symlink_to(top / "file")
    with pytest.raises(OSError):
        open(top / "link", "w", encoding="ascii", opener=own_files.open_private)
    assert (top / "file").stat().st_size == 1
