# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options reach modules wherever they are typed, or fail before anything is done; a wish that cannot be met costs nothing that is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import host

LOOP = ("busybox", "/bin/sh", "-c", "while /bin/true; do /bin/cat /nonesuch; /bin/sleep 0.2; done")
LINE = 'ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"'


def play(name, *options, **variables):
    """The exit code of a playbook, and what it prints, on one line."""
    words = ["-e", json.dumps({f"crashcart_{key}": value for key, value in variables.items()})]
    done = host.run("ansible-playbook", name, *words, *options, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def is_attached(name):
    return "/dev/crashcart" in host.read_container_mounts(name)


@pytest.fixture
def two(tmp_path):
    """Options that lead to this machine as two hosts."""
    (tmp_path / "two").write_text(f"h1 {LINE}\nh2 {LINE}\n")
    return ("-i", str(tmp_path / "two"))


def write_import(folder, name, **variables):
    """A playbook that imports the collection's NAME with VARIABLES."""
    path = folder / "import.yml"
    own = {f"crashcart_{key}": value for key, value in variables.items()}
    path.write_text(json.dumps([{"import_playbook": f"crashcart.fleet.{name}", "vars": own}]))
    return str(path)


def test_variables_of_an_import_arrive(container, tmp_path):
    name = container(*LOOP)
    code, text = play(write_import(tmp_path, "attach", containers=name, ttl="1h"))
    assert (code, is_attached(name)) == (0, True), text
    assert "until 2" in text
    assert play(write_import(tmp_path, "detach", containers=name))[0] == 0
    assert not is_attached(name)


def test_a_typo_in_an_import_changes_nothing(container, tmp_path):
    name = container(*LOOP)
    code, text = play(write_import(tmp_path, "attach", ttll="1h"), containers=name)
    assert code != 0
    assert "no playbook has a variable crashcart_ttll: crashcart_ttl may be meant" in text
    assert not is_attached(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('crashcart_containers=["{0}"]', "crashcart_containers is the text"),
        ("crashcart_containers={0} trace_secnods=1", "trace_seconds may be meant"),
        ("crashcart_containers={0} crshcart_ttl=1h", "they begin with crashcart_"),
    ],
)
def test_what_would_not_arrive_is_told(container, words, said):
    name = container(*LOOP)
    code, text = play("crashcart.fleet.trace", "-e", words.format(name))
    assert code != 0
    assert said in text
    assert host.list_instances() == []


@pytest.mark.parametrize(
    ("name", "variables"), [("attach", {}), ("exec", {"argv": ["true"]}), ("trace", {"seconds": 1}), ("start", {})]
)
def test_check_mode_foresees_a_run(container, two, name, variables, tmp_path):
    chosen = container(*LOOP)
    code, text = play(
        f"crashcart.fleet.{name}", *two, "--check", containers=chosen, dest=str(tmp_path / "x"), **variables
    )
    assert code == 0, text
    assert "no such container" not in text
    assert (host.list_instances(), is_attached(chosen)) == ([], False)


def test_a_name_that_no_host_has_is_told(container, two):
    name = container(*LOOP)
    line = "No host has a container called nope."
    code, text = play("crashcart.fleet.attach", *two, containers=[name, "nope"])
    assert code != 0
    assert line in text
    assert is_attached(name)
    assert play("crashcart.fleet.attach", *two, containers=[name, "nope"], allow_empty=True)[0] == 0
    for options in (two, ()):
        code, text = play("crashcart.fleet.detach", *options, containers=["nope"])
        assert (code, line in text) == (0, True), text
        code, text = play("crashcart.fleet.stop", *options, containers=["nope"])
        assert (code, line in text) == (0, True), text
    assert is_attached(name)
    host.call_module("crashcart_attach", state="detached", everything=True)


def test_captures_that_can_go_nowhere_are_told_before_the_trace(container, tmp_path):
    (tmp_path / "file").write_text("")
    code, text = play(
        "crashcart.fleet.trace", containers=container(*LOOP), seconds=1, dest=str(tmp_path / "file/traces")
    )
    assert code != 0
    assert f"the captures cannot go to {tmp_path}/file/traces: {tmp_path}/file is no folder" in text
    assert host.list_instances() == []


def test_what_cannot_be_brought_home_stays(container, tmp_path):
    name = container(*LOOP)
    dest = tmp_path / "traces"
    dest.mkdir()
    (dest / "localhost").write_text("")  # where the folder of the host would be
    code, text = play("crashcart.fleet.trace", containers=name, seconds=1, dest=str(dest))
    assert code != 0
    assert "what was recorded stays on the host" in text, text
    assert len(host.list_instances()) == 1
    (dest / "localhost").unlink()
    code, text = play("crashcart.fleet.stop", containers=name, dest=str(dest))
    assert code == 0, text
    assert len(list(dest.glob(f"localhost/{name}/*.dat"))) == 1
    assert host.list_instances() == []


def test_a_trace_that_is_changed_goes_on_and_comes_home(container, tmp_path):
    name = container(*LOOP)
    host.call_module("ftrace_instance", containers=[name], ttl="2h")
    code, text = play("crashcart.fleet.trace", containers=name, existing="change", seconds=1, dest=str(tmp_path / "x"))
    assert code == 0, text
    assert len(list(tmp_path.glob(f"x/localhost/{name}/*.dat"))) == 1
    (left,) = host.call_module("ftrace_info", gather=["instances"])["instances"]
    assert (left["state"], left["expires"] is not None) == ("started", True)


def test_a_host_without_the_image_is_told_what_brings_it(container, tmp_path):
    code, text = play("crashcart.fleet.attach", containers=container(*LOOP), image="nonesuch")
    assert code != 0
    assert "there is no image called 'nonesuch': the playbook crashcart.fleet.install brings one" in text


def test_install_brings_the_libraries_to_a_python_that_is_not_the_distributions(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare/bin/python")
    options = ("-l", "localhost", "-e", f"ansible_python_interpreter={python}")
    code, text = play("crashcart.fleet.install", *options, image_src=host.DEFAULT_IMAGE)
    assert code == 0, text
    host.run(python, "-c", "import docker, jmespath")
