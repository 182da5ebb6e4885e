# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers as the low-level OCI runtime (runc, crun) itself lists them.

This runtime works below containerd, CRI-O, Kubernetes and all others that start containers with it. Asking it takes no client,
no socket and no rights of a higher engine, and it answers when the engine hangs. Each engine has the runtime
keep its state in a folder of the engine's own (`--root`); the names of pods and their containers are annotations.
Source: the OCI runtime specification, `runc list`, `crun list`.
"""

from __future__ import annotations

import glob
import os
import stat
import time
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import (
    PATH,
    WRONG_FORM,
    Unanswered,
    clean_text,
    parse_json,
    read_engine_timeout,
    run,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    make_container,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.trust import (
    Unreadable,
    Untrusted,
    find_owner,
    read_file,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.mounts import read_mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

# Where engines keep the runtime's state: a pattern of folders, and the name by which users know the runtime of containers there.
_PLACES = (
    ("/run/containerd/runc/*", "containerd"),
    ("/run/docker/runtime-*/moby", "docker"),
    ("/run/runc", "runc"),
    ("/run/crun", "crun"),
)
_FILES = (("state.json", "runc"), ("status", "crun"))

# Annotations in which the engines above keep names: of the container, of its pod, of the pod's namespace, of the image; and its kind.
_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_POD_NAMES = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACES = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_IMAGES = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_KINDS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


def find_roots() -> tuple[list[Root], list[str]]:
    """Return the folders of state of root's that hold a container, and warnings about folders that others than root can change."""
    roots = []
    warnings = []
    for pattern, runtime in _PLACES:
        for path in sorted(glob.glob(pattern)):
            try:
                owner = find_owner(path)
                if owner != 0:
                    raise Untrusted(f"{path} is not believed: user {owner} can change it")
            except OSError:
                continue  # gone
            except Untrusted as error:
                warnings.append(f"{error}; make it root's alone to have its containers looked at")
                continue
            program = _find_program(path)
            if program:
                roots.append(Root(path, program, runtime))
    return roots, warnings


def _find_program(path: str) -> str | None:
    """Return the runtime whose state the folder PATH holds; None for none."""
    try:
        for entry in os.scandir(path):
            for name, program in _FILES:
                if os.path.lexists(os.path.join(entry.path, name)):
                    return program
    except OSError:
        return None  # not for this user, or gone
    return None


