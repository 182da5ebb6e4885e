# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixtures of all integration tests: a real engine, real containers and a real sshd."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from support import alone, host, images, parts, sshd

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox

IMAGES = "crashcart-test"
# Of all tests of a run, so that no two containers have one name.
_numbers = itertools.count()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    parts.select(config, items)


@pytest.fixture(scope="session", autouse=True)
def controller(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Set the controller up: an inventory with this machine, and pipelining as in the checkout's ansible.cfg."""
    inventory = tmp_path_factory.mktemp("inventory") / "hosts"
    inventory.write_text(
        'localhost ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"\n'
    )
    # A slow machine has a slow engine.
    os.environ.setdefault("DOCKER_TIMEOUT", str(host.seconds(60)))
    os.environ.update(ANSIBLE_INVENTORY=str(inventory), ANSIBLE_PIPELINING="1", ANSIBLE_NOCOLOR="1")
    # A shell makes its background processes ignore SIGINT, and the processes that the tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def held_kernel() -> Iterator[None]:
    """Wait until no other run of these tests is on this machine. Runs share a kernel, and each removes everything of ours at its end."""
    with alone.hold_kernel():
        yield


@pytest.fixture(scope="session", autouse=True)
def tool_image(controller: None, held_kernel: None) -> Iterator[str]:
    """Put the default tool image into this host's store and give its name; check after all tests that a cleanup leaves the host clean."""
    assert os.environ.get("DOCKER_HOST"), "tests run by `make integration`, which starts an engine for them"
    images.make(IMAGES, "busybox", "static", "python", "redis", "nginx")
    # One build for each engine is enough, since each run has a new engine. Even a build that finds nothing to do takes seconds.
    known = Path(os.environ["DOCKER_HOST"][len("unix://") :]).parent / "tool-image"
    if not known.exists():
        host.call_module("crashcart_build", dest=host.DEFAULT_IMAGE)
        known.touch()
    images.install(host.DEFAULT_IMAGE, "default")
    yield "default"
    host.clean_up()
    assert host.list_loop_devices() == []
    assert host.list_instances() == []


@pytest.fixture
def container() -> Iterator[Callable[..., str]]:
    """Give a function that starts containers: container(IMAGE, *COMMAND, options=(…), name=…) → name. They are removed after the test."""
    names: list[str] = []

    def start(
        image: str = "busybox", *command: str, options: tuple[str, ...] = ("--network", "none"), name: str | None = None
    ) -> str:
        name = name or f"cc-test-{os.getpid()}-{next(_numbers)}"
        host.docker("run", "-d", "--name", name, *options, f"{IMAGES}/{image}", *command)
        names.append(name)
        return name

    yield start
    for name in names:
        host.docker("rm", "-f", name, check=False)
    if host.list_instances() or "crashcart" in Path(f"{host.TRACEFS}/dynamic_events").read_text():
        host.call_module("ftrace_instance", state="absent", everything=True)
    # Any later fetch would bring them home, whatever it asks for.
    for path in Path(outbox.FOLDER).glob("*"):
        path.unlink()
    host.wait_until_empty(host.list_loop_devices)


@pytest.fixture(scope="session")
def ssh_hosts() -> Iterator[Path]:
    """Give an inventory with this machine over ssh: `as_root` logs in as root, `as_user` as an unprivileged user with sudo."""
    # sshd reads keys as the user, and another pytest that starts meanwhile closes pytest's folder to other users.
    with tempfile.TemporaryDirectory(prefix="crashcart-sshd-") as folder, sshd.serve(Path(folder)) as inventory:
        yield inventory
