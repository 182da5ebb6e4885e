# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where an engine is: what `docker` finds by its environment and its contexts the modules find, too."""

from __future__ import annotations

import os

import pytest
from support import host, tls

CERTIFICATES = ("ca.pem", "cert.pem", "key.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls") / "ours"
    tls.make_certificates(folder)
    return folder


@pytest.fixture
def engine(certificates, monkeypatch):
    """The URL of the engine over TLS, where other certificates are the usual ones."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    with tls.serve(certificates) as url:
        yield url


def execute(name, **options):
    return host.call_module("crashcart_exec", containers=[name], argv=["echo", "here"], **options)["results"][0][
        "stdout"
    ]


def test_an_engine_that_wants_tls(container, certificates, engine, monkeypatch, tmp_path):
    name = container()
    monkeypatch.setenv("DOCKER_HOST", engine)
    with pytest.raises(host.ModuleFailed, match="it wants TLS: set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH"):
        execute(name, docker_host=engine)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))
    assert execute(name) == execute(name, docker_host=engine) == "here\n"
    shell = host.call_module("crashcart_attach", containers=[name])["attachments"][0]["shell"]
    assert f" --host {engine} --tlsverify --tlscacert={certificates}/ca.pem " in shell
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    with pytest.raises(host.ModuleFailed, match=f"takes ca.pem, cert.pem and key.pem in {tmp_path} .DOCKER_CERT_PATH"):
        execute(name, docker_host=engine)
    other = tmp_path / "other"
    tls.make_certificates(other)
    monkeypatch.setenv("DOCKER_CERT_PATH", str(other))
    with pytest.raises(host.ModuleFailed, match="its TLS and the files of DOCKER_CERT_PATH, .* do not fit"):
        execute(name, docker_host=engine)


def test_the_docker_context_in_use(container, certificates, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    files = ",".join(f"{file[: -len('.pem')]}={certificates}/{file}" for file in CERTIFICATES)
    host.run("docker", "context", "create", "over-tls", "--docker", f"host={engine},{files}")
    host.run("docker", "context", "use", "over-tls")
    name = container()
    monkeypatch.delenv("DOCKER_HOST")
    assert execute(name) == "here\n"
    shell = host.call_module("crashcart_attach", containers=[name])["attachments"][0]["shell"]
    assert shell.startswith("docker --context over-tls exec ")
    host.call_module("crashcart_attach", containers=[name], state="detached")
    monkeypatch.setenv("DOCKER_CONTEXT", "nonesuch")
    with pytest.raises(host.ModuleFailed, match="there is no docker context 'nonesuch'"):
        execute(name)
    monkeypatch.delenv("DOCKER_CONTEXT")
    # One that somebody else could have left in root's HOME.
    os.chown(tmp_path / "config.json", 1234, 1234)
    with pytest.raises(host.ModuleFailed):
        execute(name)
    os.chown(tmp_path / "config.json", 0, 0)  # for the container's removal
