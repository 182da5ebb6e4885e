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
import json
import os
import subprocess
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.control_groups import Place
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

# Where engines keep the runtime's state: pattern of folders, and what the containers there are called by their users.
_PLACES = (
    ("/run/containerd/runc/*", "containerd"),
    ("/run/docker/runtime-*/moby", "docker"),
    ("/run/runc", "runc"),
    ("/run/crun", "crun"),
    ("/run/user/*/runc", "runc"),
    ("/run/user/*/crun", "crun"),
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TIMEOUT_S = 20

# Annotations by which the engines above tell their names: of the container, of its pod, and of the pod's namespace.
_NAMES = ("io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_POD_NAMES = ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name")
_POD_NAMESPACES = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")
_IMAGES = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")
_KINDS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")


def find_roots() -> list[Root]:
    """Every folder of state on the host that holds a container."""
    roots = []
    for pattern, runtime in _PLACES:
        for path in sorted(glob.glob(pattern)):
            program = _find_program(path)
            if program:
                roots.append(Root(path, program, runtime))
    return roots


def _find_program(path: str) -> str | None:
    """Whose state the folder PATH holds; None for nobody's."""
    try:
        for entry in os.scandir(path):
            for name, program in (("state.json", "runc"), ("status", "crun")):
                if os.path.exists(os.path.join(entry.path, name)):
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
            return [entry.name for entry in os.scandir(self._path) if entry.is_dir()]
        except FileNotFoundError:
            return []

    def list_containers(self) -> list[Container]:
        """All containers of the folder."""
        return [self._parse(entry) for entry in self._ask("list", "--format", "json") or ()]

    def inspect(self, container: Container) -> dict[str, Any]:
        """What is known of CONTAINER, in the form of `docker inspect` as far as it goes, with its Annotations and Bundle."""
        state = self._read_state(container)
        annotations = _read_annotations(state)
        return {
            "Id": container.id,
            "Name": container.name,
            "State": {"Status": state["status"], "Pid": int(state.get("pid") or 0)},
            "Config": {"Image": container.image, "Labels": container.labels},
            "Annotations": annotations,
            "Bundle": state.get("bundle"),
        }

    def refresh(self, container: Container) -> Container:
        """CONTAINER with its pid and its state of now."""
        # In this order: the runtime compares when the process started with what it remembers, so if it says after our look
        # that the container runs, we saw its process and no later one with the same pid.
        pid = int(self._read_state(container).get("pid") or 0)
        start_ticks = read_start_ticks(pid)
        state = self._read_state(container)
        if int(state.get("pid") or 0) != pid:
            start_ticks = None
        return replace(self._parse(state), start_ticks=start_ticks)

    def predict_place(self, _container: Container) -> Place | None:
        """None: whoever starts a container here also says where its control group is."""
        return None

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """The command of the host that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        options = [word for variable in variables for word in ("--env", variable)]
        return [self._program, "--root", self._path, "exec", "--tty", *options, container.id, *argv]

    def _read_state(self, container: Container) -> dict[str, Any]:
        try:
            return self._ask("state", container.id)  # type: ignore[no-any-return]
        except _RuntimeRefusal as error:
            if not os.path.exists(os.path.join(self._path, container.id)):
                raise ContainerGoneError(
                    f"container {container.name} ({container.short_id}) was just removed"
                ) from error
            raise

    def _parse(self, state: dict[str, Any]) -> Container:
        annotations = _read_annotations(state)
        status = str(state["status"])
        pid = int(state.get("pid") or 0)
        return Container(
            id=str(state["id"]),
            name=make_name(annotations) or str(state["id"]),
            state="exited" if status == "stopped" else status,
            pid=pid if status in ("running", "paused") else 0,
            image=_pick(annotations, _IMAGES),
            labels=annotations,
            runtime=_find_manager(annotations) or self.name,
        )

    def _ask(self, *words: str) -> Any:
        try:
            done = subprocess.run(
                [self._program, "--root", self._path, *words],
                env={"PATH": _PATH, "LANG": "C"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
            if done.returncode != 0:
                text = done.stderr.decode("utf-8", "replace").strip()
                raise _RuntimeRefusal(f"{self.label} does not answer as it should: {text}")
            return json.loads(done.stdout or b"null")
        except FileNotFoundError as error:
            raise ContainerError(
                f"{self._path} holds containers of {self._program}, which is not in {_PATH}: link it there to reach them"
            ) from error
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ContainerError(f"{self.label} cannot be asked: {error}") from error


class _RuntimeRefusal(ContainerError):
    """The runtime says no."""


def _read_annotations(state: dict[str, Any]) -> dict[str, str]:
    """The container's annotations: of its STATE, or, where the runtime leaves them out, of its bundle."""
    found = state.get("annotations")
    if not found:
        try:
            with open(os.path.join(str(state.get("bundle")), "config.json"), encoding="utf-8") as file:
                found = json.load(file).get("annotations")
        except (OSError, ValueError, AttributeError):
            found = None
    return {str(name): str(value) for name, value in (found or {}).items()}


def _pick(annotations: dict[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if annotations.get(name)), "")


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
