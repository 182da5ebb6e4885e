# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the head of an instance's trace.dat: the formats of events, the kernel's symbols, and what else a reader of its pages needs."""

from __future__ import annotations

import os
import platform
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import trace_dat
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.tracers import FUNCTION_TRACERS
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.setup.configure import read_triggers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance


def read_head(instance: Instance, page_size: int, record: dict[str, Any], cpus: list[int]) -> trace_dat.Head:
    """Return the head of a trace.dat of INSTANCE, without its pages.

    PAGE_SIZE is that of the ring buffer in bytes, RECORD the record of the trace's start, CPUS those whose statistics are included.
    """
    events: dict[str, list[bytes]] = {}
    present = instance.read_events()
    # A trace that its limits have ended has no event on any more, but its record names them.
    for event in sorted({**record.get("events", {}), **present}):
        system, name = event.split(":")
        folder = f"events/{system}/{name}"
        # The record may name an event whose probe is gone.
        if event in present or os.path.isdir(os.path.join(instance.path, folder)):
            events.setdefault(system, []).append(instance.read_bytes(f"{folder}/format"))
    top = Instance(instance.root, "..")  # the files that instances lack
    ftrace_folder = os.path.join(top.path, "events/ftrace")
    names = sorted(name for name in os.listdir(ftrace_folder) if os.path.isdir(os.path.join(ftrace_folder, name)))
    uname = platform.uname()
    statistics = [f"CPU: {cpu}\n{instance.read(f'per_cpu/cpu{cpu}/stats')}\n\0".encode() for cpu in cpus]
    return trace_dat.Head(
        page_size=page_size,
        header_page=instance.read_bytes("events/header_page"),
        header_event=instance.read_bytes("events/header_event"),
        ftrace_formats=[top.read_bytes(f"events/ftrace/{name}/format") for name in names],
        event_formats=events,
        kallsyms=_read_kallsyms() if _has_addresses(instance) else b"",
        printk=top.read_bytes("printk_formats"),
        options=[
            (trace_dat.OPTION_TRACECLOCK, instance.read_bytes("trace_clock") + b"\0"),
            (trace_dat.OPTION_UNAME, f"{uname.system} {uname.node} {uname.release} {uname.version}\0".encode()),
            *((trace_dat.OPTION_CPUSTAT, text) for text in statistics),
        ],
    )


def _has_addresses(instance: Instance) -> bool:
    if instance.read("current_tracer") in FUNCTION_TRACERS:
        return True
    return any(text.startswith("stacktrace") for texts in read_triggers(instance).values() for text in texts)


def _read_kallsyms() -> bytes:
    """Return the addresses and names of the kernel's functions: megabytes, so only for traces with functions or stacks."""
    with open("/proc/kallsyms", "rb") as file:
        return b"".join(line for line in file if line.split(b" ", 2)[1] in b"tTwW")
