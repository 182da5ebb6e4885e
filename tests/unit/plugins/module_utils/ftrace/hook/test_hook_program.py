# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The start hook's program: the same bytes each time, complete by itself, and nothing in it that a host may lack."""

from __future__ import annotations

import io
import shlex
import signal
import subprocess
import sys
import time
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


def write_program(content, folder, python=sys.executable):
    """Write the program CONTENT to a file in FOLDER, with PYTHON in place of this Python, and return its path."""
    path = folder / "start-hook"
    ours = f"{shlex.quote(sys.executable)} -IS".encode()
    assert content.count(ours) == 1
    path.write_bytes(content.replace(ours, f"{python} -IS".encode()))
    path.chmod(0o755)
    return path


def write_script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("python", "status"), [("/nonesuch/python", 127), ("/bin/false", 1)])
def test_it_ends_with_0_also_where_its_python_is_gone_and_says_so(content, tmp_path, python, status):
    path = write_program(content, tmp_path, python)
    write_script(tmp_path / "logger", f'echo "$*" >{tmp_path}/told')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert run_program(path, "create", "startup", env=environment).returncode == 0
    told = f"-t crashcart-start-hook {path} create startup: its Python has ended with status {status}\n"
    assert (tmp_path / "told").read_text() == told
    assert run_program(path, "create", "startup", env={"PATH": "/nonesuch"}).returncode == 0  # no logger either


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_it_ends_with_0_also_at_a_signal(content, tmp_path, number):
    python = write_script(tmp_path / "python", f"touch {tmp_path}/begun; sleep 1")
    with subprocess.Popen([write_program(content, tmp_path, python), "create", "startup"]) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == 0


def test_it_says_that_it_runs(content, tmp_path):
    done = run_program(write_program(content, tmp_path), "try")
    assert (done.returncode, done.stdout, done.stderr) == (0, program.TRIED, b"")


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
