# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the fleet's tests, three hosts with containers and a small tool image, and functions that run Ansible on them.

The guests are emulated, and so they are slow. Time limits are ten times those of a real host, and the tests run few tasks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "integration"))

import fleet
import golden
import processes
from machine import seconds
from support import matrix, parts

NAMES = tuple(golden.CONTAINERS)
NOISY = "shop-web"  # the container whose loop fails again and again
CENSUS = (
    "losetup -a; ls /sys/kernel/tracing/instances; ls -d /run/crashcart /var/lib/crashcart 2>/dev/null; "
    "cat /proc/*/mountinfo 2>/dev/null | grep crashcart; true"
)
PLAYBOOKS = fleet.ROOT / "playbooks"


def on_all(function: Any, hosts: list[fleet.Host]) -> list[Any]:
    """Call FUNCTION(host) for all HOSTS at once and return the results. Several failures are raised as one AssertionError."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        futures = [pool.submit(function, host) for host in hosts]
    failures = [failure for future in futures if (failure := future.exception())]
    if len(failures) > 1:
        raise AssertionError("\n".join(f"{type(one).__name__}: {one}" for one in failures)) from failures[0]
    return [future.result() for future in futures]


def each(hosts: list[fleet.Host], *functions: Callable[[fleet.Host], Any]) -> None:
    """Call one of FUNCTIONS with each of HOSTS, all at once, since a single host would leave a core idle."""
    pairs = dict(zip((host.name for host in hosts), functions, strict=True))
    on_all(lambda host: pairs[host.name](host), hosts)


def same(value: Any) -> dict[str, Any]:
    """Return VALUE for each of the three hosts, by the host's name."""
    return {"host1": value, "host2": value, "host3": value}


def find_title(host: fleet.Host) -> str:
    """Return the release and the kernel of HOST in words."""
    name, kernel = host.run(". /etc/os-release; echo ${PRETTY_NAME%% (*}; uname -r").splitlines()
    return f"{name.replace(' GNU/Linux', '')}, Linux {'.'.join(kernel.split('.')[:2])}"


def list_captures(folder: Path) -> list[dict[str, Any]]:
    """Return the captures in the playbooks' report on FOLDER."""
    captures: list[dict[str, Any]] = json.loads((folder / "report/summary.json").read_text())["captures"]
    return captures


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the files of the wanted part: a story's tests stay together."""
    parts.select(config, items, lambda item: item.path.name)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what a test has shown, and print a failure at once: a run that is ended before its end has told why it took so long."""
    matrix.pytest_runtest_logreport(report)
    if report.failed:
        print(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}", flush=True)


def pytest_configure() -> None:
    """Make SIGTERM end all processes that the tests have started."""
    processes.end_all_on_sigterm(fleet.down)


def pytest_unconfigure() -> None:
    """End all processes that the tests have started, however the tests have ended."""
    processes.end_all()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note on the test itself that it has failed, for the fixtures that are torn down after it."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that has failed, take what it has left off the hosts: the next test of the story expects nothing."""
    yield
    if request.node.stash.get(FAILED, False) and "hosts" in request.fixturenames:
        on_all(_restore, request.getfixturevalue("hosts"))


def _restore(host: fleet.Host) -> None:
    """Bring HOST back to the state in which each test finds it: reachable, with the containers of NAMES, and with nothing of ours at work."""
    if not host.is_running:
        host.boot()
    host.machine.call("cont")
    host.machine.call("set_link", name="net", up=True)
    host.wait_until_up()
    kept = "|".join(NAMES)
    host.run(
        "tc qdisc del dev eth0 root 2>/dev/null; rm -rf /var/lib/crashcart/captures; systemctl start docker; "
        f"docker start {' '.join(NAMES)}; docker ps -a --format '{{{{.Names}}}}' | grep -vxE '{kept}' | xargs -r docker rm -f"
    )
    call(host.name, "crashcart_attach", {"state": "detached", "everything": True, "busy": "lazy"}, check=False)
    call(host.name, "ftrace_instance", {"state": "absent", "everything": True}, check=False)


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[fleet.Host]]:
    """Start three hosts, each with the containers of NAMES, and end them after the tests."""
    fleet.down()
    try:
        yield fleet.up(3)
    finally:
        fleet.down()


