# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test later versions of ansible-core and of Python on the controller: unit tests, sanity tests, and playbooks over ssh."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fleet
import pytest
from controllers import Controller, Pair
from support import alone, host, images, matrix, sshd

PAIRS = [
    Pair("2.19", "3.11"),
    Pair("2.20", "3.12"),
    Pair("2.21", "3.13"),
    Pair("2.21", "3.14"),
    Pair("2.22", "3.13", is_candidate=True),
]
SHOWN = {
    "test_unit": "unit tests",
    "test_sanity": "ansible-test's sanity tests",
    "test_playbooks": "playbooks over ssh: install, attach, exec, trace, cleanup",
}
# A container that looks for a file that is not there, and says nothing.
LOOP = ["/bin/sh", "-c", "while true; do busybox cat /etc/api/database.conf 2>/dev/null; busybox sleep 0.2; done"]

# Prints the version of pip that ansible-test makes its own environments with.
_WANTED_PIP = """
import sys, types
from ansible_test._internal.python_requirements import get_venv_packages
print(get_venv_packages(types.SimpleNamespace(version=sys.argv[1]))["pip"])
"""


@pytest.fixture(scope="module", params=PAIRS, ids=str)
def controller(request: pytest.FixtureRequest) -> Controller:
    """Give a controller with each pair of versions in turn. What a candidate cannot do yet is told, and is no failure."""
    # Not strict: a candidate that can do all is welcome, and the matrix says what it can.
    if request.param.is_candidate:
        request.applymarker(pytest.mark.xfail(reason="a release candidate", strict=False))
    return Controller(request.param)


@pytest.fixture(autouse=True)
def shown(request: pytest.FixtureRequest, controller: Controller) -> None:
    """Note what a test shows."""
    pair = controller.pair
    column = f"ansible-core {pair.core}{' (candidate)' if pair.is_candidate else ''}, Python {pair.python}"
    matrix.note(request.node, "controllers", column, SHOWN[request.function.__name__])


def test_unit(controller):
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not sweep", "tests/unit")
    print(controller.run(*words, folder=fleet.ROOT))


def test_sanity(controller):
    # ansible-test makes environments by pip, which finds no packages from that root folder. What it checks depends on ansible-core.
    if not controller.can_install:
        pytest.skip(f"Python {controller.pair.python} is of another root folder; another Python has this ansible-core")
    build = fleet.ROOT / "build/controllers/staged"
    subprocess.run([fleet.ROOT / "tools/stage_collection.sh", build], check=True)
    version = controller.run("-c", _WANTED_PIP, controller.pair.python, folder=fleet.ROOT).strip()
    subprocess.run([sys.executable, fleet.ROOT / "tools/prepare_ansible_test.py", version], check=True)
    words = ("sanity", "--local", "--color", "no", "--python", controller.pair.python, "--skip-test", "pylint")
    staged = build / "ansible_collections/crashcart/fleet"
    print(controller.play("test", *words, folder=staged, environment={"PYTHONPATH": ""}))


@pytest.fixture(scope="module")
def engine_and_ssh(tmp_path_factory):
    """Give an inventory with this machine over ssh, where a container called api runs, and a small tool image."""
    image = tmp_path_factory.mktemp("image") / "small.squashfs"
    with alone.hold_kernel(), tempfile.TemporaryDirectory(prefix="crashcart-sshd-") as folder:
        images.build(image, packages=["bash", "coreutils", "python3"])
        images.make("crashcart-test", "busybox")
        host.docker("run", "-d", "--name", "api", "--network", "none", "crashcart-test/busybox", *LOOP)
        try:
            with sshd.serve(Path(folder), environment={"DOCKER_HOST": os.environ["DOCKER_HOST"]}) as inventory:
                yield inventory, image
        finally:
            host.docker("rm", "-f", "api")


def test_playbooks(controller, engine_and_ssh, tmp_path):
    inventory, image = engine_and_ssh
    environment = {"ANSIBLE_INVENTORY": str(inventory), "ANSIBLE_NOCOLOR": "1"}

    def play(name: str, *words: str) -> str:
        variables = ("-l", "as_user", "-e", "crashcart_containers=api", *words)
        return controller.play(
            "playbook", f"crashcart.fleet.{name}", *variables, folder=tmp_path, environment=environment
        )

    said = play("install", "-e", f"crashcart_image_src={image}")
    assert "failed=0" in said
    try:
        said = play("attach")
        assert host.docker("exec", "api", "/dev/crashcart/bin/bash", "-c", "echo $((40 + 2))").strip() == "42"
        said += play("exec", "-e", '{"crashcart_argv": ["bash", "-c", "echo $((40 + 2)); exit 0"]}')
        assert "42" in said
        traced = play("trace", "-e", "crashcart_seconds=1", "-e", f"crashcart_dest={tmp_path}/traces")
        assert "1. busybox ended with status 1 after it could not open a file: no such file (ENOENT)" in traced, traced
        assert [path.name for path in (tmp_path / "traces").glob("as_user/api/*.dat")]
        words = ("as_user", "-b", "-m", "crashcart.fleet.crashcart_info", "-a", "gather=attachments")
        told = controller.play("adhoc", *words, folder=tmp_path, environment=environment)
        assert '"container": "api"' in told
        said += traced + told
    finally:
        said += play("cleanup")
    assert "failed=0" in said
    assert "crashcart" not in Path("/proc/mounts").read_text()
    assert "[DEPRECATION WARNING]" not in said and "[WARNING]" not in said, said
