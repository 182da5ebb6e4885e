# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a container's control group will be: as engines with both of their managers have made them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import predict

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
        ("docker", "none", "", None),
        ("runc", "systemd", "", None),
    ],
)
def test_a_group_is_where_its_engine_puts_it(engine, manager, parent, expected):
    assert predict(engine, manager, parent, ID) == expected
