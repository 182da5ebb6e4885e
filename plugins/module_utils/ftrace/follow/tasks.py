# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Describe the threads of a container for the manifest, and list the names of threads."""

from __future__ import annotations

from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import Container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.manifest import Task
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import word_size

_MAX_TASKS = 65536


def list_tasks(container: Container | None) -> list[dict[str, Any]]:
    """Return a description of each thread of CONTAINER that lives now; empty if the container does not run.

    The keys are tid, tgid, comm, container_tid, and compat, which tells threads of 32-bit programs.
    """
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


def format_cmdlines(first_tasks: list[Task], saved: str, tasks: list[Task]) -> str:
    """Return lines of 'tid comm' in the order of thread ids.

    Of several names the one in TASKS, the container's threads now, counts first, then that in SAVED, the kernel's saved_cmdlines,
    then that in FIRST_TASKS, the threads at the start.
    """
    names = {task["tid"]: task["comm"] for task in first_tasks}
    names.update(parse_saved_cmdlines(saved))
    names.update((task["tid"], task["comm"]) for task in tasks)
    lines = [f"{tid} {make_printable(comm)[:15] or '?'}\n" for tid, comm in sorted(names.items())]
    return "".join(lines)


def parse_saved_cmdlines(text: str) -> dict[int, str]:
    """Return thread id → name from TEXT, the kernel's saved_cmdlines.

    A process can put a line break into its name, and so pretend to be another thread. A thread with two lines is left out.
    """
    names: dict[int, str] = {}
    twice = set()
    for line in text.split("\n"):
        number, space, comm = line.partition(" ")
        if space and number.isascii() and number.isdigit():
            if int(number) in names:
                twice.add(int(number))
            names[int(number)] = comm
    return {tid: comm for tid, comm in names.items() if tid not in twice}


def make_printable(text: str) -> str:
    """Return TEXT with '?' for every character that is not printable ASCII, and that a terminal might obey."""
    return "".join(character if " " <= character <= "~" else "?" for character in text)
