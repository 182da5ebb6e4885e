# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a container's control group will be: as engines with both of their managers have made them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import learn, predict

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("engine", "manager", "parent", "expected"),
    [
        ("docker", "cgroupfs", "", f"/docker/{ID}"),
        ("docker", "cgroupfs", "/shop/web", f"/shop/web/{ID}"),
        ("docker", "cgroupfs", "shop", None),
        ("docker", "systemd", "", f"/system.slice/docker-{ID}.scope"),
        ("docker", "systemd", "shop-web.slice", f"/shop.slice/shop-web.slice/docker-{ID}.scope"),
        ("docker", "systemd", "-.slice", f"/docker-{ID}.scope"),
        ("docker", "systemd", "/shop", None),
        ("podman", "cgroupfs", "", f"/libpod_parent/libpod-{ID}"),
        ("podman", "systemd", "", f"/machine.slice/libpod-{ID}.scope"),
        (
            *("podman", "systemd", "machine.slice/machine-libpod_pod_1f.slice"),
            f"/machine.slice/machine-libpod_pod_1f.slice/libpod-{ID}.scope",
        ),
        ("docker", "none", "", None),
        ("runc", "systemd", "", None),
    ],
)
def test_a_group_is_where_its_engine_puts_it(engine, manager, parent, expected):
    assert predict(engine, manager, parent, ID) == expected


OTHER = "fedcba9876543210" * 4


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"0::/shop.slice/docker-{OTHER}.scope\n", f"/shop.slice/docker-{ID}.scope"),
        (f"0::/machine.slice/libpod-{OTHER}.scope/container\n", f"/machine.slice/libpod-{ID}.scope"),
        (f"3:pids:/all/{OTHER}/init.scope\n0::/\n", f"/all/{ID}"),
        ("0::/user.slice\n", None),
    ],
)
def test_a_group_is_beside_that_of_another_container(cgroup, expected):
    assert learn(cgroup.encode(), OTHER, ID) == expected
