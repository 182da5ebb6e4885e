# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of engines: hosts with the engines of three releases of Debian, and a small tool image on each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path[1:1] = [str(Path(__file__).parents[1] / name) for name in ("fleet", "integration")]

import engines
import releases
import stations
from support import alone, images, matrix
from support import host as support_host

pytest_runtest_logreport = matrix.pytest_runtest_logreport  # writes down what tests have shown


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


@pytest.fixture(scope="session", params=releases.RELEASES)
def station(
    request: pytest.FixtureRequest, held_kernel: None, image: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Run a host of each release in turn, and install the tool image there by the playbook."""
    with stations.run(request.param, image, tmp_path_factory.mktemp(request.param)) as station:
        yield station


@pytest.fixture(params=engines.KINDS)
def engine(request: pytest.FixtureRequest, station: stations.Station) -> engines.Engine:
    """Give each engine of the host in turn."""
    return station.engines[request.param]


@pytest.fixture(autouse=True)
def shown(request: pytest.FixtureRequest) -> None:
    """Note what a test of an engine shows: the first line of its docstring, and its parameter."""
    if "engine" in request.fixturenames:
        station, engine = request.getfixturevalue("station"), request.getfixturevalue("engine")
        rights = matrix.read_parameters(request.node).get("rights", "")
        row = " ".join(filter(None, (request.function.__doc__.splitlines()[0].rstrip("."), rights)))
        matrix.note(request.node, "engines", f"{engine.title} {station.find_version(engine.runtime)}", row)
