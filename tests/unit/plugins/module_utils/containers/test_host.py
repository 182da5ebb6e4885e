# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which containers that several runtimes tell of are one, and what is said of a runtime that does not answer."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError

ID = "ab" * 32
NOWHERE = "unix:///nonesuch/docker.sock"


def make(runtime, identity=ID, pid=100, owner=None):
    return Container(identity, "api", "running", pid, "", {}, runtime, owner_uid=owner)


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        (make("docker", pid=0), make("podman"), True),
        (make("podman"), make("podman", pid=0), True),
        (make("docker"), make("docker", "cd" * 32), False),
        (make("runc", "api"), make("crun", "api"), True),
        # Names of that kind may be used twice.
        (make("runc", "api"), make("crun", "api", pid=101), False),
        (make("runc", "api", pid=0), make("crun", "api", pid=0), False),
        # As in two namespaces of containerd: nothing tells them apart.
        (make("containerd", "api"), make("containerd", "api", pid=101), True),
        # Users may take whichever id.
        (make("docker"), make("podman", owner=1000), False),
        (make("podman", owner=1001), make("podman", owner=1000), False),
        (make("docker", owner=1000), make("podman", owner=1000), True),
    ],
)
def test_a_container_of_two_runtimes_is_one_of_the_first(first, second, is_one):
    listed = [first]
    host._add(listed, [second])
    assert listed == ([first] if is_one else [first, second])


@pytest.mark.parametrize(
    ("engine", "pattern", "meant"),
    [
        ("podman", "docker:api", "podman:api"),
        ("podman", "docker:1000/a*", "podman:1000/a*"),
        ("podman", "api", "api"),
        ("podman", "my-docker:api", "my-docker:api"),
        ("docker", "docker:api", "docker:api"),
        ("docker", "podman:api", "podman:api"),
        (None, "docker:api", "docker:api"),
    ],
)
def test_podman_in_the_place_of_docker_has_both_names(engine, pattern, meant):
    class Engine:
        name = engine

    found = object.__new__(host.Host)
    found.docker = Engine() if engine else None
    assert found.find_meant(pattern) == meant


def test_a_link_to_a_socket_is_that_socket(tmp_path):
    (tmp_path / "podman.sock").touch()
    (tmp_path / "docker.sock").symlink_to(tmp_path / "podman.sock")
    assert host._is_same_socket(f"unix://{tmp_path}/docker.sock", str(tmp_path / "podman.sock"))
    (tmp_path / "other.sock").touch()
    for url in (f"unix://{tmp_path}/other.sock", f"unix://{tmp_path}/nonesuch", "tcp://127.0.0.1:2375", "npipe://x"):
        assert not host._is_same_socket(url, str(tmp_path / "podman.sock"))


@pytest.mark.parametrize(
    ("errors", "is_docker_expected", "is_complete"),
    [
        ({}, True, True),
        ({"docker": "no Docker engine answers"}, True, False),
        # Asked only because nothing else is there.
        ({"docker": "no Docker engine answers"}, False, True),
        ({"docker": "no Docker engine answers", "podman": "it hangs"}, False, False),
        ({"runc --root /run/runc": "it hangs"}, False, False),
    ],
)
def test_a_host_is_known_where_all_that_should_be_there_have_answered(errors, is_docker_expected, is_complete):
    found = object.__new__(host.Host)
    found.errors, found._is_docker_expected = errors, is_docker_expected
    assert found.is_complete is is_complete


@pytest.fixture
def silent(monkeypatch):
    """A host whose Docker engine should be there, and which has nothing else."""
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    monkeypatch.setattr(host.oci, "find_roots", lambda: ([], []))
    monkeypatch.setattr(host.podman, "ROOT_STATE", "/nonesuch")
    monkeypatch.setattr(host, "PODMAN_SOCKET", "/nonesuch")
    return host.Host(None)


def test_what_is_not_found_may_be_the_silent_ones(silent):
    error = silent.explain(ContainerError("no container is called 'api'"))
    assert str(error).startswith("containers of docker are not looked at: ")
    assert str(error).endswith("; in the other runtimes, no container is called 'api'")
    assert "docker" in silent.describe_silence()


def test_where_all_answer_nothing_is_added(silent):
    silent.errors.clear()
    error = ContainerError("no container is called 'api'")
    assert silent.explain(error) is error
    assert silent.describe_silence() == ""
