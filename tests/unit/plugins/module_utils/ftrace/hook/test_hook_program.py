# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start hook's program: the same bytes each time, complete by itself, and nothing in it that a host may lack."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import names
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import program, quick
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed import archive

FOLDER = "ansible_collections/crashcart/fleet/plugins/module_utils/"
# Of containers/ only what says what a container is, and nothing that asks an engine.
ROOMS = ("linux/", "ftrace/", "containers/")
ENGINES = ("docker_engine", "host", "podman", "strangers", "query", "options")


def make():
    return archive.make(quick.__name__, [program.__name__], archive.RUN_AND_END_WITH_0)


@pytest.fixture(scope="module")
def content():
    return make()[0]


@pytest.fixture(scope="module")
def modules(content):
    return [name for name in zipfile.ZipFile(io.BytesIO(content)).namelist() if name.endswith(".py")]


def test_its_end_says_what_it_was_made_of(content, monkeypatch):
    again, end = make()
    assert (content.endswith(end), again.endswith(end), len(end)) == (True, True, 64)
    monkeypatch.setattr(archive, "_read", lambda name, read=archive._read: read(name) and read(name) + "# changed")
    other, other_end = make()
    assert other.endswith(other_end)
    assert other_end != end


def run_program(path, *words, **more):
    return subprocess.run([path, *words], input=b"nonsense", capture_output=True, check=False, timeout=20, **more)


def test_it_ends_with_0_also_where_its_python_is_gone(content, tmp_path):
    path = tmp_path / "start-hook"
    for python in ("/nonesuch/python", "/bin/false"):
        first, interpreter, rest = content.split(b"\n", 2)
        path.write_bytes(b"\n".join([first, python.encode() + interpreter[interpreter.index(b" -IS") :], rest]))
        path.chmod(0o755)
        assert run_program(path, "create", "startup").returncode == 0


def test_what_is_in_it(modules):
    found = {name[len(FOLDER) : -len(".py")] for name in modules if name.startswith(FOLDER) and "__init__" not in name}
    assert {"ftrace/hook/program", "ftrace/hook/begin", "ftrace/recorder/process"} <= found
    assert not [name for name in found if "/" in name and not name.startswith(ROOMS)]
    assert not [name for name in ENGINES if f"containers/{name}" in found]


def test_it_runs_alone(content, tmp_path):
    path = tmp_path / "start-hook"
    path.write_bytes(content)
    code = f"import sys; sys.path[:] = [{str(path)!r}, *(one for one in sys.path if 'site-packages' not in one)]\n"
    rooms = ("ftrace.hook.begin", "ftrace.recorder.process")
    code += "".join(f"import ansible_collections.crashcart.fleet.plugins.module_utils.{name}\n" for name in rooms)
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_usual_start_imports_little(content, tmp_path):
    path = tmp_path / "start-hook"
    path.write_bytes(content)
    code = f"import sys; sys.path.insert(0, {str(path)!r})\nimport {quick.__name__}\n"
    code += "print(*(name for name in sys.modules if 'module_utils.' in name))"
    said = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True).stdout
    found = {name.partition(".module_utils.")[2].replace(".", "/") for name in said.split()}
    assert found == {"ftrace", "ftrace/hook", "ftrace/hook/quick"}


def test_what_is_written_twice_is_the_same():
    assert (quick._SOCKET, quick._PREFIX) == (names.RECORDER_SOCKET, names.HOOK_RULE_PREFIX)
