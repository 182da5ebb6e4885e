# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check and describe tracers: which ones the kernel has, which ones an instance may use, and the functions that they trace.

Source: Documentation/trace/ftrace.rst of the kernel.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
from dataclasses import dataclass
from typing import Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance, TraceError

# Tracer → the kernel's build option for it.
OPTIONS = {
    "nop": "CONFIG_TRACING",
    "function": "CONFIG_FUNCTION_TRACER",
    "function_graph": "CONFIG_FUNCTION_GRAPH_TRACER",
    "irqsoff": "CONFIG_IRQSOFF_TRACER",
    "preemptoff": "CONFIG_PREEMPT_TRACER",
    "preemptirqsoff": "CONFIG_IRQSOFF_TRACER and CONFIG_PREEMPT_TRACER",
    "wakeup": "CONFIG_SCHED_TRACER",
    "wakeup_rt": "CONFIG_SCHED_TRACER",
    "wakeup_dl": "CONFIG_SCHED_TRACER",
}
FUNCTION_TRACERS = ("function", "function_graph")
LATENCY_TRACERS = tuple(name for name in OPTIONS if name not in ("nop", *FUNCTION_TRACERS))
FILTER, NOTRACE, FORK, PIDS = "set_ftrace_filter", "set_ftrace_notrace", "options/function-fork", "set_ftrace_pid"
_FUNCTIONS = "available_filter_functions"
_GRAPH_IN_INSTANCES = (6, 11)


@dataclass(frozen=True)
class TracerRequest:
    """A tracer and the functions that it traces.

    TRACER: the kernel's name of the tracer.
    FUNCTIONS: names or globs of the functions to trace; empty for all.
    NOTRACE: names or globs of the functions to leave out.
    There is no field for the depth of graphs: max_graph_depth applies to the whole host.
    """

    tracer: str = "nop"
    functions: tuple[str, ...] = ()
    notrace: tuple[str, ...] = ()

    def find_files(self) -> dict[str, str]:
        """Return control file → value, in the order of writing; blanks separate patterns."""
        if self.tracer not in FUNCTION_TRACERS:
            return {"current_tracer": self.tracer}
        # The functions come before the tracer: tracing all functions of the kernel is costly, even for a moment.
        return {
            FILTER: " ".join(self.functions),
            NOTRACE: " ".join(self.notrace),
            FORK: "1",
            "current_tracer": self.tracer,
        }


def check_request(request: TracerRequest) -> None:
    """Raise TraceError if a function of REQUEST is no name or glob, or if its tracer takes no functions. Pure."""
    for text in (*request.functions, *request.notrace):
        if (
            not text
            or not text.isascii()
            or any(not ("!" < character <= "~") or character in "#:" for character in text)
        ):
            raise TraceError(f"{text!r} is neither the name of a kernel function nor a glob")
    if request.tracer not in FUNCTION_TRACERS and (request.functions or request.notrace):
        raise TraceError("functions and notrace are for the tracers function and function_graph")


def check_possible(root: str, request: TracerRequest, own: Sequence[str], release: tuple[int, ...]) -> None:
    """Raise TraceError if the instances called OWN cannot use the tracer of REQUEST.

    ROOT is the kernel's tracefs, RELEASE the kernel's version, such as (6, 11). Nothing is changed.
    """
    tracer = request.tracer
    if tracer == "nop":
        return
    top = Instance(root, "..")
    offered = top.read("available_tracers").split()
    if tracer not in offered:
        raise TraceError(f"{list_missing(offered)[tracer]}; it has {', '.join(sorted(offered))}")
    if tracer == "function_graph" and release < _GRAPH_IN_INSTANCES:
        raise TraceError(
            "before Linux 6.11 function_graph works only in the top instance, which is shared by the whole host and so not"
            " used here: use the tracer function"
        )
    if tracer in LATENCY_TRACERS:
        users = [name for name, other in gen_tracers(root) if name not in own and other in LATENCY_TRACERS]
        if users:
            raise TraceError(
                f"tracer {tracer!r} is for one instance per host, and {users[0]} uses one like it: end that trace first"
            )
        if len(own) > 1:
            raise TraceError(f"tracer {tracer!r} is for one instance per host: select one container, not {len(own)}")
        return
    known = list_functions(root)
    for pattern in (*request.functions, *request.notrace):
        if not fnmatch.filter(known, pattern):
            near = ", ".join(difflib.get_close_matches(pattern.replace("*", ""), known, 3)) or "none like it"
            raise TraceError(f"the kernel has no function {pattern!r} that can be traced; near ones: {near}")


def gen_tracers(root: str) -> Iterator[tuple[str, str]]:
    """Yield name and tracer of each instance of the tracefs at ROOT, the top instance included."""
    yield "the top instance", Instance(root, "..").read("current_tracer")
    for name in sorted(os.listdir(os.path.join(root, "instances"))):
        try:
            yield name, Instance(root, name).read("current_tracer")
        except TraceError:
            continue  # the instance has just been removed


def list_functions(root: str) -> list[str]:
    """Return the names of the kernel's functions that can be traced; raises TraceError if the host permits no tracing of functions."""
    try:
        text = Instance(root, "..").read(_FUNCTIONS)
    except TraceError as error:
        raise TraceError(
            f"functions cannot be traced on this host: {error} (ftrace_info says why); trace events instead"
        ) from error
    return [line.split()[0] for line in text.splitlines() if line]


def list_missing(offered: Sequence[str]) -> dict[str, str]:
    """Return tracer → reason for the known tracers that are not in OFFERED, the kernel's list."""
    return {
        name: f"the kernel has no tracer {name} ({option})" for name, option in OPTIONS.items() if name not in offered
    }


def find_functions(patterns: str, known: Sequence[str]) -> set[str]:
    """Return the KNOWN functions that match PATTERNS, which blanks separate."""
    return {name for pattern in patterns.split() for name in fnmatch.filter(known, pattern)}


def parse_filter(text: str) -> set[str]:
    """Return the functions in TEXT, the content of set_ftrace_filter or set_ftrace_notrace; empty if it names none."""
    return {line.split()[0] for line in text.splitlines() if line and not line.startswith("#")}
