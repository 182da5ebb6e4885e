# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests' engine through our own eyes, for tests that call functions of ours and no module."""

from __future__ import annotations

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine


def find_record(name: str) -> Container:
    """The container called NAME, with its pid and its state of now."""
    engine = DockerEngine(None)
    return engine.refresh(next(one for one in engine.list_containers() if one.name == name))
