# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three hosts with containers and a small tool image for the tests; and Ansible, seen from a controller.

The guests are emulated, and so slow at computing: time limits are ten times those of a real host, tasks are few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "integration"))

import fleet
import golden

NAMES = tuple(golden.CONTAINERS)
PLAYBOOKS = fleet.ROOT / "playbooks"


def on_all(function: Any, hosts: list[fleet.Host]) -> list[Any]:
    """FUNCTION(host) for all HOSTS at once."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        return list(pool.map(function, hosts))


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[fleet.Host]]:
    """Three hosts that run, each with the containers of NAMES. They are ended after the tests."""
    fleet.down()
    try:
        found = fleet.up(3)
        on_all(fleet.start_containers, found)
        yield found
    finally:
        fleet.down()


@pytest.fixture(scope="session")
def installed(hosts: list[fleet.Host], image: Path) -> Run:
    """How the install went on all hosts."""
    return play("install", image_src=str(image))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tool image."""
    path = tmp_path_factory.mktemp("image") / "small.squashfs"
    build(path, ["bash", "coreutils", "iproute2", "strace"])
    return path


def _environment(**more: str) -> dict[str, str]:
    keep = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    return {**keep, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_TIMEOUT": "60", **more}


def start_ansible(command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `ansible` or `ansible-playbook` (COMMAND) with the fleet's inventory."""
    return subprocess.Popen(
        [command, "-i", str(fleet.INVENTORY), "-i", str(fleet.ROOT / "inventory"), *arguments],
        cwd=fleet.ROOT,
        env=_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Run:
    """How a playbook went: its output, and each task's results by host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.output, errors = process.communicate(timeout=600)
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        assert lines and "stats" in lines[-1], self.output + errors
        self._results = lines[:-1]
        self._statistics: dict[str, dict[str, int]] = lines[-1]["stats"]

    def find(self, task: str) -> dict[str, dict[str, Any]]:
        """Host → result of the task called TASK, which has to be there."""
        found = {one["host"]: one["result"] for one in self._results if one["task"].rpartition(" : ")[2] == task}
        assert found, f"no task {task!r} was run:\n{self.output}"
        return found

    def count(self, what: str) -> dict[str, int]:
        """Host → a number of the recap: ok, changed, failures or unreachable."""
        return {host: numbers[what] for host, numbers in self._statistics.items()}


def play(name: str, *arguments: str, **variables: Any) -> Run:
    """Run playbooks/NAME.yml to its end."""
    return Run(start_play(name, *arguments, **variables))


def start_play(name: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
    """Start playbooks/NAME.yml. VARIABLES are crashcart_… without that."""
    extra = json.dumps({f"crashcart_{key}": value for key, value in variables.items()})
    return start_ansible(
        "ansible-playbook",
        str(PLAYBOOKS / f"{name}.yml"),
        *("-e", extra),
        *(arguments or ("-l", "fleet")),
        ANSIBLE_STDOUT_CALLBACK="results",
        ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).with_name("callback")),
    )


def build(path: Path, packages: list[str]) -> None:
    """Make the tool image PATH of PACKAGES."""
    # A cache of its own: other tests may build at the same time.
    arguments = {"dest": str(path), "packages": packages, "cache": str(golden.CACHE / "build")}
    call("localhost", "crashcart_build", arguments, become=False)


def finish(process: subprocess.Popen[str]) -> None:
    """End what talks to a host that is gone, and its ssh with it."""
    process.terminate()
    process.communicate(timeout=60)


def call(
    host: str, module: str, arguments: dict[str, Any], *, become: bool = True, check: bool = True, **variables: Any
) -> dict[str, Any]:
    """The result of one module on one HOST, with VARIABLES of Ansible."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "-m",
            f"crashcart.fleet.{module}",
            *(("-a", json.dumps(arguments)) if arguments else ()),
            "-t",
            folder,
        ]
        process = start_ansible("ansible", host, *options, *(("-b",) if become else ()))
        output, errors = process.communicate(timeout=600)
        path = Path(folder, host)
        assert path.exists(), output + errors
        result: dict[str, Any] = json.loads(path.read_text())
    if check:
        assert process.returncode == 0, result
    return result
