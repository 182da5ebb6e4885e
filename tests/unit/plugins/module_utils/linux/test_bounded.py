# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A child does what may hang, and costs nothing but its own results."""

from __future__ import annotations

import contextlib
import os
import select

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, strange_files

SHORT_S = 0.2
LONG_S = 60.0


def wait():
    select.select([], [], [])


def test_results_and_errors_come_back_in_order():
    def work(index):
        if index == 1:
            raise OSError(5, "broken")
        return {"index": index, "pid": os.getpid()}

    first, broken, last = bounded.run(3, work, (), LONG_S)
    assert (first["index"], last["index"]) == (0, 2)
    assert first["pid"] == last["pid"] != os.getpid()
    assert (broken.errno, broken.strerror) == (5, "broken")
    assert bounded.run(0, work, (), LONG_S) == []


@pytest.mark.parametrize("gives_descriptors", [False, True])
def test_who_hangs_or_dies_costs_only_itself(gives_descriptors):
    def work(index):
        if index == 1:
            wait()
        if index == 2:
            os._exit(3)
        return index

    found = bounded.run(4, work, (), SHORT_S, gives_descriptors=gives_descriptors)
    # On a slow machine others may be late, too; who is not late is right.
    assert isinstance(found[1], TimeoutError)
    assert isinstance(found[2], TimeoutError)
    assert all(one == index or isinstance(one, TimeoutError) for index, one in enumerate(found))


def test_a_result_of_any_size_comes_whole():
    text = "x" * (3 << 20)
    assert bounded.run(2, lambda index: text + str(index), (), LONG_S) == [text + "0", text + "1"]


def test_descriptors_come_with_their_results(tmp_path):
    names = [str(tmp_path / str(number)) for number in range(40)]
    for name in names:
        with open(name, "w", encoding="ascii") as file:
            file.write(name)
    before = os.listdir("/proc/self/fd")

    def work(index):
        if index == 2:
            raise OSError(5, "broken")
        chosen = names[:40] if index == 3 else names[index : index + 2]
        return bounded.Held(chosen, tuple(os.open(name, os.O_RDONLY) for name in chosen))

    found = bounded.run(4, work, (), LONG_S, gives_descriptors=True)
    assert found[2].errno == 5
    for one in [*found[:2], found[3]]:
        assert [os.read(fd, 4096).decode("ascii") for fd in one.fds] == one.value
        assert not any(os.get_inheritable(fd) for fd in one.fds)
        for fd in one.fds:
            os.close(fd)
    assert os.listdir("/proc/self/fd") == before


def list_open(_index):
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_the_child_holds_nothing_but_what_it_needs(tmp_path):
    (tmp_path / "secret").write_text("")
    reader, writer = os.pipe()
    secret = os.open(tmp_path / "secret", os.O_RDONLY)
    try:
        pipe = os.readlink(f"/proc/self/fd/{reader}")
        (found,) = bounded.run(1, list_open, (reader,), LONG_S)
    finally:
        for fd in (reader, writer, secret):
            os.close(fd)
    assert found.count(pipe) == 1
    assert len(found) == 2  # and the way to its parent


def read(root, path, max_bytes=100):
    fd = os.open(str(root), os.O_PATH)
    try:
        return strange_files.read_regular(fd, path, max_bytes)
    finally:
        os.close(fd)


def test_regular_files_are_read_up_to_a_bound(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 150)
    assert read(tmp_path, "file") == b"x" * 100
    assert read(tmp_path, "/../file", 200) == b"x" * 150
    (tmp_path / "link").symlink_to("/file")
    assert read(tmp_path, "link") == b"x" * 100
    with pytest.raises(FileNotFoundError):
        read(tmp_path, "nonesuch")


def test_what_is_no_regular_file_is_named_and_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)
    os.write(writer, b"x")
    os.mkdir(tmp_path / "folder")
    for name, kind in (("pipe", "a pipe"), ("folder", "a folder")):
        with pytest.raises(strange_files.StrangeFile, match=f"it is no regular file but {kind}"):
            read(tmp_path, name)
    assert os.read(writer, 2) == b"x"
    os.close(writer)


def test_what_the_kernel_makes_up_is_not_read():
    assert read("/", "/proc/version") == b""
