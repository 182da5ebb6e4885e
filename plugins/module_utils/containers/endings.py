# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tell in words how a container has ended, or why it never came up, as its engine has it."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container, ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.podman import Podman

_MAX_TEXT = 300
_NO_PROGRAM, _NOT_EXECUTABLE = 127, 126


def tell_end(container: Container) -> str:
    """Return how root's Docker or Podman says that CONTAINER has ended; '' where it runs, is removed, or the engine does not answer."""
    try:
        if container.runtime == "docker":
            return describe_end(DockerEngine(None).inspect(container))
        return describe_end(Podman().inspect(container)) if container.runtime == "podman" else ""
    except ContainerError:
        return ""


def describe_end(about: Mapping[str, Any]) -> str:
    """Return how the container has ended by ABOUT, its description in the form of `docker inspect`; '' where it runs."""
    state = about.get("State") or {}
    status, code, error = str(state.get("Status", "")), state.get("ExitCode"), str(state.get("Error") or "")
    if status in ("created", "configured", "initialized"):
        text = "it was created and has never run"
    elif status in ("exited", "dead", "stopped"):
        text = f"it ended with status {code}"
        if state.get("OOMKilled"):
            text += ", as the kernel killed a process of it for want of memory"
    else:
        return ""
    if error:
        return f"{text}: {error[:_MAX_TEXT]}"
    return text + (
        ", as runtimes say of a program that cannot be executed" if code in (_NO_PROGRAM, _NOT_EXECUTABLE) else ""
    )
