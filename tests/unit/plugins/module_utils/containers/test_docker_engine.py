# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Meaning of the engine's answers. No engine is asked."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import docker_engine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError

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


def test_an_sdk_that_is_not_there(monkeypatch):
    reason = "ModuleNotFoundError: No module named 'docker'"
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python3")
    assert "for /opt/venv/bin/python3: /opt/venv/bin/python3 -m pip install docker, or" in docker_engine.describe_sdk(
        reason
    )
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert ": install python3-docker, or" in docker_engine.describe_sdk(reason)
    assert "does not fit" in docker_engine.describe_sdk("ModuleNotFoundError: No module named 'six'")


VARIABLES = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
URL = "tcp://127.0.0.1:2376"


@pytest.fixture
def configuration(monkeypatch, tmp_path):
    """A folder as ~/.docker, and an environment that names no engine."""
    pytest.importorskip("docker")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def add_context(folder, name, url):
    place = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": url, "SkipTLSVerify": False}}}
    (place / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("url", "variables", "found", "words"),
    [
        (None, {}, docker_engine.DEFAULT_HOST, ()),
        (None, {"DOCKER_HOST": "unix:///a"}, "unix:///a", ("--host", "unix:///a")),
        ("unix:///b", {"DOCKER_HOST": "unix:///a", "DOCKER_CONTEXT": "other"}, "unix:///b", ("--host", "unix:///b")),
        (None, {"DOCKER_CONTEXT": "other"}, "unix:///other", ("--context", "other")),
        (None, {"DOCKER_CONTEXT": "default"}, docker_engine.DEFAULT_HOST, ()),
        (None, {"DOCKER_HOST": "unix:///a", "DOCKER_TLS_VERIFY": "1"}, "unix:///a", ("--host", "unix:///a")),
    ],
)
def test_where_the_engine_is(configuration, monkeypatch, url, variables, found, words):
    add_context(configuration, "other", "unix:///other")
    (configuration / "config.json").write_text("{}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert docker_engine.find_endpoint(url) == docker_engine.Endpoint(found, None, words)


@pytest.mark.parametrize(("verify", "word"), [("1", "--tlsverify"), ("", "--tls")])
def test_tls_is_by_the_environment(configuration, monkeypatch, verify, word):
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (configuration / name).write_text("")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", verify)
    monkeypatch.setenv("DOCKER_CERT_PATH", str(configuration))
    endpoint = docker_engine.find_endpoint(URL)
    assert endpoint.tls.ca_cert == str(configuration / "ca.pem")
    assert bool(endpoint.tls.verify) == bool(verify)
    assert endpoint.words[:3] == ("--host", URL, word)
    (configuration / "key.pem").unlink()
    with pytest.raises(ContainerError, match="takes ca.pem, cert.pem and key.pem in"):
        docker_engine.find_endpoint(URL)


def test_the_context_that_was_chosen(configuration, monkeypatch):
    add_context(configuration, "chosen", "unix:///chosen")
    (configuration / "config.json").write_text(json.dumps({"currentContext": "chosen"}))
    assert docker_engine.find_endpoint(None).url == "unix:///chosen"
    (configuration / "config.json").write_text(json.dumps({"currentContext": "gone"}))
    with pytest.raises(ContainerError, match="there is no docker context 'gone': see 'docker context ls'"):
        docker_engine.find_endpoint(None)
    if os.geteuid() == 0:
        os.chown(configuration / "config.json", 1234, 1234)
        assert docker_engine.find_endpoint(None).url == docker_engine.DEFAULT_HOST
    (configuration / "config.json").unlink()
    monkeypatch.setenv("HOME", str(configuration))
    monkeypatch.setenv("DOCKER_CONTEXT", "chosen")
    with pytest.raises(ContainerError, match="make it with 'docker context use chosen'"):
        docker_engine.find_endpoint(None)


@pytest.mark.parametrize(
    ("name", "url", "words", "command"),
    [
        ("docker", docker_engine.DEFAULT_HOST, (), ["docker"]),
        ("docker", URL, ("--host", URL, "--tlsverify"), ["docker", "--host", URL, "--tlsverify"]),
        ("docker", URL, ("--context", "other"), ["docker", "--context", "other"]),
        # Podman's command knows nothing of Docker's options; of itself it asks what its service does.
        ("podman", docker_engine.DEFAULT_HOST, (), ["podman"]),
        ("podman", f"unix://{docker_engine.PODMAN_SOCKET}", ("--context", "other"), ["podman"]),
        ("podman", "unix:///other", ("--host", "unix:///other"), ["podman", "--url", "unix:///other"]),
    ],
)
def test_the_command_for_a_shell_asks_the_same_engine(name, url, words, command):
    engine = object.__new__(docker_engine.DockerEngine)
    engine.name, engine.host, engine._endpoint = name, url, docker_engine.Endpoint(url, None, words)
    container = docker_engine.parse_inspected(INSPECTED)
    assert engine.list_shell_words(container, ["A=b"], ["sh"]) == [*command, "exec", "-it", "-e", "A=b", ID[:12], "sh"]
