# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of what processes held, from a host that may write anything."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import holdings

FOUND = {
    "time_ns": 5,
    "descriptors": [{"pid": 7, "fd": 3, "target": "/x"}],
    "waits": [{"tid": 7, "number": 202, "args": [0, 1, 2, 3, 4, 2**64 - 1]}],
    "resource_limits": {
        "processes": [{"pid": 7, "nofile": 1024, "nproc": None, "open": 4}],
        "group": {"pids.max": None, "pids.current": 3},
        "mounts": [{"path": "/", "filesystem": "overlay", "size": 5, "free": 4, "files": None, "free_files": None}],
    },
    "left_out": {"descriptors": 2},
}
TABLES = holdings.join(FOUND, FOUND)


def test_tables_of_both_ends():
    assert TABLES["descriptors"] == {
        "first": FOUND["descriptors"],
        "last": FOUND["descriptors"],
        "left_out": {"first": 2, "last": 2},
        "time_ns": {"first": 5, "last": 5},
    }
    for name, table in {**TABLES, **holdings.join({}, {})}.items():
        assert holdings.is_sound(name, table)
    assert holdings.is_sound("waits", None)  # as a capture of an older version has it


@pytest.mark.parametrize("value", [[], "x", 5, {}, {"first": []}, True])
@pytest.mark.parametrize("name", holdings.NAMES)
def test_another_form(name, value):
    assert not holdings.is_sound(name, value)


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, None, [], {}, 1 << 70])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("descriptors", ("first", 0, "pid")),
        ("descriptors", ("last", 0, "fd")),
        ("descriptors", ("last", 0, "target")),
        ("descriptors", ("last", 0)),
        ("descriptors", ("left_out", "first")),
        ("waits", ("first", 0, "tid")),
        ("waits", ("first", 0, "number")),
        ("waits", ("first", 0, "args")),
        ("waits", ("first", 0, "args", 5)),
        ("resource_limits", ("first", "processes", 0, "pid")),
        ("resource_limits", ("first", "processes")),
        ("resource_limits", ("first", "group")),
        ("resource_limits", ("first", "mounts")),
        ("resource_limits", ("first", "mounts", 0, "path")),
    ],
)
def test_a_value_of_another_form(name, path, value):
    table = copy.deepcopy(TABLES[name])
    place = table
    for step in path[:-1]:
        place = place[step]
    if type(value) is type(place[path[-1]]) and value in ([], {}, "5"):
        value = [1] if isinstance(value, list) else "x" * 5000
    place[path[-1]] = value
    assert not holdings.is_sound(name, table)


@pytest.mark.parametrize("value", [-1, 1.5, "5", True, [], 1 << 62])
@pytest.mark.parametrize(
    "path",
    [
        ("time_ns", "last"),
        ("first", "processes", 0, "nofile"),
        ("first", "processes", 0, "open"),
        ("first", "group", "pids.max"),
        ("first", "mounts", 0, "free_files"),
    ],
)
def test_a_limit_of_another_form(path, value):
    table = copy.deepcopy(TABLES["resource_limits"])
    place = table
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not holdings.is_sound("resource_limits", table)


@pytest.mark.parametrize(
    ("name", "place", "most"),
    [
        ("descriptors", ("first",), holdings.MAX_DESCRIPTORS),
        ("waits", ("first",), holdings.MAX_WAITS),
        ("resource_limits", ("first", "processes"), holdings.MAX_PROCESSES),
        ("resource_limits", ("first", "mounts"), holdings.MAX_MOUNTS),
    ],
)
def test_tables_have_bounds(name, place, most):
    table = copy.deepcopy(TABLES[name])
    within = table
    for step in place[:-1]:
        within = within[step]
    within[place[-1]] = within[place[-1]] * most
    assert holdings.is_sound(name, table)
    within[place[-1]] = [*within[place[-1]], *within[place[-1]][:1]]
    assert not holdings.is_sound(name, table)
