# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of engines: hosts with the engines of three releases of Debian, and a small tool image on each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path[1:1] = [str(Path(__file__).parents[1] / name) for name in ("fleet", "integration")]

import engines
import machine
import modules
import place
import releases
from support import alone, images
from support import host as support_host


@pytest.fixture(scope="session", autouse=True)
def held_kernel() -> Iterator[None]:
    """Wait until no other tests trace on this machine: all use one kernel."""
    with alone.hold_kernel(), _mount_tracefs():
        yield


@contextmanager
def _mount_tracefs() -> Iterator[None]:
    """Mount tracefs where a machine without systemd has not, until the context ends. The hosts share this machine's /sys."""
    if os.path.ismount(support_host.TRACEFS):
        yield
        return
    support_host.run("mount", "-t", "tracefs", "tracefs", support_host.TRACEFS)
    try:
        yield
    finally:
        support_host.run("umount", support_host.TRACEFS)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small tool image and return its path."""
    path = tmp_path_factory.mktemp("image") / "small.squashfs"
    images.build(path, packages=["bash", "coreutils", "iproute2", "python3", "strace"])
    return path


class Station:
    """A host with its engines, and ways to use the collection on it."""

    def __init__(self, host: place.Place, server: modules.ModuleServer, inventory: Path) -> None:
        self.name = host.name
        self.run = host.run
        self.engines = {kind: engines.choose(kind, host) for kind in engines.KINDS}
        self._server = server
        self._inventory = inventory

    def call(self, module: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a module of the collection. Raises ModuleFailed when it fails."""
        return self._server.call(module, arguments)

    def fetch(self, dest: Path, **selection: Any) -> list[dict[str, Any]]:
        """Return the captures of ftrace_fetch, whose files are in DEST."""
        return self._server.fetch(dest, selection)

    def ansible(self, *words: str) -> str:
        """Run a program of Ansible, the first of WORDS, with this host and its containers as its inventory, and return its output."""
        environment = {
            **{name: value for name, value in os.environ.items() if name != "DOCKER_HOST"},
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_INVENTORY": str(self._inventory),
            "ANSIBLE_TIMEOUT": str(round(machine.seconds(60))),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        }
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, f"{words}: rc {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session", params=releases.RELEASES)
def station(
    request: pytest.FixtureRequest, held_kernel: None, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Run a host of each release in turn, and install the tool image there by the playbook."""
    with place.start(request.param) as host:
        inventory = tmp_path_factory.mktemp(host.name)
        (inventory / "1-hosts.json").write_text(json.dumps({"all": {"hosts": {host.name: host.make_variables()}}}))
        (inventory / "2-containers.yml").write_text("plugin: crashcart.fleet.containers\n")
        with modules.ModuleServer(host) as server:
            station = Station(host, server, inventory)
            station.ansible("ansible-playbook", "crashcart.fleet.install", "-e", f"crashcart_image_src={image}")
            yield station


@pytest.fixture(params=engines.KINDS)
def engine(request: pytest.FixtureRequest, station: Station) -> engines.Engine:
    """Give each engine of the host in turn."""
    return station.engines[request.param]
