# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker engine, through its SDK, and other engines that speak its API, such as Podman's service."""

from __future__ import annotations

import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import control_groups
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import WRONG_FORM, read_engine_timeout
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    SHORT_ID_LENGTH,
    Container,
    ContainerError,
    ContainerGoneError,
    make_container,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.feature import Feature, find_way
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

if sys.version_info < (3, 12):
    # Where setuptools is installed, it replaces distutils. Older SDKs import distutils, and the replacement doubles the time of that.
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "_distutils_hack"]
DOCKER_IMPORT_ERROR: str | None = None
try:
    import docker
    import docker.errors
    from requests.exceptions import RequestException
except Exception as import_error:  # an SDK beside libraries of another age may raise anything
    DOCKER_IMPORT_ERROR = f"{type(import_error).__name__}: {import_error}"
try:
    from docker.context import ContextAPI
    from docker.context.config import get_current_context_name
except Exception:
    ContextAPI = None  # an SDK before 4.3

_TLS_VARIABLES = ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
DEFAULT_HOST = "unix:///var/run/docker.sock"
PODMAN_SOCKET = "/run/podman/podman.sock"
ENGINE_OPTIONS = {"docker": "--host", "podman": "--url"}  # by which the engines' commands take a socket


# Python's messages where a library has another interface than its caller expects; the SDK may have wrapped the exception.
_MISFIT = re.compile(r"(unexpected|missing|takes) .*argument|module '[^']*' has no attribute|URL scheme")


def check_sdk() -> Feature:
    """Return the feature that says if the SDK for this engine can be used on the host, and otherwise how to get it."""
    if not DOCKER_IMPORT_ERROR:
        return Feature("docker_sdk", True, "")
    return Feature("docker_sdk", False, describe_sdk(DOCKER_IMPORT_ERROR), "containers of Docker are not found")


def describe_sdk(reason: str) -> str:
    """Return a message for users that the SDK cannot be used, with the next step; REASON is the text of an exception."""
    python = sys.executable or "the host's Python"
    way = find_way("docker", "python3-docker")
    other = "or choose another Python (ansible_python_interpreter, for the connection ansible_cart_python)"
    if "No module named 'docker'" in reason:
        return f"the Docker SDK for Python is missing on the host, for {python}: {way}, {other}"
    return (
        f"the Docker SDK for Python of {python} does not fit the libraries beside it ({reason}): install all of them from the"
        f" distribution (python3-docker), or the newest version of each, {other}"
    )


@dataclass(frozen=True)
class Endpoint:
    """The address of an engine.

    URL: as in DOCKER_HOST. TLS: the SDK's configuration, None for none. WORDS: the options that give the command `docker` the same address.
    """

    url: str
    tls: Any = None
    words: tuple[str, ...] = ()


def find_endpoint(url: str | None) -> Endpoint:
    """Return the engine at URL, or else the one that the environment or the docker context in use names, as `docker` finds it.

    Raises ContainerError where the context or the TLS files are missing.
    """
    url = url or os.environ.get("DOCKER_HOST")
    context = "" if url else os.environ.get("DOCKER_CONTEXT") or _read_context()
    if context not in ("", "default"):
        return _find_context(context)
    url = url or DEFAULT_HOST
    if (
        DOCKER_IMPORT_ERROR
        or url.startswith(("unix:", "npipe:", "ssh:"))
        or not any(map(os.environ.get, _TLS_VARIABLES))
    ):
        return Endpoint(url, None, () if url == DEFAULT_HOST else (ENGINE_OPTIONS["docker"], url))
    folder = os.environ.get("DOCKER_CERT_PATH") or os.path.expanduser("~/.docker")
    try:
        tls = docker.utils.kwargs_from_env(environment={name: os.environ.get(name, "") for name in _TLS_VARIABLES})[
            "tls"
        ]
    except docker.errors.DockerException as error:
        raise ContainerError(
            f"TLS for the Docker engine at {url} takes ca.pem, cert.pem and key.pem in {folder} (DOCKER_CERT_PATH): {error}"
        ) from error
    files = [
        f"--tls{option}={folder}/{file}.pem" for option, file in (("cacert", "ca"), ("cert", "cert"), ("key", "key"))
    ]
    mode = "--tlsverify" if os.environ.get("DOCKER_TLS_VERIFY") else "--tls"
    return Endpoint(url, tls, (ENGINE_OPTIONS["docker"], url, mode, *files))


