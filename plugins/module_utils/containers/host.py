# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All container runtimes of the host, asked together: a name is looked for in each of them."""

from __future__ import annotations

import os
import shutil
from typing import Any, Callable, Protocol

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import oci, podman
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import (
    DEFAULT_HOST,
    DOCKER_IMPORT_ERROR,
    DockerEngine,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import Machines


class Runtime(Protocol):
    """What each runtime's file has a class for. Its methods raise ContainerError; what they do is said there."""

    name: str

    def list_containers(self) -> list[Container]: ...
    def inspect(self, container: Container) -> dict[str, Any]: ...
    def refresh(self, container: Container) -> Container: ...
    def predict_place(self, container: Container) -> Place | None: ...
    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]: ...


class Host:
    """The runtimes of the host; with DOCKER_HOST (a URL) that engine alone.

    ERRORS tells, by its name, why a runtime that is on the host, or should be, does not answer.
    """

    def __init__(self, docker_host: str | None) -> None:
        self.errors: dict[str, str] = {}
        self.docker: DockerEngine | None = None
        self._engines: list[Runtime] = []
        self._roots: list[oci.Root] = []
        self._machines = Machines()
        self._owners: dict[tuple[str, str], Runtime] = {}
        self._is_alone = docker_host is not None
        if docker_host is not None:
            self.docker = DockerEngine(docker_host)
            self._engines.append(self.docker)
            return
        is_root = os.geteuid() == 0
        users = podman.list_rootless_users() if is_root else []
        self._roots = oci.find_roots() if is_root else []
        has_podman = os.path.isdir(podman.ROOT_STATE) or os.path.exists(podman.ROOT_SOCKET)
        # Also one that is installed and does not run: its silence has to be told.
        is_expected = (
            "DOCKER_HOST" in os.environ or os.path.exists(DEFAULT_HOST[len("unix://") :]) or shutil.which("dockerd")
        )
        if is_expected or not (has_podman or users or self._roots):
            self._add("docker", self._open_docker)
        if os.path.exists(podman.ROOT_SOCKET) and not DOCKER_IMPORT_ERROR:
            self._add("podman", lambda: DockerEngine("unix://" + podman.ROOT_SOCKET, "podman"))
        elif has_podman and is_root:
            self._engines.append(podman.Podman(0))
        self._engines += [podman.Podman(uid) for uid in users]

    def _open_docker(self) -> DockerEngine:
        self.docker = DockerEngine(None)
        return self.docker

    def _add(self, label: str, make: Callable[[], Runtime]) -> None:
        try:
            self._engines.append(make())
        except ContainerError as error:
            self.errors[label] = str(error)

    def list_containers(self) -> list[Container]:
        """The containers of all runtimes; one that several know (an engine, and the runtime below it) counts as the first one's.

        Raises ContainerError when there are none and a runtime does not answer.
        """
        listed: list[Container] = []
        for engine in self._engines:
            listed += self._list(engine)
        for root in self._roots:
            known = {one.id for one in listed}
            # To ask a runtime costs a process, and mostly an engine has told of all that it has.
            if not known.issuperset(root.list_ids()):
                listed += [one for one in self._list(root) if one.id not in known]
        if not self._is_alone:
            listed += self._list(self._machines)
        if not listed and self.errors:
            raise ContainerError("; ".join(self.errors.values()))
        return listed

    def _list(self, runtime: Runtime) -> list[Container]:
        try:
            found = runtime.list_containers()
        except ContainerError as error:
            if self._is_alone:
                raise
            self.errors[getattr(runtime, "label", runtime.name)] = str(error)
            return []
        for container in found:
            self._owners.setdefault((container.runtime, container.id), runtime)
        return found

    def find_process(self, text: str) -> Container:
        """The process that TEXT, as pid:1234, names, as a container."""
        container = self._machines.find_process(text)
        self._owners[container.runtime, container.id] = self._machines
        return container

    def inspect(self, container: Container) -> dict[str, Any]:
        """What CONTAINER's runtime says of it, in the form of `docker inspect`."""
        return self._find_runtime(container).inspect(container)

    def refresh(self, container: Container) -> Container:
        """CONTAINER with its pid and its state of now."""
        return self._find_runtime(container).refresh(container)

    def predict_place(self, container: Container) -> Place | None:
        """Where CONTAINER will be when it starts; None where that is not known."""
        return self._find_runtime(container).predict_place(container)

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """The command of the host that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        return self._find_runtime(container).list_shell_words(container, variables, argv)

    def _find_runtime(self, container: Container) -> Runtime:
        return self._owners[container.runtime, container.id]
