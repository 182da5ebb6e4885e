# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count how often a tracer stops a process, by events of the kernel's scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import host

_TASK_TRACED = 8  # include/linux/sched.h


class Stops:
    """The number of a process's stops. COUNT is valid after the context."""

    count = 0


@contextmanager
def count_stops(pid: int) -> Iterator[Stops]:
    """Count the stops of thread PID by ptrace for as long as the context lasts."""
    instance = Path(f"{host.TRACEFS}/instances/stops-{os.getpid()}")
    stops = Stops()
    instance.mkdir()
    try:
        event = instance / "events/sched/sched_switch"
        (event / "filter").write_text(f"prev_pid == {pid} && prev_state & {_TASK_TRACED}")
        (event / "enable").write_text("1")
        yield stops
        (event / "enable").write_text("0")
        stops.count = sum("sched_switch" in line for line in (instance / "trace").read_text().splitlines())
    finally:
        instance.rmdir()
