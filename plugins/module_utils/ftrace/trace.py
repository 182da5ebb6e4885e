# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Define a container's trace: the pair of an instance in tracefs and a container."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import SHORT_ID_LENGTH, Container
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Who
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, InstanceGone
from ansible_collections.crashcart.fleet.plugins.module_utils.names import INSTANCE_PREFIX


@dataclass(frozen=True)
class TraceInstance:
    """An instance of this collection and its container; CONTAINER is None if no runtime knows the container any more."""

    instance: Instance
    container: Container | None

    @property
    def container_id(self) -> str:
        """Return the container's id; for an unknown container the part of the id that is in the instance's name."""
        return self.container.id if self.container else self.instance.name[len(INSTANCE_PREFIX) :]

    @property
    def who(self) -> Who:
        """Return the container in the form in which outcomes name it."""
        return Who(self.container_name, self.container_id)

    @property
    def short_id(self) -> str:
        """Return the container's short id, which is in the instance's name."""
        return self.instance.name[len(INSTANCE_PREFIX) :][:SHORT_ID_LENGTH]

    @property
    def container_name(self) -> str:
        """Return the container's name; for an unknown container the same as container_id."""
        return self.container.name if self.container else self.container_id

    def find_state(self) -> str:
        """Return 'started' or 'stopped', as the option state of ftrace_instance has it."""
        try:
            return "started" if self.instance.is_tracing() else "stopped"
        except InstanceGone:
            return "stopped"


def find_instance(root: str, container: Container) -> TraceInstance:
    """Return the trace of CONTAINER in the tracefs at ROOT; its instance need not exist."""
    return TraceInstance(Instance(root, INSTANCE_PREFIX + container.short_id), container)
