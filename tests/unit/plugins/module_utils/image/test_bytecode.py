# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled Python in images."""

from __future__ import annotations

import os
import subprocess
import sys

from ansible_collections.crashcart.fleet.plugins.module_utils.image import bytecode

OWN = "{}.{}".format(*sys.version_info)
TAG = sys.implementation.cache_tag


def make(top, version=OWN):
    """A tree with a library for Python VERSION."""
    folder = top / "tree/lib" / f"python{version}"
    (folder / "json").mkdir(parents=True)
    (folder / "good.py").write_text("ANSWER = 42\n\ndef fail():\n    raise ValueError\n")
    (folder / "json/inner.py").write_text("x = {'a', 'b', 'c'}\n")
    (folder / "wrong.py").write_text("1 +\n")
    return folder


def test_the_compiled_files_are_used(tmp_path):
    folder = make(tmp_path)
    assert bytecode.compile_library(str(tmp_path / "tree"), "/dev/crashcart") == ""
    assert (folder / f"json/__pycache__/inner.{TAG}.pyc").exists()
    # They are not compared with the source any more.
    (folder / "good.py").write_text("")
    program = "import good; print(good.ANSWER)"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(folder)}, capture_output=True, check=True
    )
    assert done.stdout == b"42\n"


def test_they_are_the_same_in_another_folder_at_another_time(tmp_path):
    contents = []
    for number in range(2):
        folder = make(tmp_path / str(number))
        os.utime(folder / "good.py", (number, number))
        bytecode.compile_library(str(tmp_path / str(number) / "tree"), "/dev/crashcart")
        contents.append({path.name: path.read_bytes() for path in folder.rglob("*.pyc")})
    assert contents[0] == contents[1]
    assert f"/dev/crashcart/lib/python{OWN}/good.py".encode() in contents[0][f"good.{TAG}.pyc"]
    assert set(contents[0]) == {f"good.{TAG}.pyc", f"inner.{TAG}.pyc"}


def test_links_lead_nowhere(tmp_path):
    folder = make(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.py").write_text("x = 1\n")
    (folder / "__pycache__").symlink_to(outside)
    (folder / "json/__pycache__").write_text("a file")
    (folder / "package").symlink_to(outside)
    (folder / "secret.py").symlink_to(outside / "secret.py")
    (folder.parent / "python3").symlink_to(outside)
    assert bytecode.compile_library(str(tmp_path / "tree"), "/p") == ""
    assert [path.name for path in outside.rglob("*")] == ["secret.py"]
    assert sorted(path.name for path in folder.rglob("*.pyc")) == [f"good.{TAG}.pyc", f"inner.{TAG}.pyc"]


def test_a_version_that_this_machine_does_not_have_is_named(tmp_path):
    folder = make(tmp_path, "3.99")
    assert "no Python 3.99" in bytecode.compile_library(str(tmp_path / "tree"), "/p")
    assert not list(folder.rglob("*.pyc"))


def test_an_image_without_python_has_nothing_to_compile(tmp_path):
    assert bytecode.compile_library(str(tmp_path), "/p") == ""
    (tmp_path / "lib").symlink_to("/usr/lib")
    assert bytecode.compile_library(str(tmp_path), "/p") == ""
