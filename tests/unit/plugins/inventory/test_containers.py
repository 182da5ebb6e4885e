# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The groups that containers are in."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.inventory import containers

CONTAINER = {
    "image": "shop/api:7",
    "labels": {"tier": "front", "$(id) {{ 7 }}": "é\n"},
    "networks": ["shop_default"],
    "runtime": "docker",
}


@pytest.mark.parametrize(
    ("kinds", "groups"),
    [
        ([], []),
        (["image"], ["image_shop_api_7"]),
        (["label"], ["label_tier_front", "label___id_____7____é_"]),
        (["network", "runtime", "host"], ["network_shop_default", "runtime_docker", "on_web_1"]),
    ],
)
def test_groups(kinds, groups):
    assert containers._list_groups("web-1", CONTAINER, kinds) == groups


def make(name, runtime, number, user=None):
    return {"name": name, "runtime": runtime, "id": f"{number:x}" * 64, "user": user}


def test_no_two_containers_of_a_host_share_a_name():
    found = [
        make("api", "docker", 1),
        make("dup", "docker", 2),
        make("dup", "podman", 3),
        make("dup.podman", "docker", 4),
    ]
    found += [make("same", "containerd", 5), make("same", "containerd", 6)]
    names = containers._name(found)
    assert names == ["api", "dup.docker", f"dup.{'3' * 12}", "dup.podman", f"same.{'5' * 12}", f"same.{'6' * 12}"]


def test_users_take_no_name_away():
    found = [
        make("api", "podman", 1, user=7),
        make("api", "podman", 2, user=8),
        make("db", "podman", 3, user=7),
        make("api", "docker", 4),
        make("db.user7", "docker", 5),
        make("a/b", "podman", 6, user=7),
        make("a_b", "podman", 7, user=7),
    ]
    names = containers._name(found)
    assert names[:5] == ["api.user7", "api.user8", "db.user7.podman", "api", "db.user7"]
    assert names[5:] == [f"a_b.user7.{'6' * 12}", f"a_b.user7.{'7' * 12}"]


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("api-1.x_y", "api-1.x_y"),
        ("default/web-7f/nginx", "default_web-7f_nginx"),
        ("-x", "_x"),
        ("../../etc", "_._.._etc"),
        ("a:b,c&!d[1]*?@e~ é\n", "a_b_c__d_1____e____"),
        ("n" * 200, "n" * 107 + "." + "1" * 12),
    ],
)
def test_names_that_files_and_patterns_take(name, cleaned):
    assert containers._name([make(name, "docker", 1)]) == [cleaned]


def test_a_template_stays_with_the_host_whose_variable_it_is():
    assert containers._refer("web-1", "ansible_user") == '{{ hostvars["web-1"]["ansible_user"] }}'


@pytest.mark.parametrize(
    ("variables", "link"),
    [
        ({}, None),
        ({"ansible_connection": "local"}, "local"),
        ({"ansible_connection": "ansible.builtin.ssh"}, "ssh"),
        ({"ansible_connection": "paramiko"}, None),
    ],
)
def test_how_a_host_is_reached_its_containers_are(variables, link):
    assert containers._translate(variables).get("ansible_cart_link") == link
