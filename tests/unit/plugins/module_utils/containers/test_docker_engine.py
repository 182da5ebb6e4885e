# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engine's answers mean. No engine is asked."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import docker_engine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container

ID = "0123456789ab" + "f" * 52
INSPECTED = {
    "Id": ID,
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "Pid": 4242, "ExitCode": 0},
    "Config": {"Image": "nginx:1", "Labels": {"tier": "front"}, "Env": ["A=1"]},
    "HostConfig": {"Privileged": False},
}
LISTED = {"Id": ID, "Names": ["/web"], "State": "running", "Image": "nginx:1", "Labels": {"tier": "front"}}


def test_an_inspected_container():
    assert docker_engine.parse_inspected(INSPECTED) == Container(
        ID, "web", "running", 4242, "nginx:1", {"tier": "front"}
    )


def test_an_inspected_container_that_stopped_and_has_no_labels():
    entry = {**INSPECTED, "State": {"Status": "exited", "Pid": 0}, "Config": {"Image": "nginx:1", "Labels": None}}
    assert docker_engine.parse_inspected(entry) == Container(ID, "web", "exited", 0, "nginx:1", {})


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["/web"], "web"),
        # A legacy link makes the container look as if it bore another one's name, too.
        (["/other/alias", "/web"], "web"),
        (["/web", "/other/alias"], "web"),
        (["/other/alias"], ID[:12]),
        ([], ID[:12]),
        (None, ID[:12]),
    ],
)
def test_the_name_of_a_listed_container(names, name):
    container = docker_engine._parse_listed({**LISTED, "Names": names})
    assert container == Container(ID, name, "running", 0, "nginx:1", {"tier": "front"})


def test_a_listed_container_without_labels():
    assert docker_engine._parse_listed({**LISTED, "Labels": None}).labels == {}


@pytest.mark.parametrize(
    "said",
    [
        "Error while fetching server API version: HTTPConnection.request() got an unexpected keyword argument 'chunked'",
        "Error while fetching server API version: Not supported URL scheme http+docker",
        "module 'urllib3.connection' has no attribute 'match_hostname'",
        "request() missing 1 required positional argument: 'url'",
    ],
)
def test_a_library_that_does_not_fit_is_told_from_an_engine_that_is_silent(said):
    assert docker_engine._MISFIT.search(said)
    assert f"does not fit the libraries beside it ({said})" in docker_engine.describe_sdk(said)


@pytest.mark.parametrize(
    "said",
    [
        "Error while fetching server API version: ('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))",
        "'ApiVersion'",
        "list indices must be integers or slices, not str",
    ],
)
def test_an_engine_that_is_silent_or_strange_is_not_blamed_on_the_sdk(said):
    assert not docker_engine._MISFIT.search(said)


def test_an_sdk_that_is_not_there():
    assert "install python3-docker" in docker_engine.describe_sdk("ModuleNotFoundError: No module named 'docker'")
    assert "does not fit" in docker_engine.describe_sdk("ModuleNotFoundError: No module named 'six'")
