# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""All container runtimes of the host, asked together: a name is looked for in each of them."""

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
    """What each runtime's file has a class for. Its methods raise ContainerError; what they do is said there."""

    name: str

    def list_containers(self) -> list[Container]: ...
    def inspect(self, container: Container) -> dict[str, Any]: ...
    def refresh(self, container: Container) -> Container: ...
    def predict_place(self, container: Container) -> Place | None: ...
    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]: ...


class Host:
    """The runtimes of the host; with DOCKER_HOST (a URL) that engine alone.

    ERRORS tells, by its name, why a runtime of root's that is on the host, or should be, does not answer. WARNINGS has what else is
    not looked at, and why: of users, and of folders that others than root can change.
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
        # Also one that is installed and does not run: its silence has to be told.
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
        elif has_podman and self._is_root:
            self._engines.append(podman.Podman())
        elif has_podman:
            self.errors["podman"] = "Podman's containers are root's: use become"

    def find_meant(self, pattern: str) -> str:
        """PATTERN of a selection with Podman's name before it, where it has Docker's and Podman's service is in the place of Docker's."""
        is_podman = self.docker is not None and self.docker.name == "podman"
        return re.sub("^docker:", "podman:", pattern) if is_podman else pattern

    @property
    def is_complete(self) -> bool:
        """Whether all runtimes that should be on the host, as far as that is known, have answered so far."""
        return not any(name != "docker" or self._is_docker_expected for name in self.errors)

    def _open_docker(self, url: str | None) -> None:
        self.docker = self._open_engine(find_endpoint(url))

    def _open_engine(self, endpoint: Endpoint) -> DockerEngine | None:
        """Take the engine at ENDPOINT among those that are asked; what it is, if it is root's."""
        url = endpoint.url
        owner = strangers.find_socket_owner(url) if self._is_root else 0
        if owner == 0:
            engine = DockerEngine(endpoint)
            self._engines.append(engine)
            return engine
        stranger = strangers.ask_engine(url, owner, self._budget)
        if self._is_alone and not stranger.list_containers() and stranger.describe_troubles():
            raise ContainerError(
                f"the engine of {stranger.label} at {url} says nothing: {stranger.describe_troubles()}"
            )
        self._strangers.append(stranger)
        return None

    def _try(self, label: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except ContainerError as error:
            self.errors[label] = str(error)

    def list_containers(self, *, users: bool = True) -> list[Container]:
        """The containers of all runtimes; one that several know (an engine at two sockets, and the runtime below it) counts as the first one's.

        Those of users come last, unless USERS are not to be asked; one that has a short id of another container is left out. Raises
        ContainerError when there are none and a runtime of root's does not answer.
        """
        listed: list[Container] = []
        for engine in self._engines:
            _add(listed, self._list(engine))
        for root in self._roots:
            # To ask a runtime costs a process, and mostly an engine has told of all that it has.
            if not {one.id for one in listed if ENGINE_ID.match(one.id)}.issuperset(root.list_ids()):
                _add(listed, self._list(root))
        if not self._is_alone:
            _add(listed, self._list(self._machines))
        found = [one for one in listed if one.owner_uid is not None]
        listed = [one for one in listed if one.owner_uid is None]
        listed += self._list_strangers(found, listed) if users or self._is_alone else []
        if not listed and self.errors:
            raise ContainerError("; ".join(self.errors.values()))
        return listed

    def explain(self, error: ContainerError) -> ContainerError:
        """ERROR, that containers are not found, with who does not answer: what is looked for may be theirs."""
        if not self.errors:
            return error
        return ContainerError(f"{self.describe_silence()}; of what else there is, {error}")

    def describe_silence(self) -> str:
        """Which runtimes of root's do not answer, and why; '' where all do."""
        return "; ".join(f"containers of {name} are not looked at: {error}" for name, error in self.errors.items())

    def _list_strangers(self, found: list[Container], own: list[Container]) -> list[Container]:
        """The containers of users, which have FOUND ones, too; without those whose short id one of root's OWN or of others has.

        Locks and traces are known by short ids.
        """
        if self._is_root and not self._is_alone:
            self._strangers += strangers.find_strangers(self._budget)
            if self._strangers and not self._is_docker_expected:
                self.errors.pop("docker", None)  # nobody misses it here
        found = list(found)
        for stranger in self._strangers:
            _add(found, self._list(stranger))
            if stranger.describe_troubles():
                self.warnings.append(
                    f"containers of {stranger.label}, or some of them, are not looked at: {stranger.describe_troubles()}"
                )
        count = Counter(one.short_id for one in [*own, *found])
        for one in found:
            if count[one.short_id] > 1:
                self.warnings.append(
                    f"container {one.name} of {find_account(one.owner_uid or 0).label} is left out: another container has its id"
                    f" {one.short_id}"
                )
        return [one for one in found if count[one.short_id] == 1]

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
        """What FUNCTION(containers), in a child and as JSON can hold it, returns for those of CONTAINERS of each user of the host, in turn.

        It is for what nobody has asked for by name: it has what is left of the time for users, and where it fails or is late
        WARNINGS say so, by user; WHAT is what is done, in words.
        """
        by_owner: dict[int, list[Container]] = {}
        for one in containers:
            if one.owner_uid is not None:
                by_owner.setdefault(one.owner_uid, []).append(one)
        found = []
        for index, (uid, theirs) in enumerate(by_owner.items()):
            try:
                found.append(self._budget.run(partial(function, theirs), len(by_owner) - index))
            except ContainerError as error:
                if not self.has_warned_of(uid):
                    self.warnings.append(f"{what} of {find_account(uid).label}, or some of them, is left out: {error}")
        return found

    def has_warned_of(self, uid: int) -> bool:
        """Whether one of WARNINGS is of the user UID: one is enough, however much is wrong."""
        return any(find_account(uid).label in one for one in self.warnings)

    @property
    def seconds_for_users(self) -> float:
        """How much is left of the time that the host's users may cost."""
        return self._budget.left_s

    def find_process(self, text: str) -> Container:
        """The process that TEXT, as pid:1234, names, as a container."""
        container = self._machines.find_process(text)
        self._owners[container.key] = self._machines
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
        return self._owners[container.key]


def _add(listed: list[Container], found: list[Container]) -> None:
    """Add those FOUND to LISTED that are not there yet, also under another runtime's name."""
    known = {one.key for one in listed} | {_identify(one) for one in listed}
    listed += [one for one in found if known.isdisjoint((one.key, _identify(one)))]


def _identify(container: Container) -> tuple[int | None, str, str]:
    """What is the same of a container whichever runtime tells of it: an engine's id, or a process."""
    if ENGINE_ID.match(container.id):
        return container.owner_uid, "id", container.id
    return container.owner_uid, "process", f"{container.pid} {container.id}" if container.pid else container.full_name


def _is_same_socket(url: str, path: str) -> bool:
    """Whether URL, of an engine that answers, leads to the socket PATH."""
    try:
        return url.startswith("unix://") and os.path.samefile(url[len("unix://") :], path)
    except OSError:
        return False
