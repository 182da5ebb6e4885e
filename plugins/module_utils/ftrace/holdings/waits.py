# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the system calls that a container's threads wait in. Source: proc_pid_syscall(5)."""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.holdings import MAX_WAITS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.holdings.members import Members, Until
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.processes import Process, ProcessGone

_MAX_THREADS = 16384  # that are counted
_WORDS = 9  # number, six arguments, stack pointer, program counter


def parse_syscall(text: bytes) -> tuple[int, list[int]] | None:
    """Return number and arguments of the call in TEXT, a thread's /proc/PID/syscall; None if the thread waits in no call."""
    words = text.split()
    if len(words) != _WORDS:
        return None  # "running", or -1 for a thread that waits outside of a call
    try:
        return int(words[0]), [int(word, 16) for word in words[1:-2]]
    except ValueError:
        return None


def list_waits(members: Members, until: Until) -> tuple[list[dict[str, Any]], int]:
    """Return entries with tid, number and args for the threads of MEMBERS that wait in a call, and the number of threads not looked at."""
    entries: list[dict[str, Any]] = []
    seen = left_out = 0
    for process in members.held:
        for tid in _list_threads(process):
            seen += 1
            if len(entries) >= MAX_WAITS or seen > _MAX_THREADS or until.is_over():
                left_out += 1
                continue
            call = _read_syscall(process, tid)
            if call is not None:
                entries.append({"tid": tid, "number": call[0], "args": call[1]})
    return entries, left_out


def _list_threads(process: Process) -> list[int]:
    try:
        fd = process.open("task", os.O_RDONLY | os.O_DIRECTORY)
    except (ProcessGone, OSError):
        return []
    try:
        with os.scandir(fd) as names:
            return [int(name.name) for name in islice(names, _MAX_THREADS)]
    except OSError:
        return []  # the process has ended
    finally:
        os.close(fd)


def _read_syscall(process: Process, tid: int) -> tuple[int, list[int]] | None:
    try:
        return parse_syscall(process.read(f"task/{tid}/syscall"))
    except (ProcessGone, OSError):
        return None  # the thread has ended, or the kernel does not tell
