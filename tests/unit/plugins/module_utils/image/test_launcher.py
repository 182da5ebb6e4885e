# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Launchers, which are run here where the machine is of their kind, or has an emulator for it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image.launcher import make_launcher

MACHINES = {"x86_64": 62, "aarch64": 183}
# Of this machine, and those that qemu's emulator of one program is there for.
WAYS = {
    name: [] if name == platform.machine() else [shutil.which(f"qemu-{name}-static")]
    for name in MACHINES
    if name == platform.machine() or shutil.which(f"qemu-{name}-static")
}
TELL = "import os, sys; print(sys.orig_argv[:1] + sys.argv[1:], os.environ['WORD'])"


def launch(tmp_path, way, *words, path=sys.executable, name=None, arguments=()):
    program = tmp_path / "program"
    program.write_bytes(make_launcher(MACHINES[way], path, name, arguments))
    program.chmod(0o755)
    environment = {"WORD": "here", **{f"X{number}": "x" for number in range(50)}}
    return subprocess.run(
        [*WAYS[way], str(program), *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.sweep
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("words", [(), ("x",), ("", "two words", "-c")])
@pytest.mark.parametrize("more", [(), ("a",), ("", "b c", "d")])
@pytest.mark.parametrize("name", [None, "/called/so"])
def test_arguments_stand_first_and_the_rest_stays(tmp_path, way, words, more, name):
    done = launch(tmp_path, way, *words, name=name, arguments=("-c", TELL, *more))
    assert done.stdout == f"{[name or str(tmp_path / 'program'), *more, *words]} here\n", done


@pytest.mark.parametrize("way", list(WAYS))
def test_without_arguments(tmp_path, way):
    assert launch(tmp_path, way, "one", "two", path=shutil.which("echo")).stdout == "one two\n"


@pytest.mark.parametrize("way", list(WAYS))
def test_what_cannot_be_started(tmp_path, way):
    assert launch(tmp_path, way, path="/nonesuch").returncode == 126


def test_other_machines_have_none():
    assert make_launcher(243, "/bin/true", None, ()) is None
