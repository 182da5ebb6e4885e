# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A container's trace: its instance in tracefs, which container that is, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import SHORT_ID_LENGTH, Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Who
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, InstanceGone
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX


@dataclass(frozen=True)
class TraceInstance:
    """An instance of ours and its container; CONTAINER is None when its engine knows it no more."""

    instance: Instance
    container: Container | None

    @property
    def container_id(self) -> str:
        """The container's id, or what the instance's name says of it."""
        return self.container.id if self.container else self.instance.name[len(INSTANCE_PREFIX) :]

    @property
    def who(self) -> Who:
        """Its container, as outcomes name it."""
        return Who(self.container_name, self.container_id)

    @property
    def short_id(self) -> str:
        """The container's short id, which the instance's name bears."""
        return self.instance.name[len(INSTANCE_PREFIX) :][:SHORT_ID_LENGTH]

    @property
    def container_name(self) -> str:
        """The container's name, or what is left of its id."""
        return self.container.name if self.container else self.container_id

    def find_state(self) -> str:
        """Its state in the words of ftrace_instance."""
        try:
            return "started" if self.instance.is_tracing() else "stopped"
        except InstanceGone:
            return "stopped"


def find_instance(root: str, container: Container) -> TraceInstance:
    """The instance of CONTAINER, whether it exists or not."""
    return TraceInstance(Instance(root, INSTANCE_PREFIX + container.short_id), container)
