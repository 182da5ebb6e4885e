# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find containers of the tests' engine by the collection's code, for tests that call its functions instead of modules."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine


def find_record(name: str) -> Container:
    """Return the container called NAME with its present pid and state."""
    engine = DockerEngine(None)
    return engine.refresh(next(container for container in engine.list_containers() if container.name == name))
