# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers were created with the start hook's device or runtime."""

from __future__ import annotations

import json

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import users
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.wiring import ANNOTATION
from ansible_collections.crashcart.fleet.plugins.module_utils.names import HOOK_PROGRAM

REQUESTS = {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/gpu=0", "crashcart.fleet/trace=start-up"]}]}


class Host:
    """A host whose one engine describes its containers as ENTRIES, some of which are errors; SILENCE says who does not answer."""

    def __init__(self, entries, silence=""):
        self._entries, self._silence = entries, silence
        self.errors = {"docker": silence} if silence else {}
        self.is_complete = not silence

    def describe_silence(self):
        return self._silence

    def list_containers(self, *, users):
        assert not users
        return [
            type("Container", (), {"runtime": "docker", "number": number, "name": f"c{number}"})
            for number in range(len(self._entries))
        ]

    def inspect(self, container):
        entry = self._entries[container.number]
        if isinstance(entry, Exception):
            raise entry
        return entry


@pytest.fixture(autouse=True)
def _without_podman(monkeypatch):
    monkeypatch.setattr(users, "_PODMAN_STORE", "/nonesuch")


def list_users(entry):
    found, troubles = users.list_users(Host([entry]))
    assert troubles == []
    return found


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
    assert [user.by for user in list_users(entry)] == ([] if by is None else [by])


def test_of_podman():
    entry = {
        "Id": "0",
        "Name": "api",
        "Config": {"CreateCommand": ["podman", "run", "--device=crashcart.fleet/trace=a", "x"]},
    }
    (user,) = list_users(entry)
    assert (user.by, user.name, user.is_hindered) == (("crashcart.fleet/trace=a",), "api", False)


@pytest.mark.parametrize(
    ("policy", "status", "error", "is_hindered"),
    [
        ("always", "exited", "exec /usr/libexec/crashcart/crashcart-runtime: no such file", True),
        ("always", "exited", "port is in use", False),
        ("always", "running", "x", False),
        ("no", "exited", "x", False),
        ("always", "exited", "", False),
    ],
)
def test_who_was_hindered(policy, status, error, is_hindered):
    chosen = {"Runtime": "crashcart", "RestartPolicy": {"Name": policy}}
    entry = {"Id": "0", "Name": "/api", "HostConfig": chosen, "State": {"Status": status, "Error": error}}
    (user,) = list_users(entry)
    assert user.is_hindered is is_hindered


def test_what_is_not_known_is_told_beside_what_is():
    entry = {"Id": "0", "Name": "/api", "HostConfig": {"Runtime": "crashcart"}, "State": {}}
    entries = [ContainerError("its storage is damaged"), entry, ContainerGoneError("c2 was just removed")]
    found, troubles = users.list_users(Host(entries))
    assert ([user.name for user in found], troubles) == (["api"], ["container c0: its storage is damaged"])
    found, troubles = users.list_users(Host([entry], "containers of podman are not looked at: it hangs"))
    assert ([user.name for user in found], troubles) == (["api"], ["containers of podman are not looked at: it hangs"])


def test_podman_is_asked_where_nobody_has_run_it_since_the_boot(monkeypatch, tmp_path):
    entry = {
        "Id": "0",
        "Name": "api",
        "Config": {"CreateCommand": ["podman", "run", "--device=crashcart.fleet/trace=a", "x"]},
    }

    class Podman:
        def list_containers(self):
            return [type("Container", (), {"runtime": "podman", "name": "api"})]

        def inspect(self, _container):
            return entry

    monkeypatch.setattr(users, "_PODMAN_STORE", str(tmp_path))
    monkeypatch.setattr(users, "Podman", Podman)
    monkeypatch.setattr(users.shutil, "which", lambda _name: "/usr/bin/podman")
    found, troubles = users.list_users(Host([]))
    assert ([user.by for user in found], troubles) == ([("crashcart.fleet/trace=a",)], [])


@pytest.mark.parametrize(("annotation", "by"), [(None, [("crashcart.fleet/trace=a",)]), ("a", [])])
def test_of_podmans_api(tmp_path, annotation, by):
    """Check a container without the command of its creation, whose device, or annotation, has a hook in the runtime's specification."""
    hook = {"path": HOOK_PROGRAM, "args": ["start-hook", "create", "a"]}
    document = {
        "hooks": {"createRuntime": [{"path": "/usr/bin/other"}, hook]},
        "annotations": {ANNOTATION: annotation} if annotation else {},
    }
    (tmp_path / "config.json").write_text(json.dumps(document))
    entry = {
        "Id": "0",
        "Name": "api",
        "Config": {"CreateCommand": None},
        "OCIConfigPath": str(tmp_path / "config.json"),
    }
    assert [user.by for user in list_users(entry)] == by
    (tmp_path / "config.json").write_text("{")
    assert list_users(entry) == []