def _read_context() -> str:
    """Return the name of the context that this user has chosen, '' for none; another user's configuration, which sudo may leave, is ignored."""
    return str(get_current_context_name() or "") if _has_configuration() else ""


def _has_configuration() -> bool:
    """Return True if this user has a configuration of Docker, beside which the SDK finds contexts."""
    path = docker.utils.config.find_config_file() if ContextAPI else None
    return path is not None and os.stat(path).st_uid == os.geteuid()


def _find_context(name: str) -> Endpoint:
    if ContextAPI is None:
        raise ContainerError(
            f"the docker context {name!r} needs a newer Docker SDK for Python: update that, or name an engine in docker_host"
        )
    if not _has_configuration():
        raise ContainerError(
            f"the docker context {name!r} needs this user's ~/.docker/config.json, which is missing: make it with 'docker context use"
            f" {name}'"
        )
    try:
        found = ContextAPI.get_context(name)
    except Exception as error:  # the SDK raises no narrower one for a file that it cannot read
        raise ContainerError(
            f"the docker context {name!r} cannot be read: {error}; see 'docker context inspect {name}'"
        ) from error
    if found is None or not found.Host:
        raise ContainerError(
            f"there is no docker context {name!r}: see 'docker context ls', or name an engine in docker_host"
        )
    return Endpoint(found.Host, found.TLSConfig, ("--context", name))


def _make_client(endpoint: Endpoint) -> Any:
    """Return an SDK client of ENDPOINT, which has answered; raises what the SDK and its libraries raise."""
    if endpoint.tls is None:
        return docker.APIClient(base_url=endpoint.url, version="auto", timeout=read_engine_timeout())
    # Requests would prefer these to the certificate authority in the engine's own files.
    hidden = {name: os.environ.pop(name) for name in _BUNDLES if name in os.environ}
    try:
        client = docker.APIClient(
            base_url=endpoint.url, version="auto", timeout=read_engine_timeout(), tls=endpoint.tls
        )
        client.trust_env = False
        return client
    finally:
        os.environ.update(hidden)


