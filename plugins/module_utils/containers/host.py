# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All container runtimes of the host; a name is looked for in each of them."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from functools import partial
from typing import Any, Callable, Protocol, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import oci, podman, strangers
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import find_account
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import (
    DEFAULT_HOST,
    DOCKER_IMPORT_ERROR,
    PODMAN_SOCKET,
    DockerEngine,
    Endpoint,
    find_endpoint,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.machines import Machines
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.cgroups import ENGINE_ID

_NAMES = frozenset(("DOCKER_HOST", "DOCKER_CONTEXT"))  # variables that name an engine


class Runtime(Protocol):
    """A container runtime of the host. Its methods raise ContainerError."""

    name: str

    def list_containers(self) -> list[Container]:
        """Return all containers of the runtime, in any state."""

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return the description of CONTAINER in the form of `docker inspect`.

        Raises ContainerGoneError where the container was removed.
        """

    def refresh(self, container: Container) -> Container:
        """Return CONTAINER with its current pid and state."""

    def predict_place(self, container: Container) -> Place | None:
        """Return the place that CONTAINER will have when it starts; None where it cannot be predicted."""

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""


class Host:
    """The container runtimes of the host; with DOCKER_HOST (a URL) that engine alone.

    ERRORS: the reason for each of root's runtimes, by name, that is or should be on the host and does not answer.
    WARNINGS: texts about containers that are not looked at, those of users and those in folders that others than root can change.
    """

    def __init__(self, docker_host: str | None) -> None:
        self.errors: dict[str, str] = {}
        self.warnings: list[str] = []
        self.docker: DockerEngine | None = None
        self._engines: list[Runtime] = []
        self._roots: list[oci.Root] = []
        self._strangers: list[strangers.Stranger] = []
        self._machines = Machines()
        self._owners: dict[tuple[int | None, str, str], Runtime] = {}
        self._budget = strangers.Budget(strangers.TOTAL_S)
        self._is_alone = docker_host is not None
        self._is_root = os.geteuid() == 0
        self._is_docker_expected = True
        if docker_host is not None:
            self._open_docker(docker_host)
            return
        if self._is_root:
            self._roots, self.warnings = oci.find_roots()
        has_podman = os.path.isdir(podman.ROOT_STATE) or os.path.exists(PODMAN_SOCKET)
        # An engine that is installed and does not run counts, too: the user has to hear that it does not answer.
        is_expected = (
            not _NAMES.isdisjoint(os.environ)
            or os.path.exists(DEFAULT_HOST[len("unix://") :])
            or shutil.which("dockerd")
        )
        self._is_docker_expected = bool(is_expected)
        if is_expected or not (has_podman or self._roots):
            self._try("docker", lambda: self._open_docker(None))
        if os.path.exists(PODMAN_SOCKET) and not DOCKER_IMPORT_ERROR:
            if self.docker is None or not _is_same_socket(self.docker.host, PODMAN_SOCKET):
                self._try("podman", lambda: self._open_engine(Endpoint("unix://" + PODMAN_SOCKET)))
            if "podman" in self.errors and self._is_root:
                # A service that has ended leaves its socket, and Podman's containers do not need it.
                del self.errors["podman"]
                self._engines.append(podman.Podman())
        elif has_podman and self._is_root:
            self._engines.append(podman.Podman())
        elif has_podman:
            self.errors["podman"] = "Podman's containers are root's: use become"

    def find_meant(self, pattern: str) -> str:
        """Return PATTERN with podman: in place of docker: if Podman's service answers where Docker is expected, otherwise PATTERN as it is."""
        is_podman = self.docker is not None and self.docker.name == "podman"
        return re.sub("^docker:", "podman:", pattern) if is_podman else pattern

    @property
    def is_complete(self) -> bool:
        """Return True if all runtimes that should be on the host, as far as is known, have answered so far."""
        return not any(name != "docker" or self._is_docker_expected for name in self.errors)

    def _open_docker(self, url: str | None) -> None:
        self.docker = self._open_engine(find_endpoint(url))

    def _open_engine(self, endpoint: Endpoint) -> DockerEngine | None:
        """Add the engine at ENDPOINT to those that are asked; return it if it is root's."""
        url = endpoint.url
        owner = strangers.find_socket_owner(url) if self._is_root else 0
        if owner == 0:
            engine = DockerEngine(endpoint)
            self._engines.append(engine)
            return engine
        stranger = strangers.ask_engine(url, owner, self._budget)
        if self._is_alone and not stranger.list_containers() and stranger.describe_troubles():
            raise ContainerError(
                f"the engine of {stranger.label} at {url} lists no containers: {stranger.describe_troubles()}"
            )
        self._strangers.append(stranger)
        return None

    def _try(self, label: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except ContainerError as error:
            self.errors[label] = str(error)

    def list_containers(self, *, users: bool = True) -> list[Container]:
        """Return the containers of all runtimes, users' containers last.

        A container that several runtimes know (an engine at two sockets, and the runtime below it) counts as the first one's.
        USERS says if users are asked; a user's container that has the short id of another one is left out.
        Raises ContainerError when there are no containers and a runtime of root's does not answer.
        """
        listed: list[Container] = []
        for engine in self._engines:
            _add(listed, self._list(engine))
        for root in self._roots:
            # Asking a runtime starts a process, and mostly an engine has listed all its containers already.
            known = {container.id for container in listed if ENGINE_ID.match(container.id)}
            if not known.issuperset(root.list_ids()):
                _add(listed, self._list(root))
        if not self._is_alone:
            _add(listed, self._list(self._machines))
        found = [container for container in listed if container.owner_uid is not None]
        listed = [container for container in listed if container.owner_uid is None]
        listed += self._list_strangers(found, listed) if users or self._is_alone else []
        if not listed and self.errors:
            raise ContainerError("; ".join(self.errors.values()))
        return listed

    def explain(self, error: ContainerError) -> ContainerError:
        """Return ERROR, about containers that were not found, with the runtimes that do not answer: the containers may be theirs."""
        if not self.errors:
            return error
        return ContainerError(f"{self.describe_silence()}; in the other runtimes, {error}")

    def describe_silence(self) -> str:
        """Return a text that names the runtimes of root's that do not answer, and why; '' where all answer."""
        return "; ".join(f"containers of {name} are not looked at: {error}" for name, error in self.errors.items())

    def _list_strangers(self, found: list[Container], own: list[Container]) -> list[Container]:
        """Return the users' containers, FOUND ones included, without any whose short id another container has, be it a user's or one of OWN.

        Locks and traces go by short ids. OWN are root's containers.
        """
        if self._is_root and not self._is_alone:
            self._strangers += strangers.find_strangers(self._budget)
            if self._strangers and not self._is_docker_expected:
                self.errors.pop("docker", None)  # root's is not expected, and users have containers
        found = list(found)
        for stranger in self._strangers:
            _add(found, self._list(stranger))
            if stranger.describe_troubles():
                self.warnings.append(
                    f"containers of {stranger.label}, or some of them, are not looked at: {stranger.describe_troubles()}"
                )
        count = Counter(container.short_id for container in [*own, *found])
        for container in found:
            if count[container.short_id] > 1:
                self.warnings.append(
                    f"container {container.name} of {find_account(container.owner_uid or 0).label} is left out: another container has its id"
                    f" {container.short_id}"
                )
        return [container for container in found if count[container.short_id] == 1]

    def _list(self, runtime: Runtime) -> list[Container]:
        try:
            found = runtime.list_containers()
        except ContainerError as error:
            if self._is_alone:
                raise
            self.errors[getattr(runtime, "label", runtime.name)] = str(error)
            return []
        for container in found:
            self._owners.setdefault(container.key, runtime)
        return found

    def run_for_users(
        self, containers: Sequence[Container], function: Callable[[list[Container]], Any], what: str
    ) -> list[Any]:
        """Return the results of FUNCTION(containers), called once for each user of the host, with those of CONTAINERS that are the user's.

        FUNCTION runs in a child, and JSON has to be able to hold its result. The calls share the time that is left for users. Where a call
        fails or is late, a warning says that WHAT (in words) of the user is left out. So this is only for work that nobody asked for by name.
        """
        by_owner: dict[int, list[Container]] = {}
        for container in containers:
            if container.owner_uid is not None:
                by_owner.setdefault(container.owner_uid, []).append(container)
        found = []
        for index, (uid, theirs) in enumerate(by_owner.items()):
            try:
                found.append(self._budget.run(partial(function, theirs), len(by_owner) - index))
            except ContainerError as error:
                if not self.has_warned_of(uid):
                    self.warnings.append(f"{what} of {find_account(uid).label}, or some of them, is left out: {error}")
        return found

    def has_warned_of(self, uid: int) -> bool:
        """Return True if one of WARNINGS is about the user UID: one warning for each user is enough."""
        return any(find_account(uid).label in warning for warning in self.warnings)

    @property
    def seconds_for_users(self) -> float:
        """Return how many seconds are left of the time for the host's users."""
        return self._budget.left_s

    def find_process(self, text: str) -> Container:
        """Return the process that TEXT names, as pid:1234, as a container; raises ContainerError where there is none."""
        container = self._machines.find_process(text)
        self._owners[container.key] = self._machines
        return container

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return the runtime's description of CONTAINER, in the form of `docker inspect`."""
        return self._find_runtime(container).inspect(container)

    def refresh(self, container: Container) -> Container:
        """Return CONTAINER with its current pid and state; raises ContainerGoneError where it was removed."""
        return self._find_runtime(container).refresh(container)

    def predict_place(self, container: Container) -> Place | None:
        """Return the place that CONTAINER will have when it starts; None where it cannot be predicted."""
        return self._find_runtime(container).predict_place(container)

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        return self._find_runtime(container).list_shell_words(container, variables, argv)

    def _find_runtime(self, container: Container) -> Runtime:
        return self._owners[container.key]


def _add(listed: list[Container], found: list[Container]) -> None:
    """Add to LISTED those of FOUND that it does not hold yet, under the same or another runtime's name."""
    known = {container.key for container in listed} | {_identify(container) for container in listed}
    listed += [container for container in found if known.isdisjoint((container.key, _identify(container)))]


def _identify(container: Container) -> tuple[int | None, str, str]:
    """Return a key that a container has in every runtime that lists it: its engine's id, or its process."""
    if ENGINE_ID.match(container.id):
        return container.owner_uid, "id", container.id
    return container.owner_uid, "process", f"{container.pid} {container.id}" if container.pid else container.full_name


def _is_same_socket(url: str, path: str) -> bool:
    """Return True if URL, at which an engine answers, leads to the socket PATH."""
    try:
        return url.startswith("unix://") and os.path.samefile(url[len("unix://") :], path)
    except OSError:
        return False
