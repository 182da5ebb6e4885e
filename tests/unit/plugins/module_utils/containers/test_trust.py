# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users who can change the file at a path, and files that are read."""

from __future__ import annotations

import os
import socket

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import (
    Unreadable,
    Untrusted,
    find_owner,
    read_regular,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: its folders are those of root, and of others")
OWN = os.geteuid()  # root's folders are root's alone only where root has made them


def test_of_the_hosts_own():
    assert find_owner("/") == 0
    assert find_owner("/proc") == 0
    with pytest.raises(FileNotFoundError):
        find_owner("/crashcart-nonesuch/x")


def test_own_folder(tmp_path):
    assert find_owner(str(tmp_path)) == OWN


@needs_root
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_folder_that_others_can_change(tmp_path, mode):
    folder = tmp_path / "state"
    folder.mkdir()
    os.chmod(folder, mode)
    with pytest.raises(Untrusted, match="'state' can be changed by others than root"):
        find_owner(str(folder))
    (folder / "x").mkdir()
    if mode == 0o1777:  # what root has in there nobody puts away
        assert find_owner(str(folder / "x")) == 0
        return
    with pytest.raises(Untrusted):
        find_owner(str(folder / "x"))


@needs_root
def test_what_is_a_users_is_the_users_all_the_way_down(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "x").mkdir()
    os.chown(folder, 4242, 4242)
    assert find_owner(str(folder)) == 4242
    assert find_owner(str(folder / "x")) == 4242
    # Also what is not there: nobody looks.
    assert find_owner(str(folder / "nonesuch")) == 4242


@needs_root
def test_links_of_root_are_followed_and_those_of_users_are_theirs(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "up").symlink_to("real/../real")
    (tmp_path / "ring").symlink_to("ring")
    for name in ("a", "b", "up"):
        assert find_owner(str(tmp_path / name)) == 0
    os.lchown(tmp_path / "a", 4242, 4242)
    assert find_owner(str(tmp_path / "a")) == 4242
    assert find_owner(str(tmp_path / "b")) == 4242
    with pytest.raises(Untrusted, match="too many links"):
        find_owner(str(tmp_path / "ring"))


@needs_root
def test_a_socket_may_be_written_to_by_a_group(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    os.chmod(path, 0o660)
    assert find_owner(path) == 0
    os.chown(path, 4242, 0)
    assert find_owner(path) == 4242


@pytest.fixture(name="folder")
def open_folder(tmp_path):
    fd = os.open(str(tmp_path), os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_a_regular_file_is_read_up_to_a_bound(folder, tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(folder, "x", 5) == b"12345"
    with pytest.raises(Unreadable, match="more than 4 bytes"):
        read_regular(folder, "x", 4)
    os.truncate(tmp_path / "x", 1 << 36)
    with pytest.raises(Unreadable, match="more than"):
        read_regular(folder, "x", 1 << 20)


def test_nothing_else_is_opened(folder, tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "link", "device", "folder"):
        with pytest.raises(Unreadable, match="no regular file"):
            read_regular(folder, name, 1 << 20)
