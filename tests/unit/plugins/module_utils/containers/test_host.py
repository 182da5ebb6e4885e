# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a runtime that does not answer. Nothing of the machine is asked."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError

NOWHERE = "unix:///nonesuch/docker.sock"


@pytest.fixture
def silent(monkeypatch):
    """A host whose Docker engine should be there, and which has nothing else."""
    monkeypatch.setenv("DOCKER_HOST", NOWHERE)
    monkeypatch.setattr(host.oci, "find_roots", lambda: ([], []))
    monkeypatch.setattr(host.podman, "ROOT_STATE", "/nonesuch")
    monkeypatch.setattr(host.podman, "ROOT_SOCKET", "/nonesuch")
    return host.Host(None)


def test_what_is_not_found_may_be_the_silent_ones(silent):
    error = silent.explain(ContainerError("no container is called 'api'"))
    assert str(error).startswith("containers of docker are not looked at: ")
    assert str(error).endswith("; of what else there is, no container is called 'api'")
    assert "docker" in silent.describe_silence()


def test_where_all_answer_nothing_is_added(silent):
    silent.errors.clear()
    error = ContainerError("no container is called 'api'")
    assert silent.explain(error) is error
    assert silent.describe_silence() == ""
