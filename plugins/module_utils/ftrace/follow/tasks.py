# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The threads of a container: numbers for the kernel to follow, and who they are for the manifest."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import word_size

_MAX_TASKS = 65536


def list_tasks(container: Container | None) -> list[dict[str, Any]]:
    """Who the threads of CONTAINER are that live now: tid, tgid, comm, container_tid, and compat for those of 32-bit programs."""
    if container is None or container.pid <= 1:
        return []
    try:
        with processes.Process(container.pid) as process:
            directory = cgroups.find_container_directory(process.read("cgroup"), container.id)
    except processes.ProcessGone:
        return []
    pids = sorted({container.pid, *(cgroups.gen_pids(directory) if directory else ())})
    tids = [tid for pid in pids for tid in processes.read_threads(pid)][:_MAX_TASKS]
    return [
        {**vars(task), "compat": word_size.is_compat(task.tid)}
        for task in map(processes.read_task, tids)
        if task is not None
    ]
