# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start traces as a module's options say, for the modules that do so."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Callable, Iterable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end, plan, start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import recording
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import limits, profiles, specification
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import options as trace_options
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import Specification
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import Instance


def start_traces(
    module: Any, root: str, outcome: Outcome, check: Callable[[Sequence[Container]], None] | None = None
) -> tuple[dict[str, Any], list[Container]]:
    """Start a trace of each container that MODULE's options select, and return the module's result and these containers.

    ROOT is the tracefs. OUTCOME gets the containers that fail; a trace of which nothing came is removed again.
    CHECK, if there is one, gets the containers before anything is changed, and may raise FleetError.
    """
    parameters = profiles.complete(module.params, len(Instance(root, "..").list_cpus()))
    path, files = _find_exposed(parameters)
    wanted, request = make_request(parameters, root, path, files, check_mode=module.check_mode)
    host = options.open_host(module)
    containers = options.select(module, host, required=True, refuse=outcome.fail)
    if check is not None:
        check(containers)
    if module.params["existing"] == "refuse":
        for container in containers:
            with outcome.serve(container):
                _check_free(root, container)
    if path:
        for container in containers:
            with outcome.serve(container):
                check_running(container)
        exposure.foresee(outcome.list_left(containers), outcome, path)
    with ExitStack() as begun:
        started = start.ensure_started(
            outcome.list_left(containers),
            outcome,
            begun,
            root,
            request,
            check_mode=module.check_mode,
            predict_place=host.predict_place,
        )
        leftovers = False
        with outcome.complaining():
            leftovers = end.remove_leftovers(root, busy_ok=True, check_mode=module.check_mode)
        made = {trace.instance.name for trace in started.made}
        found = [find_instance(root, container) for container in outcome.list_left(containers)]
        way = wanted.paths.as_result() if wanted.paths else None
        results = [] if module.check_mode else describe(found)
        begun.pop_all()
    return {
        "changed": started.changed or leftovers,
        "instances": [{**result, "created": result["name"] in made, "paths": way} for result in results],
        "diff": {"before": started.before, "after": started.after},
    }, containers


def make_request(
    parameters: Mapping[str, Any], root: str, path: str | None, files: Sequence[str], *, check_mode: bool
) -> tuple[Specification, plan.TraceRequest]:
    """Return the event specification that PARAMETERS ask for, and the request made of it, which exposes FILES at PATH."""
    wanted = trace_options.find_specification(parameters, root)
    restarts = parameters["follow_restarts"]
    if restarts is None:
        restarts = parameters["profile"] == "startup"

    def expose(trace: TraceInstance) -> bool:
        return trace.container is not None and exposure.ensure_exposed(
            trace.container, trace.instance.name, root, path, files, check_mode=check_mode
        )

    return wanted, plan.TraceRequest(
        settings=specification.find_settings(wanted),
        follow_exec=parameters["follow_exec"],
        follow_tools=parameters["follow_tools"],
        probes=wanted.list_probes(),
        limits=replace(limits.parse_limits(parameters), restarts=restarts),
        exposing=plan.Exposing(expose, lambda trace: conceal([trace.container], {trace.instance.name})),
        described=trace_options.describe(parameters, wanted),
    )


def _find_exposed(parameters: Mapping[str, Any]) -> tuple[str | None, Sequence[str]]:
    """Return the folder and the files of a trace to expose in its container, (None, ()) for nothing."""
    shown = parameters["expose"]
    path, files = exposure.check_wish(shown["path"], shown["files"]) if shown else (None, ())
    if "trace_pipe" in files and parameters["mode"] == "record":
        raise FleetError(
            "expose: trace_pipe would take events away from the recording: expose trace instead, or use mode: ring"
        )
    return path, files


def _check_free(root: str, container: Container) -> None:
    """Raise ContainerError where CONTAINER is traced already, or its ended trace has events that wait to be fetched."""
    trace = find_instance(root, container)
    if not trace.instance.exists():
        return
    found = describe_trace(trace)
    if found["state"] == "started" or recording.count_entries(trace):
        raise ContainerError(
            f"container {container.name} is traced already: {found['summary']}; fetch its events (ftrace_fetch, or the playbook collect),"
            " or end the trace (state=absent, or the playbook stop)"
        )


def conceal(containers: Iterable[Any], names: set[str] | None = None) -> list[str]:
    """Remove exposed files of the instances NAMES (None: of all) from CONTAINERS, and return phrases for the folders they were in.

    Raises FleetError where a container fails.
    """
    outcome = Outcome()
    left = exposure.remove(containers, outcome, names)
    outcome.check()
    return left


def describe(traces: Iterable[TraceInstance]) -> list[dict[str, Any]]:
    """Return TRACES as the modules return them, with the files that are exposed."""
    traces = list(traces)
    exposed = exposure.list_exposed([trace.container for trace in traces if trace.container is not None])
    results = []
    for trace in traces:
        shown = exposed.get(trace.instance.name)
        what = {"path": shown.path, "files": list(shown.files)} if shown else None
        results.append({**describe_trace(trace), "exposed": what})
    return results
