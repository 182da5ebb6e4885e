# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin and end standing rules as a module's options say."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.endings import describe_end
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import metadata, start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import rule as rules
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import rule_requests, starting
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import distribute as distributing
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import recordings, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import Rule
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import TraceInstance, find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_MAX_ENDS = 5
ARGUMENTS: dict[str, dict[str, Any]] = {
    "rule": {"type": "str"},
    "max_containers": {"type": "int"},
    "max_time": {"type": "str"},
}


def await_containers(module: Any, root: str, outcome: Outcome) -> tuple[dict[str, Any], list[Any]]:
    """Begin the rule that MODULE's options describe, and return the module's result and the rule in place of containers.

    ROOT is the tracefs. OUTCOME gets the failure. Raises FleetError for options that a rule cannot have.
    """
    parameters = rule_requests.complete(module.params, root)
    rule = rule_requests.make_rule(parameters)
    request = rule_requests.make_request(parameters, root)
    container = rule.as_container()
    with ExitStack() as begun:
        started = start.ensure_awaiting(rule, outcome, begun, root, request, check_mode=module.check_mode)
        made = {trace.instance.name for trace in started.made}
        found = [find_instance(root, one) for one in outcome.list_left([container])]
        results = [] if module.check_mode else starting.describe(found)
        begun.pop_all()
    return {
        "changed": started.changed,
        "instances": [{**result, "created": result["name"] in made, "paths": None} for result in results],
        "diff": {"before": started.before, "after": started.after},
    }, [container]


def distribute(traces: Sequence[TraceInstance], outcome: Outcome, warn: Callable[[str], None]) -> list[TraceInstance]:
    """Return traces of the containers that the rules among TRACES have traced; WARN is told of each rule for which none has started.

    OUTCOME gets the rules that fail.
    """
    found = []
    for trace in traces:
        record = metadata.read_record(trace.instance) if trace.instance.exists() else {}
        if "rule" not in record:
            continue
        with outcome.serve(trace.who):
            described = state.describe_state(trace.instance)["rule"]
            started = distributing.distribute(trace.instance)
            found += [find_instance(trace.instance.root, container) for container in started]
            if not started:
                warn(escape(_tell_missing(described)))
    return found


def remove_made(traces: Sequence[TraceInstance]) -> None:
    """Remove what the rules among TRACES have recorded and nobody has fetched, also what is sorted by container already."""
    for trace in traces:
        described = metadata.read_record(trace.instance).get("rule") if trace.instance.exists() else None
        found = [described["name"]] if described else []
        found += map(
            distributing.find_rule, filter(distributing.is_of_rule, recordings.list_recordings(trace.instance.name))
        )
        for name in set(found):
            distributing.remove_made(name)


def _tell_missing(rule: Mapping[str, Any]) -> str:
    """Return a sentence that says that nothing has started that RULE, as described in results, means, and what else has."""
    awaited = rules.from_json({name: rule[name] for name in rules.NAMES})
    wanted = rules.name_selection(awaited)
    others = list(dict.fromkeys(one["name"] for one in rule["latest"]))
    meanwhile = [f"started have meanwhile: {', '.join(others)}"] if others else []
    if rule["missed"]:
        meanwhile.append(f"{rule['missed']} were over before they were seen, and it is not known which")
    told = "; ".join([*(meanwhile or ["no container has started meanwhile"]), *rule["troubles"]])
    return f"nothing has started that is meant by {wanted}: {told}{_tell_ends(awaited)}"


def _tell_ends(rule: Rule) -> str:
    """Return what the host's engines say of the containers that RULE means and that do not run, each after a semicolon."""
    host = Host(None)
    matches = rule.make_matcher()
    try:
        found = [one for one in host.list_containers(users=False) if matches(one) and one.state != "running"]
        ends = {one.name: describe_end(host.inspect(one)) for one in found[:_MAX_ENDS]}
    except ContainerError:
        return ""  # the engine's word is an addition
    return "".join(f"; {name}: {text}" for name, text in ends.items() if text)


def select_rule(module: Any, root: str) -> list[TraceInstance]:
    """Return the trace of the rule that MODULE's options name, also if only its recording is left. ROOT is the tracefs.

    Raises FleetError where there is none that could be stopped.
    """
    name = module.params["rule"]
    if options.is_selecting(module) or module.params["everything"]:
        raise FleetError("rule cannot be combined with a selection of containers: give one of them")
    trace = find_instance(root, Rule(name).as_container())
    if trace.instance.exists() or recordings.list_folders(trace.instance.name):
        return [trace]
    if module.params["state"] == "stopped":
        raise FleetError(f"no rule here is called {name!r}: ftrace_info shows the rules of this host")
    return []


def check_options(parameters: Mapping[str, Any]) -> None:
    """Raise FleetError for options of a rule among PARAMETERS of ftrace_instance that its state has no use for."""
    names = {"started": tuple(ARGUMENTS), "awaiting": ()}.get(parameters["state"], ("max_containers", "max_time"))
    for name in names:
        if parameters[name] is not None:
            raise FleetError(f"{name} cannot be used with state={parameters['state']}: it is for state=awaiting")
