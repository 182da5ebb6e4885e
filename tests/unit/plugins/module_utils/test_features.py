# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernel releases, and the shape of what is said of a host."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils import feature, features
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import boot


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("6.1.0-17-amd64", (6, 1)),
        ("5.8.0", (5, 8)),
        ("5.10.0-rc1", (5, 10)),
        ("4.18.0-553.el8_10.x86_64", (4, 18)),
        ("6.14-arch1", (6, 14)),
        ("6", (6,)),
        ("", ()),
    ],
)
def test_release(release, numbers):
    assert boot.parse_release(release) == numbers


def test_releases_compare_by_number_and_not_by_text():
    assert boot.parse_release("5.10.1") > boot.parse_release("5.8.18")
    assert boot.parse_release("10.0") > boot.parse_release("9.99")
    assert boot.parse_release("4.99.9") < boot.parse_release("5.8.0")


def test_a_feature_that_is_there_gives_no_reason_and_a_missing_one_does():
    found = features.list_features()
    names = [feature.name for feature in found]
    assert len(set(names)) == len(names)
    assert {"kernel", "mount_api", "squashfs", "loop", "cgroups", "tracefs", "syscall_names"} <= set(names)
    assert [feature.name for feature in found if feature.ok == bool(feature.reason)] == []
    assert [feature.name for feature in found if feature.ok and feature.consequence] == []


def test_what_follows_is_said_of_all_that_is_needed():
    unneeded = {"hist_triggers", "snapshot"}
    names = {found.name for found in features.list_features()} - unneeded
    assert [name for name in names if not feature.make_missing(name, "why").consequence] == []
    assert [name for name in unneeded if feature.make_missing(name, "why").consequence] == []
