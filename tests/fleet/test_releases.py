# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test kernels, runtimes and engines of later releases of Debian, each in a guest of its own. `make matrix` runs this."""

from __future__ import annotations

import fleet
import pytest
from conftest import play
from test_runtimes import (
    check_apparmor,
    check_foreign_architecture,
    check_kernel,
    check_podman,
    check_remapped_docker,
    check_rootless_docker,
    check_without_engine,
    tell,
)


@pytest.fixture(scope="module", params=["trixie", "sid"])
def later(request, image):
    """Run a guest of each release in turn, with a small tool image."""
    fleet.down()
    try:
        (host,) = fleet.up(1, [request.param])
        play("install", image_src=str(image))
        yield host
    finally:
        fleet.down()


def test_every_kernel(later, tmp_path):
    tell(later, lambda guest: check_kernel(guest, tmp_path))


@pytest.mark.parametrize(
    "check",
    [
        check_podman,
        check_remapped_docker,
        check_rootless_docker,
        check_without_engine,
        check_apparmor,
        check_foreign_architecture,
    ],
)
def test_runtimes(later, check):
    tell(later, check)
