# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a host with the engines of a release, on which the collection is installed, for tests and measurements."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engines
import machine
import modules
import place

_VERSIONS = {
    "docker": "docker version --format '{{.Server.Version}}'",
    "podman": "podman version --format '{{.Client.Version}}'",
    "containerd": "containerd --version | awk '{print $3}'",
}


class Station:
    """A host with its engines, and ways to use the collection on it."""

    def __init__(self, host: place.Place, server: modules.ModuleServer, inventory: Path) -> None:
        self.name = host.name
        self.run = host.run
        self.engines = {kind: engines.choose(kind, host) for kind in engines.KINDS}
        self._server = server
        self._inventory = inventory

    def find_version(self, runtime: str) -> str:
        """Return the version of the engine that crashcart_info calls RUNTIME."""
        return self.run(_VERSIONS[runtime]).strip()

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


@contextmanager
def run(release: str, image: Path, inventory: Path) -> Iterator[Station]:
    """Run a host of RELEASE until the context ends, with the tool image IMAGE. INVENTORY is a folder for Ansible's inventory."""
    with place.start(release) as host:
        (inventory / "1-hosts.json").write_text(json.dumps({"all": {"hosts": {host.name: host.make_variables()}}}))
        (inventory / "2-containers.yml").write_text("plugin: crashcart.fleet.containers\n")
        with modules.ModuleServer(host) as server:
            station = Station(host, server, inventory)
            station.ansible("ansible-playbook", "crashcart.fleet.install", "-e", f"crashcart_image_src={image}")
            yield station
