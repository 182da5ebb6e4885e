# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Podman by its own command, rootful or another user's: for where its Docker-compatible API is not up."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from dataclasses import replace
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import control_groups
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import parse_inspected
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

ROOT_STATE = "/run/libpod"
ROOT_SOCKET = "/run/podman/podman.sock"
_RUNTIME_FOLDERS = "/run/user"
_TIMEOUT_S = 30
_ELSEWHERE = ("disabled", "split")  # below the group of whoever starts a container; so are another user's


def list_rootless_users() -> list[int]:
    """Users who have had Podman run since the host started; by the folders that it keeps for as long."""
    try:
        names = os.listdir(_RUNTIME_FOLDERS)
    except FileNotFoundError:
        return []
    uids = sorted(int(name) for name in names if name.isdigit())
    return [uid for uid in uids if uid and os.path.isdir(f"{_RUNTIME_FOLDERS}/{uid}/libpod")]


class Podman:
    """Podman of the user UID (0: of the host). Trouble with it is raised as ContainerError."""

    name = "podman"

    def __init__(self, uid: int) -> None:
        self._uid = uid
        self.label = "podman" if uid == 0 else f"podman of user {uid}"

    def list_containers(self) -> list[Container]:
        """All containers in any state; their pids are of use after a refresh only."""
        listed = self._ask("ps", "--all", "--no-trunc", "--format", "json")
        return [
            Container(
                id=entry["Id"],
                name=entry["Names"][0],
                state=entry["State"],
                pid=0,
                image=entry.get("Image") or "",
                labels=entry.get("Labels") or {},
                runtime=self.name,
                owner_uid=self._uid or None,
            )
            for entry in listed
        ]

    def inspect(self, container: Container) -> dict[str, Any]:
        """What `podman inspect` says of CONTAINER; it has the form of `docker inspect`."""
        try:
            return self._ask("inspect", "--type", "container", container.id)[0]  # type: ignore[no-any-return]
        except _NoSuchContainer as error:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) was just removed") from error

    def refresh(self, container: Container) -> Container:
        """CONTAINER with its pid and its state of now."""
        found = parse_inspected(self.inspect(container), self.name)
        # Its cgroup bears its id, unless it was made with --cgroups=disabled.
        return replace(found, start_ticks=read_start_ticks(found.pid), owner_uid=self._uid or None)

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """The command of the host that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        options = [word for variable in variables for word in ("-e", variable)]
        command = ["podman", "exec", "-it", *options, container.short_id, *argv]
        if self._uid == 0:
            return command
        return [
            *("runuser", "-u", _find_account(self._uid).pw_name, "--"),
            *("env", f"XDG_RUNTIME_DIR={_RUNTIME_FOLDERS}/{self._uid}"),
            *command,
        ]

    def predict_place(self, container: Container) -> control_groups.Place | None:
        """Where CONTAINER will be when it starts; None where that is not known."""
        chosen = self.inspect(container)["HostConfig"]
        if self._uid or chosen.get("Cgroups") in _ELSEWHERE:
            return None
        manager, parent = (chosen.get(name) or "" for name in ("CgroupManager", "CgroupParent"))
        path = control_groups.predict(self.name, manager, parent, container.id)
        return control_groups.Place(path, has_shim=False) if path else None

    def _ask(self, *words: str) -> Any:
        """What Podman answers to WORDS, run as its user and in that user's home."""
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C",
            "HOME": "/root",
        }
        account = _find_account(self._uid) if self._uid else None
        if account:
            environment.update(
                HOME=account.pw_dir, USER=account.pw_name, XDG_RUNTIME_DIR=f"{_RUNTIME_FOLDERS}/{self._uid}"
            )
        try:
            done = subprocess.run(
                ["podman", *words],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                preexec_fn=account and (lambda: _become(account)),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ContainerError(f"{self.label} cannot be asked: {error}") from error
        text = done.stderr.decode("utf-8", "replace").strip()
        if done.returncode != 0:
            kind = (
                _NoSuchContainer
                if "no such container" in text.lower() or "no such object" in text.lower()
                else ContainerError
            )
            raise kind(f"{self.label} does not answer as it should: {text}")
        try:
            return json.loads(done.stdout or b"[]")
        except ValueError as error:
            raise ContainerError(f"{self.label} answers something that is not JSON: {error}") from error


class _NoSuchContainer(ContainerError):
    """Podman knows no such container."""


def _find_account(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError as error:
        raise ContainerError(f"Podman's folder of user {uid} is there, and no such user") from error


def _become(account: pwd.struct_passwd) -> None:
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