@pytest.fixture(scope="session")
def installed(hosts: list[fleet.Host], image: Path) -> Run:
    """Run the playbook `install` on all hosts."""
    return play("install", image_src=str(image))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small tool image and return its path."""
    path = tmp_path_factory.mktemp("image") / "small.squashfs"
    build(path, ["bash", "coreutils", "iproute2", "strace"])
    return path


def _environment(**more: str) -> dict[str, str]:
    keep = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    return {**keep, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_TIMEOUT": str(round(seconds(60))), **more}


def start_ansible(command: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `ansible` or `ansible-playbook` (COMMAND) with the fleet's inventory."""
    inventories = ("-i", str(fleet.INVENTORY), "-i", str(fleet.ROOT / "inventory"))
    return processes.start([command, *inventories, *arguments], cwd=fleet.ROOT, env=_environment(**environment))


class Run:
    """The outcome of a playbook's process, for whose end the constructor waits: its output, and each task's results by host."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.output, errors = process.communicate(timeout=seconds(600))
        lines = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        assert lines and "stats" in lines[-1], self.output + errors
        self._results = [line for line in lines if "task" in line]
        self._recaps = [line["stats"] for line in lines if "stats" in line]

    @property
    def failures(self) -> list[tuple[str, str, str]]:
        """Task, host and error of each task that has failed, and of each host that could not be reached."""
        return [
            (one["task"], one["host"], str(one["result"].get("msg"))) for one in self._results if one["status"] != "ok"
        ]

    def list_tasks(self) -> list[tuple[str, str]]:
        """Return task and host of each result in the order of arrival."""
        return [(one["task"].rpartition(" : ")[2], one["host"]) for one in self._results]

    def find(self, task: str) -> dict[str, dict[str, Any]]:
        """Return the last result of the task called TASK by host. Raises AssertionError where no such task was run."""
        found = {one["host"]: one["result"] for one in self._results if one["task"].rpartition(" : ")[2] == task}
        assert found, f"no task {task!r} was run:\n{self.output}"
        return found

    def count(self, what: str) -> dict[str, int]:
        """Return the number WHAT (ok, changed, failures or unreachable) of the playbooks' recaps by host."""
        return {host: sum(recap[host][what] for recap in self._recaps if host in recap) for host in self._recaps[0]}


def play(names: str, *arguments: str, **variables: Any) -> Run:
    """Run playbooks/NAME.yml for each of NAMES (words), one after the other, and return the outcome."""
    return Run(start_play(names, *arguments, **variables))


def start_play(names: str, *arguments: str, **variables: Any) -> subprocess.Popen[str]:
    """Start playbooks/NAME.yml for each of NAMES (words), one after the other. VARIABLES are given without their prefix crashcart_."""
    extra = json.dumps({f"crashcart_{key}": value for key, value in variables.items()})
    return start_ansible(
        "ansible-playbook",
        *(str(PLAYBOOKS / f"{name}.yml") for name in names.split()),
        *("-e", extra),
        *(arguments or ("-l", "fleet")),
        ANSIBLE_STDOUT_CALLBACK="results",
        ANSIBLE_CALLBACK_PLUGINS=str(Path(__file__).with_name("callback")),
    )


def build(path: Path, packages: list[str], **options: str) -> None:
    """Make the tool image PATH of PACKAGES with OPTIONS of crashcart_build."""
    # Other tests may build at the same time, so these have a cache of their own.
    arguments = {"dest": str(path), "packages": packages, "cache": str(golden.CACHE / "build"), **options}
    call("localhost", "crashcart_build", arguments, become=False)


def start_module(host: str, module: str, arguments: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
    """Start MODULE on HOST with become."""
    options = ("-b", "-m", f"crashcart.fleet.{module}", "-a", json.dumps(arguments))
    return start_ansible("ansible", host, *options, **environment)


def call(
    host: str, module: str, arguments: dict[str, Any], *, become: bool = True, check: bool = True, **variables: Any
) -> dict[str, Any]:
    """Run MODULE on HOST and return its result. VARIABLES are given without their prefix ansible_."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            *("-m", f"crashcart.fleet.{module}", "-t", folder),
            *(("-a", json.dumps(arguments)) if arguments else ()),
            *(("-e", json.dumps({f"ansible_{key}": value for key, value in variables.items()})) if variables else ()),
        ]
        process = start_ansible("ansible", host, *options, *(("-b",) if become else ()))
        output, errors = process.communicate(timeout=seconds(600))
        path = Path(folder, host)
        assert path.exists(), output + errors
        result: dict[str, Any] = json.loads(path.read_text())
    if check:
        assert process.returncode == 0, str(result)  # pytest shortens a dict, but not a text
    return result