class DockerEngine:
    """A Docker engine at HOST (a URL as in DOCKER_HOST, or an Endpoint), or Podman's service, which speaks the same API.

    NAME is docker or podman. Methods raise ContainerError where the engine does not answer as it should.
    """

    def __init__(self, host: str | Endpoint | None) -> None:
        if DOCKER_IMPORT_ERROR:
            raise ContainerError(describe_sdk(DOCKER_IMPORT_ERROR))
        self.name = "docker"
        self._endpoint = host if isinstance(host, Endpoint) else find_endpoint(host)
        self.host = self._endpoint.url
        try:
            self._client = _make_client(self._endpoint)
        except (docker.errors.DockerException, RequestException, *WRONG_FORM) as error:
            if _MISFIT.search(str(error)):
                raise ContainerError(describe_sdk(str(error))) from error
            raise ContainerError(
                f"no Docker engine answers at {self.host}: {_advise(self.host, str(error))} ({error})"
            ) from error
        with _expecting_form(self.name):
            parts = self._ask(self._client.version, api_version=False).get("Components") or ()
            if any("podman" in part["Name"].lower() for part in parts):
                self.name = "podman"

    def read_version(self) -> str:
        """Return the engine's version."""
        with _expecting_form(self.name):
            return str(self._ask(self._client.version)["Version"])

    def read_info(self) -> dict[str, Any]:
        """Return what the engine tells of itself, as `docker info` shows it."""
        with _expecting_form(self.name):
            return dict(self._ask(self._client.info))

    def list_containers(self) -> list[Container]:
        """Return all containers in any state, without their pids, which the engine's list does not have."""
        with _expecting_form(self.name):
            return [_parse_listed(entry, self.name) for entry in self._ask(self._client.containers, all=True)]

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return the engine's description of CONTAINER, as `docker inspect` shows it.

        Raises ContainerGoneError where the container was removed.
        """
        try:
            with _expecting_form(self.name):
                return dict(self._ask(self._client.inspect_container, container.id))
        except docker.errors.NotFound as error:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) was just removed") from error

    def refresh(self, container: Container) -> Container:
        """Return CONTAINER with its current pid and state."""
        return parse_inspected(self.inspect(container), self.name)

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        place = self._endpoint.words
        if self.name == "podman":
            is_usual = self.host in (DEFAULT_HOST, f"unix://{PODMAN_SOCKET}")
            place = () if is_usual else (ENGINE_OPTIONS["podman"], self.host)
        options = [word for variable in variables for word in ("-e", variable)]
        # Unlike the name, the id needs no quotes and no trust.
        return [self.name, *place, "exec", "-it", *options, container.short_id, *argv]

    def predict_place(self, container: Container) -> control_groups.Place | None:
        """Return the place that CONTAINER will have when it starts; None where it cannot be predicted."""
        with _expecting_form(self.name):
            return self._predict_place(container)

    def _predict_place(self, container: Container) -> control_groups.Place | None:
        about = self._ask(self._client.info)
        if any("rootless" in option for option in about.get("SecurityOptions") or ()):
            return None  # below the group of the user's session
        parent = self.inspect(container)["HostConfig"].get("CgroupParent") or ""
        path = None if parent else self._learn_group(container)
        path = path or control_groups.predict(self.name, about.get("CgroupDriver") or "", parent, container.id)
        return control_groups.Place(path, self.name == "docker") if path else None

    def _learn_group(self, container: Container) -> str | None:
        """Return the path of CONTAINER's control group, derived from another running container; None without such a container.

        Neither of the two has a parent group of its own choice. The engine may be configured with a default, which its API does not tell.
        """
        for other in self.list_containers():
            if other.state != "running" or other.id == container.id:
                continue
            try:
                entry = self.inspect(other)
                if not entry["HostConfig"].get("CgroupParent"):
                    with Process(parse_inspected(entry).pid) as process:
                        return control_groups.learn(process.read("cgroup"), other.id, container.id)
            except (ContainerGoneError, ProcessGone):
                continue
        return None

    def find_image(self, name: str) -> dict[str, Any]:
        """Return the engine's description of the image NAME, as `docker image inspect` shows it.

        Raises ContainerError where there is no such image, or where NAME is only the beginning of an id, and shorter than 12 digits.
        """
        try:
            found: dict[str, Any] = self._ask(self._client.inspect_image, name)
        except docker.errors.NotFound as error:
            raise ContainerError(
                f"the Docker engine at {self.host} has no image {name!r}: pull or build it first"
            ) from error
        digits = name[len("sha256:") :] if name.startswith("sha256:") else name
        is_id = found["Id"].rpartition(":")[2].startswith(digits)
        if is_id and len(digits) < SHORT_ID_LENGTH and not _bears_name(found, name):
            raise ContainerError(
                f"the Docker engine at {self.host} has no image called {name!r}, but one whose id begins so, {found['Id']}: give"
                f" {SHORT_ID_LENGTH} digits of the id to mean that image, or pull or build the image first"
            )
        return found

    @contextmanager
    def export_image(self, name: str) -> Iterator[Iterator[bytes]]:
        """Yield the whole file system of the image NAME as chunks of a tar archive.

        A container is made for the export, is never started, and is removed afterwards.
        """
        made = self._ask(self._client.create_container, name, command=["-"], network_disabled=True)["Id"]
        try:
            yield self._ask(self._client.export, made)
        finally:
            self._ask(self._client.remove_container, made, force=True, v=True)

    @contextmanager
    def export_container(self, name: str) -> Iterator[Iterator[bytes]]:
        """Yield the whole file system of the container NAME (or id) as chunks of a tar archive.

        Raises ContainerError where there is no such container.
        """
        try:
            yield self._ask(self._client.export, name)
        except docker.errors.NotFound as error:
            raise ContainerError(f"the Docker engine at {self.host} has no container {name!r}") from error

    def _ask(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except docker.errors.NotFound:
            raise
        except (docker.errors.DockerException, RequestException, *WRONG_FORM) as error:
            raise ContainerError(f"the Docker engine at {self.host} does not answer as it should: {error}") from error


def _advise(url: str, said: str) -> str:
    """Return the next step for the engine at URL; SAID is the text of the SDK's exception, in which alone the causes differ."""
    if "Permission denied" in said:
        return "its socket is not for this login: use become"
    if "to an HTTPS server" in said or (url.startswith("tcp:") and "closed connection without response" in said):
        return "it wants TLS: set DOCKER_TLS_VERIFY and DOCKER_CERT_PATH for the host's root, or use a docker context"
    if "SSL" in said:
        return "its TLS and the files of DOCKER_CERT_PATH, or of the docker context, do not fit"
    return "start it, or name its socket in docker_host"


