# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers were created with the start hook's device or runtime."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import users

REQUESTS = {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/gpu=0", "crashcart.fleet/trace=start-up"]}]}


class Host:
    """A host whose one engine describes its containers as ENTRIES."""

    def __init__(self, entries):
        self._entries = entries

    def list_containers(self, *, users):
        assert not users
        return [type("Container", (), {"runtime": "docker", "number": number}) for number in range(len(self._entries))]

    def inspect(self, container):
        return self._entries[container.number]


@pytest.mark.parametrize(
    ("chosen", "by"),
    [
        ({"Runtime": "runc"}, None),
        ({"Runtime": "crashcart-diagnose"}, ("crashcart-diagnose",)),
        ({"Runtime": "runc", **REQUESTS}, ("crashcart.fleet/trace=start-up",)),
        ({"Runtime": "crashcart", **REQUESTS}, ("crashcart", "crashcart.fleet/trace=start-up")),
        ({"Runtime": "runc", "DeviceRequests": None}, None),
    ],
)
def test_by_what(chosen, by):
    entry = {"Id": "0", "Name": "/api", "HostConfig": chosen, "State": {"Status": "exited", "Error": ""}}
    assert [user.by for user in users.list_users(Host([entry]))] == ([] if by is None else [by])


def test_of_podman():
    entry = {
        "Id": "0",
        "Name": "api",
        "Config": {"CreateCommand": ["podman", "run", "--device=crashcart.fleet/trace=a", "x"]},
    }
    (user,) = users.list_users(Host([entry]))
    assert (user.by, user.name, user.is_hindered) == (("crashcart.fleet/trace=a",), "api", False)


@pytest.mark.parametrize(
    ("policy", "status", "error", "is_hindered"),
    [
        ("always", "exited", "exec /usr/libexec/crashcart/runtime: no such file", True),
        ("always", "exited", "port is in use", False),
        ("always", "running", "x", False),
        ("no", "exited", "x", False),
        ("always", "exited", "", False),
    ],
)
def test_who_was_hindered(policy, status, error, is_hindered):
    chosen = {"Runtime": "crashcart", "RestartPolicy": {"Name": policy}}
    entry = {"Id": "0", "Name": "/api", "HostConfig": chosen, "State": {"Status": status, "Error": error}}
    (user,) = users.list_users(Host([entry]))
    assert user.is_hindered is is_hindered