class Root:
    """A runtime (PROGRAM) with its state in the folder PATH, on behalf of the engine RUNTIME.

    Methods raise ContainerError where the runtime does not answer as it should.
    """

    def __init__(self, path: str, program: str, runtime: str) -> None:
        self._path = path
        self._program = program
        self.name = runtime
        self.label = f"{program} --root {path}"

    def list_ids(self) -> list[str]:
        """Return the ids of the containers with state in the folder, without asking the runtime."""
        try:
            return [entry.name for entry in os.scandir(self._path) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def list_containers(self) -> list[Container]:
        """Return all containers of the folder.

        Raises Untrusted, too, where others than root can change a container's state.
        """
        self._check_files()
        listed = self._ask("list", "--format", "json") or ()
        try:
            return [self._parse(entry) for entry in listed]
        except TypeError as error:
            raise ContainerError(f"{self.label} does not answer with a list of containers") from error

    def _check_files(self) -> None:
        """Raise ContainerError where others than root can change a state, or where a state is no regular file: the runtime would wait for it."""
        for name in self.list_ids():
            for file, _program in _FILES:
                path = os.path.join(self._path, name, file)
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        raise ContainerError(f"{path} is no regular file: remove it to have {self._path} looked at")
                    owner = find_owner(path)
                except OSError:
                    continue  # there is none, or it has gone
                if owner != 0:
                    raise Untrusted(f"{path} is not believed: user {owner} can change it")

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return the description of CONTAINER in the form of `docker inspect`, as far as it is known, with its Annotations and Bundle.

        Raises ContainerGoneError where the container was removed.
        """
        state = self._read_state(container)
        now = self._parse(state)
        return {
            "Id": container.id,
            "Name": container.name,
            "State": {"Status": str(state["status"]), "Pid": state.get("pid") or 0},
            "Config": {"Image": container.image, "Labels": container.labels},
            "Annotations": now.labels,
            "Bundle": state.get("bundle"),
        }

    def refresh(self, container: Container) -> Container:
        """Return CONTAINER with its current pid, state, start and right to mount."""
        # The order matters: the runtime compares the start of the process with the one in its state. So if it says, after the start
        # was read here, that the container runs, then that start is its process's and not a later one's with the same pid.
        pid = self._parse(self._read_state(container)).pid
        start_ticks = read_start_ticks(pid)
        state = self._read_state(container)
        now = self._parse(state)
        ticks = start_ticks if now.pid == pid else None
        return replace(now, start_ticks=ticks, may_mount=self._may_mount(state))

    def predict_place(self, _container: Container) -> Place | None:
        """Return None: the program that starts such a container also chooses its control group."""
        return None

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        options = [word for variable in variables for word in ("--env", variable)]
        return [self._program, "--root", self._path, "exec", "--tty", *options, container.id, *argv]

    def _read_state(self, container: Container) -> Any:
        try:
            return self._ask("state", container.id)
        except _RuntimeRefusal as error:
            if not os.path.lexists(os.path.join(self._path, container.id)):
                raise ContainerGoneError(
                    f"container {container.name} ({container.short_id}) was just removed"
                ) from error
            raise

    def _parse(self, state: Any) -> Container:
        """Return the container that the runtime's STATE describes; raises ContainerError where STATE has another form."""
        try:
            annotations = self._read_annotations(state)
            status = str(state["status"])
            return make_container(
                id=state["id"],
                name=make_name(annotations) or state["id"],
                state="exited" if status == "stopped" else status,
                pid=(state.get("pid") or 0) if status in ("running", "paused") else 0,
                image=find_image(annotations),
                labels=annotations,
                runtime=_find_manager(annotations) or self.name,
            )
        except WRONG_FORM as error:
            raise ContainerError(f"{self.label} gives an answer of the wrong form: {error!r}") from error

    def _read_annotations(self, state: dict[str, Any]) -> dict[str, str]:
        """Return the container's annotations, from its STATE or, where the runtime omits them, from its configuration, if that is root's."""
        found = state.get("annotations") or self._read_configuration(state).get("annotations")
        return {str(name): str(value) for name, value in (found or {}).items()}

    def _may_mount(self, state: dict[str, Any]) -> bool:
        """Return False if the container's configuration shows that it was not given CAP_SYS_ADMIN, otherwise True."""
        try:
            return "CAP_SYS_ADMIN" in self._read_configuration(state)["process"]["capabilities"]["bounding"]
        except WRONG_FORM:
            return True

    def _read_configuration(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration of the container with STATE, from the runtime's copy or the bundle; empty where it is not root's alone."""
        for folder in (os.path.join(self._path, state["id"]), state.get("bundle")):
            if not isinstance(folder, str) or not folder.startswith("/"):
                continue
            try:
                return dict(parse_json(read_file(os.path.join(folder, "config.json"))))
            except FileNotFoundError:
                continue
            except (OSError, Untrusted, Unreadable, *WRONG_FORM):
                break  # a bundle may belong to anybody, and is not believed then
        return {}

    def _ask(self, *words: str) -> Any:
        try:
            done = run([self._program, "--root", self._path, *words], time.monotonic() + read_engine_timeout())
            if done.returncode != 0:
                raise _RuntimeRefusal(f"{self.label} does not answer as it should: {done.stderr}")
            return parse_json(done.stdout or b"null")
        except FileNotFoundError as error:
            raise ContainerError(
                f"{self._path} holds containers of {self._program}, which is not in {PATH}: link it there to reach them"
            ) from error
        except (OSError, Unanswered, *WRONG_FORM) as error:
            raise ContainerError(f"{self.label} cannot be asked: {clean_text(str(error))}") from error


class _RuntimeRefusal(ContainerError):
    """A negative answer of the runtime."""


def _pick(annotations: dict[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if annotations.get(name)), "")


def find_image(annotations: dict[str, str]) -> str:
    """Return the name of the image of a pod's container; '' outside pods."""
    return _pick(annotations, _IMAGES)


def is_frozen(pid: int) -> bool:
    """Return True if process PID is in a frozen control group of version 2, which is how runtimes pause containers."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            paths = [membership.path for membership in cgroups.parse_cgroup(file.read()) if not membership.controllers]
        for mount in read_mounts("self", " - cgroup2"):
            for path in paths:
                with open(f"{mount.mount_point}{path}/cgroup.events", encoding="ascii") as file:
                    return "frozen 1" in file.read()
    except OSError:
        pass  # the process or its group has gone, or it is the root group
    return False


def make_name(annotations: dict[str, str]) -> str:
    """Return the common name of a pod's container, NAMESPACE/POD/CONTAINER, with POD as the last part for the pod's sandbox; '' outside pods."""
    pod = _pick(annotations, _POD_NAMES)
    if not pod:
        return ""
    is_sandbox = _pick(annotations, _KINDS) == "sandbox"
    name = "POD" if is_sandbox else _pick(annotations, _NAMES)
    return "/".join((_pick(annotations, _POD_NAMESPACES) or "default", pod, name))


def _find_manager(annotations: dict[str, str]) -> str:
    """Return the engine that made the container, by its annotations: several engines share the runtime's default folder; '' where unknown."""
    if any(name.startswith("io.kubernetes.cri-o.") for name in annotations):
        return "cri-o"
    return "podman" if annotations.get("io.container.manager") == "libpod" else ""