def _parse_listed(entry: dict[str, Any], runtime: str = "docker") -> Container:
    with _expecting_form(runtime):
        names = [name[1:] for name in entry["Names"] or [] if name.count("/") == 1]  # more slashes: a legacy link
        return make_container(
            id=entry["Id"],
            name=names[0] if names else entry["Id"][:12],
            state=entry["State"],
            pid=0,
            image=entry["Image"],
            labels=entry["Labels"],
            runtime=runtime,
        )


def parse_inspected(entry: dict[str, Any], runtime: str = "docker") -> Container:
    """Return the container of RUNTIME that ENTRY, one object of `docker inspect`, describes.

    Raises ContainerError where ENTRY has another form.
    """
    with _expecting_form(runtime):
        return make_container(
            id=entry["Id"],
            name=entry["Name"].lstrip("/"),
            state=entry["State"]["Status"],
            pid=int(entry["State"]["Pid"]),
            image=entry["Config"]["Image"],
            labels=entry["Config"]["Labels"],
            runtime=runtime,
            may_mount=_may_mount(entry),
            home=_find_home(entry["Config"].get("Env")),
        )


def _find_home(environment: Any) -> str | None:
    """Return the HOME among the variables of a container's configuration; None where it is not set."""
    texts = [variable for variable in environment if isinstance(variable, str)] if isinstance(environment, list) else []
    found = [text.partition("=")[2] for text in texts if text.startswith("HOME=")]
    return found[-1] if found and found[-1] and "\0" not in found[-1] else None


def _bears_name(image: dict[str, Any], name: str) -> bool:
    """Return True if IMAGE (of `docker image inspect`) has a tag of the repository NAME; the engine may have put a registry before NAME."""
    repositories = [tag.rpartition(":")[0] for tag in image.get("RepoTags") or ()]
    return any(repository == name or repository.endswith("/" + name) for repository in repositories)


def _may_mount(entry: dict[str, Any]) -> bool:
    """Return False if ENTRY (of `docker inspect` or `podman inspect`) shows that the container was not given CAP_SYS_ADMIN, otherwise True."""
    chosen = entry.get("HostConfig") or {}
    if chosen.get("Privileged") is not False or "CapAdd" not in chosen:
        return True
    given = [*(chosen["CapAdd"] or ()), *(entry.get("BoundingCaps") or ())]
    return not {capability.upper().replace("CAP_", "") for capability in given}.isdisjoint(("ALL", "SYS_ADMIN"))


@contextmanager
def _expecting_form(name: str) -> Iterator[None]:
    """Raise ContainerError where an answer of the engine NAME does not have its documented form."""
    try:
        yield
    except WRONG_FORM as error:
        raise ContainerError(f"{name} gives an answer of the wrong form: {error!r}") from error
