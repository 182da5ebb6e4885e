# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Podman by its own command, the host's or another user's: for where its Docker-compatible API is not up."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import control_groups
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import (
    WRONG_FORM,
    Account,
    Unanswered,
    parse_json,
    run,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    make_container,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import parse_inspected
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import read_start_ticks

ROOT_STATE = "/run/libpod"
_TIMEOUT_S = 30
_ELSEWHERE = ("disabled", "split")  # below the group of whoever starts a container
_LIST = ("ps", "--all", "--no-trunc", "--format", "json")
_INSPECT = ("inspect", "--type", "container")


class Podman:
    """Podman of the host. Trouble with it is raised as ContainerError."""

    name = "podman"
    label = "podman"

    def list_containers(self) -> list[Container]:
        """All containers in any state; their pids are of use after a refresh only."""
        try:
            return [make_container(**{**_parse_listed(entry), "pid": 0}) for entry in _ask(self.label, _LIST) or ()]
        except WRONG_FORM as error:
            raise ContainerError(f"{self.label} answers something of a wrong form: {error!r}") from error

    def inspect(self, container: Container) -> dict[str, Any]:
        """What `podman inspect` says of CONTAINER; it has the form of `docker inspect`."""
        try:
            return dict(_ask(self.label, (*_INSPECT, container.id))[0])
        except _NoSuchContainer as error:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) was just removed") from error
        except WRONG_FORM as error:
            raise ContainerError(f"{self.label} answers something of a wrong form: {error!r}") from error

    def refresh(self, container: Container) -> Container:
        """CONTAINER with its pid and its state of now."""
        found = parse_inspected(self.inspect(container), self.name)
        # Its cgroup bears its id, unless it was made with --cgroups=disabled.
        return replace(found, start_ticks=read_start_ticks(found.pid))

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """The command of the host that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        options = [word for variable in variables for word in ("-e", variable)]
        return ["podman", "exec", "-it", *options, container.short_id, *argv]

    def predict_place(self, container: Container) -> control_groups.Place | None:
        """Where CONTAINER will be when it starts; None where that is not known."""
        chosen = self.inspect(container).get("HostConfig") or {}
        if chosen.get("Cgroups") in _ELSEWHERE:
            return None
        manager, parent = (chosen.get(name) or "" for name in ("CgroupManager", "CgroupParent"))
        path = control_groups.predict(self.name, manager, parent, container.id)
        return control_groups.Place(path, has_shim=False) if path else None


def list_as(account: Account, until: float) -> list[dict[str, Any]]:
    """The fields of all containers of ACCOUNT, which the caller is: unchecked, and each with an empty place. Raises ContainerError."""
    label = f"Podman of {account.label}"
    try:
        listed = _ask(label, _LIST, until, account.make_environment())
        return [{**_parse_listed(entry), "place": {}} for entry in listed or ()]
    except WRONG_FORM as error:
        raise ContainerError(f"{label} answers something of a wrong form: {error!r}") from error


def inspect_as(account: Account, ids: Sequence[str], until: float) -> dict[str, Any]:
    """What Podman of ACCOUNT, which the caller is, says of its containers IDS, by these; one that has just gone is left out."""
    label = f"Podman of {account.label}"
    try:
        answer = _ask(label, (*_INSPECT, *ids), until, account.make_environment(), some_ok=True) if ids else []
        return {str(one["Id"]): dict(one) for one in answer or ()}
    except WRONG_FORM as error:
        raise ContainerError(f"{label} answers something of a wrong form: {error!r}") from error


def _parse_listed(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a container as `podman ps` lists it; raises one of WRONG_FORM."""
    return {
        "id": entry["Id"],
        "name": entry["Names"][0],
        "state": entry["State"],
        "pid": entry.get("Pid") or 0,
        "image": entry.get("Image"),
        "labels": entry.get("Labels"),
        "runtime": Podman.name,
    }


def _ask(
    label: str,
    words: Sequence[str],
    until: float | None = None,
    environment: dict[str, str] | None = None,
    *,
    some_ok: bool = False,
) -> Any:
    """What Podman, called LABEL, answers to WORDS up to UNTIL; with SOME_OK also where it says no to a part of them."""
    try:
        done = run(["podman", *words], time.monotonic() + _TIMEOUT_S if until is None else until, environment)
    except OSError as error:
        raise ContainerError(f"{label} cannot be asked: {error}") from error
    except Unanswered as error:
        raise ContainerError(f"{label} cannot be asked: {error}") from error
    if done.returncode != 0 and not (some_ok and done.stdout):
        text = done.stderr.lower()
        is_gone = "no such container" in text or "no such object" in text
        raise (_NoSuchContainer if is_gone else ContainerError)(f"{label} does not answer as it should: {done.stderr}")
    return parse_json(done.stdout or b"[]")


class _NoSuchContainer(ContainerError):
    """Podman knows no such container."""
