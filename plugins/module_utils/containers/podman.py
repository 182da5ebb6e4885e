# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Podman by its own command, as root or as another user, for where its Docker-compatible API is not up."""

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
    read_engine_timeout,
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
_ELSEWHERE = ("disabled", "split")  # modes in which a container is below the group of the process that starts it
_LIST = ("ps", "--all", "--no-trunc", "--format", "json")
_INSPECT = ("inspect", "--type", "container")


class Podman:
    """The Podman of the host's root; its methods raise ContainerError where it does not answer as it should."""

    name = "podman"
    label = "podman"

    def list_containers(self) -> list[Container]:
        """Return all containers in any state; a refresh brings their pids."""
        try:
            return [make_container(**{**_parse_listed(entry), "pid": 0}) for entry in _ask(self.label, _LIST) or ()]
        except WRONG_FORM as error:
            raise ContainerError(f"{self.label} gives an answer of the wrong form: {error!r}") from error

    def inspect(self, container: Container) -> dict[str, Any]:
        """Return Podman's description of CONTAINER, which has the form of `docker inspect`.

        Raises ContainerGoneError where the container was removed.
        """
        try:
            return dict(_ask(self.label, (*_INSPECT, container.id))[0])
        except _NoSuchContainer as error:
            raise ContainerGoneError(f"container {container.name} ({container.short_id}) was just removed") from error
        except WRONG_FORM as error:
            raise ContainerError(f"{self.label} gives an answer of the wrong form: {error!r}") from error

    def refresh(self, container: Container) -> Container:
        """Return CONTAINER with its current pid and state."""
        found = parse_inspected(self.inspect(container), self.name)
        # The start time is needed where the cgroup does not bear the container's id (--cgroups=disabled).
        return replace(found, start_ticks=read_start_ticks(found.pid))

    def list_shell_words(self, container: Container, variables: list[str], argv: list[str]) -> list[str]:
        """Return the host's command that runs ARGV in CONTAINER on a terminal, with VARIABLES (NAME=VALUE) set."""
        options = [word for variable in variables for word in ("-e", variable)]
        return ["podman", "exec", "-it", *options, container.short_id, *argv]

    def predict_place(self, container: Container) -> control_groups.Place | None:
        """Return the place that CONTAINER will have when it starts; None where it cannot be predicted."""
        chosen = self.inspect(container).get("HostConfig") or {}
        if chosen.get("Cgroups") in _ELSEWHERE:
            return None
        manager, parent = (chosen.get(name) or "" for name in ("CgroupManager", "CgroupParent"))
        path = control_groups.predict(self.name, manager, parent, container.id)
        return control_groups.Place(path, has_shim=False) if path else None


def list_as(account: Account, until: float) -> list[dict[str, Any]]:
    """Return the unchecked fields of all containers of ACCOUNT, as whom the caller runs; each has an empty `place`.

    Raises ContainerError where Podman does not answer as it should.
    """
    label = f"Podman of {account.label}"
    try:
        listed = _ask(label, _LIST, until, account.make_environment())
        return [{**_parse_listed(entry), "place": {}} for entry in listed or ()]
    except WRONG_FORM as error:
        raise ContainerError(f"{label} gives an answer of the wrong form: {error!r}") from error


def inspect_as(account: Account, ids: Sequence[str], until: float) -> dict[str, Any]:
    """Return the description of each of the containers IDS by its id, from the Podman of ACCOUNT, as whom the caller runs.

    A container that has just gone is left out. Raises ContainerError where Podman does not answer as it should.
    """
    label = f"Podman of {account.label}"
    try:
        answer = _ask(label, (*_INSPECT, *ids), until, account.make_environment(), some_ok=True) if ids else []
        return {str(entry["Id"]): dict(entry) for entry in answer or ()}
    except WRONG_FORM as error:
        raise ContainerError(f"{label} gives an answer of the wrong form: {error!r}") from error


def read_history(since_s: float) -> dict[str, tuple[str, dict[str, str]]]:
    """Return id → image and labels of the containers that root's Podman has started since SINCE_S (seconds since the epoch), removed ones, too.

    Raises ContainerError where Podman does not answer as it should. Source: podman-events(1).
    """
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since_s))
    words = ("events", "--stream=false", "--since", since, "--filter", "type=container", "--format", "json")
    try:
        found: dict[str, tuple[str, dict[str, str]]] = {}
        for line in _ask_for_text(Podman.label, words).splitlines():
            entry = parse_json(line)
            # Not each event has the labels, and some have attributes of their own.
            image, labels = found.get(str(entry["ID"]), ("", {}))
            found[str(entry["ID"])] = (
                image or str(entry.get("Image") or ""),
                {**labels, **(entry.get("Attributes") or {})},
            )
        return found
    except WRONG_FORM as error:
        raise ContainerError(f"{Podman.label} gives an answer of the wrong form: {error!r}") from error


def _parse_listed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a container as `podman ps` lists it; raises one of WRONG_FORM."""
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
    """Return the answer of Podman, called LABEL in messages, to WORDS; with SOME_OK also where it refuses a part of WORDS."""
    return parse_json(_ask_for_text(label, words, until, environment, some_ok=some_ok) or b"[]")


def _ask_for_text(
    label: str,
    words: Sequence[str],
    until: float | None = None,
    environment: dict[str, str] | None = None,
    *,
    some_ok: bool = False,
) -> bytes:
    try:
        done = run(
            ["podman", *words], time.monotonic() + read_engine_timeout() if until is None else until, environment
        )
    except OSError as error:
        raise ContainerError(f"{label} cannot be asked: {error}") from error
    except Unanswered as error:
        raise ContainerError(f"{label} cannot be asked: {error}") from error
    if done.returncode != 0 and not (some_ok and done.stdout):
        text = done.stderr.lower()
        is_gone = "no such container" in text or "no such object" in text
        raise (_NoSuchContainer if is_gone else ContainerError)(f"{label} does not answer as it should: {done.stderr}")
    return done.stdout


class _NoSuchContainer(ContainerError):
    """A container that Podman does not know."""
