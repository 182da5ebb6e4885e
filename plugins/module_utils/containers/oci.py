# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers by what the low-level OCI runtime (runc, crun) itself says of them.

This is what is below containerd, CRI-O, Kubernetes and everything else that starts containers by such a runtime: no client,
no socket and no rights of a higher engine are needed, and it answers when the engine hangs. Each engine has the runtime
keep its state in a folder of its own (`--root`); pods' and containers' names are annotations.
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

# Where engines keep the runtime's state: pattern of folders, and what the containers there are called by their users.
_PLACES = (
    ("/run/containerd/runc/*", "containerd"),
    ("/run/docker/runtime-*/moby", "docker"),
    ("/run/runc", "runc"),
    ("/run/crun", "crun"),
)
_TIMEOUT_S = 20
_FILES = (("state.json", "runc"), ("status", "crun"))

# Annotations by which the engines above tell their names: of the container, of its pod, and of the pod's namespace.
_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_POD_NAMES = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACES = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_IMAGES = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_KINDS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


def find_roots() -> tuple[list[Root], list[str]]:
    """Every folder of state of root's that holds a container; and of those that others than root can change, why they are not believed."""
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
    """Whose state the folder PATH holds; None for nobody's."""
    try:
        for entry in os.scandir(path):
            for name, program in _FILES:
                if os.path.lexists(os.path.join(entry.path, name)):
                    return program
    except OSError:
        return None  # not for this user, or gone
    return None


class Root:
    """The runtime PROGRAM with its state in the folder PATH, on behalf of RUNTIME. Trouble is raised as ContainerError."""

    def __init__(self, path: str, program: str, runtime: str) -> None:
        self._path = path
        self._program = program
        self.name = runtime
        self.label = f"{program} --root {path}"

    def list_ids(self) -> list[str]:
        """Ids of what has state in the folder, without asking the runtime."""
        try:
            return [entry.name for entry in os.scandir(self._path) if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def list_containers(self) -> list[Container]:
        """All containers of the folder."""
        self._check_files()
        listed = self._ask("list", "--format", "json") or ()
        try:
            return [self._parse(entry) for entry in listed]
        except TypeError as error:
            raise ContainerError(f"{self.label} answers no list") from error

    def _check_files(self) -> None:
        """Raise ContainerError where others than root can change a state, or one is no regular file, which the runtime would wait for."""
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
        """What is known of CONTAINER, in the form of `docker inspect` as far as it goes, with its Annotations and Bundle."""
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
        """CONTAINER with its pid and its state of now."""
        # In this order: the runtime compares when the process started with what it remembers, so if it says after our look
        # that the container runs, we saw its process and no later one with the same pid.
        pid = self._parse(self._read_state(container)).pid
        start_ticks = read_start_ticks(pid)
        state = self._read_state(container)
        now = self._parse(state)
        ticks = start_ticks if now.pid == pid else None
        return replace(now, start_ticks=ticks, may_mount=self._may_mount(state))

    def predict_place(self, _container: Container) -> Place | None:
        """None: whoever starts a container here also says where its control group is."""
        return None

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """The command of the host that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
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
        """The container of which the runtime tells STATE; raises ContainerError where that has another form."""
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
            raise ContainerError(f"{self.label} answers something of a wrong form: {error!r}") from error

    def _read_annotations(self, state: dict[str, Any]) -> dict[str, str]:
        """The container's annotations: of its STATE, or, where the runtime leaves them out, of its configuration, if it is root's."""
        found = state.get("annotations") or self._read_configuration(state).get("annotations")
        return {str(name): str(value) for name, value in (found or {}).items()}

    def _may_mount(self, state: dict[str, Any]) -> bool:
        """False where the configuration of the container says which capabilities it was given, and CAP_SYS_ADMIN is not among them."""
        try:
            return "CAP_SYS_ADMIN" in self._read_configuration(state)["process"]["capabilities"]["bounding"]
        except WRONG_FORM:
            return True

    def _read_configuration(self, state: dict[str, Any]) -> dict[str, Any]:
        """The configuration of the container with STATE, which the runtime has kept, or which is in the bundle; empty where it is not root's."""
        for folder in (os.path.join(self._path, state["id"]), state.get("bundle")):
            if not isinstance(folder, str) or not folder.startswith("/"):
                continue
            try:
                return dict(parse_json(read_file(os.path.join(folder, "config.json"))))
            except FileNotFoundError:
                continue
            except (OSError, Untrusted, Unreadable, *WRONG_FORM):
                break  # a bundle may be anybody's: then it has no say
        return {}

    def _ask(self, *words: str) -> Any:
        try:
            done = run([self._program, "--root", self._path, *words], time.monotonic() + _TIMEOUT_S)
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
    """The runtime says no."""


def _pick(annotations: dict[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if annotations.get(name)), "")


def find_image(annotations: dict[str, str]) -> str:
    """The name of a pod's container's image; '' outside pods."""
    return _pick(annotations, _IMAGES)


def is_frozen(pid: int) -> bool:
    """Whether process PID stands in a control group of version 2 that is frozen, as runtimes pause containers."""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            paths = [one.path for one in cgroups.parse_cgroup(file.read()) if not one.controllers]
        for mount in read_mounts("self", " - cgroup2"):
            for path in paths:
                with open(f"{mount.mount_point}{path}/cgroup.events", encoding="ascii") as file:
                    return "frozen 1" in file.read()
    except OSError:
        pass  # the process or its group has gone, or it is the root group
    return False


def make_name(annotations: dict[str, str]) -> str:
    """What people call a container of a pod: NAMESPACE/POD/CONTAINER, the last one POD for the pod's sandbox; '' outside pods."""
    pod = _pick(annotations, _POD_NAMES)
    if not pod:
        return ""
    is_sandbox = _pick(annotations, _KINDS) == "sandbox"
    name = "POD" if is_sandbox else _pick(annotations, _NAMES)
    return "/".join((_pick(annotations, _POD_NAMESPACES) or "default", pod, name))


def _find_manager(annotations: dict[str, str]) -> str:
    """The engine that shares the runtime's default folder with others, by how it marks its containers."""
    if any(name.startswith("io.kubernetes.cri-o.") for name in annotations):
        return "cri-o"
    return "podman" if annotations.get("io.container.manager") == "libpod" else ""
