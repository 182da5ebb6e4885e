# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test kernels, runtimes and engines of later releases of Debian, each in a guest of its own. `make matrix` runs this."""

from __future__ import annotations

import fleet
import pytest
from conftest import find_title, play
from support import matrix
from test_runtimes import (
    check_apparmor,
    check_foreign_architecture,
    check_kernel,
    check_podman,
    check_remapped_docker,
    check_rootless_docker,
    check_start_hook_with_crun,
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


# What each check shows.
CHECKS = {
    check_podman: "Podman of root, rootless, and with `--uidmap`, by crun; a crash loop",
    check_start_hook_with_crun: "start hook by crun, for a device and an annotation",
    check_remapped_docker: "Docker with userns-remap",
    check_rootless_docker: "rootless Docker",
    check_without_engine: "systemd-nspawn, LXC, annotations of CRI-O, a container in a container",
    check_apparmor: "AppArmor",
    check_foreign_architecture: "a container of arm64 by QEMU's user emulation, on amd64",
}


def test_every_kernel(later, tmp_path):
    tell(later, lambda guest: check_kernel(guest, tmp_path))


@pytest.mark.parametrize("check", CHECKS)
def test_runtimes(request, later, check):
    matrix.note(request.node, "hosts", find_title(later), CHECKS[check])
    tell(later, check)
