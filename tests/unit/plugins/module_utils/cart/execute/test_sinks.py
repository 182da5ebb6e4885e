# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sinks, which take the output of commands."""

from __future__ import annotations

import os

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import (
    MAX_OUTPUT_BYTES,
    ExecutionError,
    Output,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.sinks import Sink, name_file, open_sinks
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container


def make_container(name, number=0):
    return Container(f"{number:x}" * 64, name, "running", 2, "image", {})


def test_memory_has_a_bound():
    sink = Sink(5)
    for part in (b"abc", b"def", b"ghi"):
        sink.write(part)
    assert (sink.read(), sink.size, sink.is_truncated) == (b"abcde", 9, True)


def test_exactly_the_bound_is_not_truncated():
    sink = Sink(3)
    sink.write(b"abc")
    assert (sink.read(), sink.is_truncated) == (b"abc", False)


@pytest.mark.parametrize(
    ("output", "bound"),
    [
        (Output(), MAX_OUTPUT_BYTES),
        (Output(max_bytes=7), 7),
        (Output(dest="/x"), None),
        (Output(dest="/x", max_bytes=7), 7),
    ],
)
def test_the_bound_that_holds(output, bound):
    assert output.bound == bound


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("web", "web-000000000000.stdout"),
        ("shop/api-7d9f/app", "shop_api-7d9f_app-000000000000.stdout"),
        ("../../etc/passwd", "_.._etc_passwd-000000000000.stdout"),
        ("pid:17", "pid_17-000000000000.stdout"),
        ("..", "container-000000000000.stdout"),
        ("a\n\0b\u00e9", "a__b_-000000000000.stdout"),
        ("x" * 500, "x" * 64 + "-000000000000.stdout"),
    ],
)
def test_names_of_files_are_safe(name, file):
    assert name_file(make_container(name), "stdout") == file


def test_files_are_new_and_private(tmp_path):
    containers = [make_container("a"), make_container("b", 1)]
    sinks = open_sinks(containers, Output(dest=str(tmp_path / "x" / "y")))
    sinks[0]["stdout"].write(b"abc")
    sinks[1]["stderr"].write(b"def")
    for pair in sinks:
        for sink in pair.values():
            sink.close()
    contents = {path.name: path.read_bytes() for path in (tmp_path / "x" / "y").iterdir()}
    assert contents == {
        "a-000000000000.stdout": b"abc",
        "a-000000000000.stderr": b"",
        "b-111111111111.stdout": b"",
        "b-111111111111.stderr": b"def",
    }
    assert {os.stat(tmp_path / "x" / "y" / name).st_mode & 0o777 for name in contents} == {0o600}


def test_a_file_that_is_there_keeps_all_others_from_being_made(tmp_path):
    (tmp_path / "b-111111111111.stderr").write_text("old")
    with pytest.raises(ExecutionError, match=r"dest: .*b-111111111111.stderr: File exists"):
        open_sinks([make_container("a"), make_container("b", 1)], Output(dest=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["b-111111111111.stderr"]
    assert (tmp_path / "b-111111111111.stderr").read_text() == "old"
