#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_capture
short_description: Trace containers for some seconds, and bring the captures to the controller
description:
  - Starts a trace of each selected container, waits on the host, stops the traces, fetches what they recorded, and removes them. All of
    this is one task and one run of the module on each host. Only where the host has no room for all captures at once is it called again.
  - C(ansible all -b -m crashcart.fleet.ftrace_capture -a 'containers=api seconds=10 dest=traces') is all that has to be typed.
  - Ansible runs a task on C(forks) hosts at a time, five by default. So 200 hosts take 40 times O(seconds) and some more, and are not
    traced at the same time. Ask for more forks (C(-f 200)), or use the playbook C(crashcart.fleet.trace), which starts the traces on all
    hosts, waits once for all of them, and finishes them.
  - Where the connection breaks or the controller is killed, the host goes on without it. The traces are finished when O(seconds) are
    over, and removed, and the next M(crashcart.fleet.ftrace_fetch) from the host, or the playbook C(crashcart.fleet.collect), brings
    their captures. Where the module was killed as well, this happens five seconds after O(ttl).
  - No task output appears while the module waits. For more than some minutes use the playbooks C(start), C(collect) and C(stop), since
    a connection without traffic may be cut on its way.
  - A container that fails does not stop the others. The task fails at its end, and says which containers failed and which were served.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
  - crashcart.fleet.captures
  - crashcart.fleet.containers
  - crashcart.fleet.probes
  - crashcart.fleet.traces
attributes:
  action_group:
    support: full
    membership:
      - crashcart.fleet.crashcart
      - crashcart.fleet.containers
  async:
    support: none
  become:
    support: full
    details: The module needs root on the host. The captures are copied as the login user.
  check_mode:
    support: full
    details: The containers are selected and the options are checked. It does not wait.
  delegation:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: none
    details: Each run makes captures of its own. It leaves the host as it was.
  platform:
    platforms: linux
    support: full
options:
  seconds:
    description:
      - How long to trace, from the moment when the traces of all containers of the host have started. At most a day.
    type: float
    default: 10
  dest:
    description:
      - Folder on the controller for the captures. They are written to C(DEST/HOST/CONTAINER/STAMP.dat), with their manifests in C(STAMP.json)
        beside them. Required unless O(phase=start) or O(live).
    type: path
  existing:
    description:
      - What to do for a container that is traced already.
      - V(refuse) fails for the container, and the message says who began the trace, when, and what has become of it.
      - V(change) gives the existing trace the settings of this task, fetches what it recorded, and lets it go on, with O(ttl).
      - A trace that has ended and has nothing left to fetch is started again in both cases.
    type: str
    choices: [change, refuse]
    default: refuse
  profile:
    description:
      - A ready selection of system calls and events, to which O(syscalls) and O(events) add.
        O(crashcart.fleet.ftrace_instance#module:profile) describes all of them.
      - The default is V(diagnose), which records what it takes to find out why something fails or waits, where none of O(syscalls),
        O(errors_only), O(events), O(tracer) and O(probes) says what to record.
    type: str
    choices: [errors, syscalls, files, network, sched, exec, memory, startup, diagnose]
  paths:
    description:
      - Record also the paths that programs pass to the recorded system calls. O(crashcart.fleet.ftrace_instance#module:paths) describes
        the choices.
    type: str
    choices: ['false', 'true', auto]
    default: auto
  ttl:
    description:
      - Time after which the traces stop by themselves, in case nobody finishes them. It cannot be shorter than O(seconds). The default is
        a minute longer.
    type: str
  phase:
    description:
      - Which part of the work to do. V(whole) does all of it.
      - V(start) starts the traces, and V(finish) stops, fetches and removes them. A play over many hosts has these two tasks and waits
        between them once, so that all hosts are traced at the same time. O(seconds) and O(ttl) of V(start) say when the host finishes
        the traces by itself.
      - With V(finish) select the traces by RV(instances[].id) of the first task. The options that say what to record have no meaning then.
    type: str
    choices: [whole, start, finish]
    default: whole
  live:
    description:
      - Show the system calls of one container while they happen, a line for each, until O(seconds) are over or Ctrl-C ends it.
        The controller brings them twice a second.
      - Two hundred lines a second are shown at most, and the number of the other calls is told. Where a container makes more calls than
        can be read meanwhile, a line says how much was passed over.
      - O(profile), O(syscalls) and the other options say which calls are recorded, and so shown.
      - Without O(dest) nothing else is kept, and O(max_size) is V(256MiB) of the latest events. With O(dest) the capture is brought home at
        the end as usual, and the result says what was found in it.
      - When nobody looks any more, as after Ctrl-C, the host ends the trace within twenty seconds. It then drops what was recorded, or with
        O(dest) keeps it for the next M(crashcart.fleet.ftrace_fetch).
      - It needs O(mode=record), O(existing=refuse), and a O(clock) that programs can read (V(mono), V(mono_raw) or V(boot)).
    type: bool
    default: false
  wait_for_start:
    description:
      - Trace the containers that start within O(seconds), each from its first instruction on, in place of those that run. They need not
        exist yet, and may end at once. O(crashcart.fleet.ftrace_instance#module:state=awaiting) describes which containers can be meant.
      - A warning says so where none of them has started, and which others have.
    type: bool
    default: false
  leave:
    description:
      - Ids of containers among O(containers) whose traces are only fetched, and go on. Only with O(phase=finish).
    type: list
    elements: str
    default: []
seealso:
  - module: crashcart.fleet.ftrace_instance
  - module: crashcart.fleet.ftrace_fetch
  - module: crashcart.fleet.ftrace_report
"""

EXAMPLES = r"""
- name: Record for ten seconds what it takes to find out why a container does not work
  crashcart.fleet.ftrace_capture:
    containers: api
    dest: traces
  become: true
  register: captured

- name: Show where the captures are
  ansible.builtin.debug:
    var: captured.lines

- name: Show which files a container cannot open, for a minute
  crashcart.fleet.ftrace_capture:
    containers: api
    live: true
    syscalls: ["%file"]
    seconds: 60
  become: true

- name: Record the network's calls of two containers for half a minute
  crashcart.fleet.ftrace_capture:
    containers: [api, web]
    profile: network
    seconds: 30
    dest: traces
  become: true

- name: Start on all hosts
  crashcart.fleet.ftrace_capture:
    phase: start
    containers: api
    seconds: 60
    ttl: 10m
  become: true
  register: started

- name: Wait once
  ansible.builtin.pause:
    seconds: 60

- name: Bring home
  crashcart.fleet.ftrace_capture:
    phase: finish
    containers: "{{ started.instances | map(attribute='id') }}"
    allow_empty: true
    dest: traces
  become: true
"""

RETURN = r"""
selected:
  description: Names of the selected containers, also in check mode.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: [api, web]
not_found:
  description: Names and ids of the selection that match no container of this host. They fail the task unless O(allow_empty) accepts them.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step. The message of the task says the same.
    - A start that failed leaves nothing behind. A trace whose events could not be fetched stays on the host.
  returned: always, unless the task failed before it served any container
  type: list
  elements: dict
  contains:
    container:
      description: Name of the container.
      type: str
      sample: api
    id:
      description: Id of the container, or its beginning.
      type: str
      sample: 3f4e1c0c9b0b1c4f6a3f7d0d5f4b1f2e9d8c7b6a59483726150493827161504f
    msg:
      description: Why it failed, and what to do.
      type: str
      sample: "container api (3f4e1c0c9b0b) is exited: start it first"
lines:
  description: One line to read for each of RV(captures), with O(phase=start) for each of RV(instances).
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: ["api: traces/web1/api/20261121T231500.000000Z.dat (1200 events)"]
shown:
  description: What O(live) has shown.
  returned: with O(live), unless the task failed
  type: dict
  contains:
    lines:
      description: Number of calls that were shown.
      type: int
      sample: 312
    others:
      description: Number of calls that were counted only.
      type: int
      sample: 0
    skipped:
      description: Bytes of events that were passed over because they came too fast.
      type: int
      sample: 0
    ended:
      description: Why the trace ended before its time; V(null) if it did not.
      type: str
      sample: the container ended
findings:
  description: What was found in the captures, in the form of RV(crashcart.fleet.ftrace_report#module:findings). RV(lines) has their statements.
  returned: with O(live) and O(dest), where something was recorded
  type: list
  elements: dict
  contains:
    statement:
      description: One plain sentence.
      type: str
      sample: "cat could not open /nonesuch: no such file (ENOENT), 12 times"
captures:
  description:
    - One entry for each capture, also those of the host's earlier traces that no controller has, sorted by container and time, in the form
      of RV(crashcart.fleet.ftrace_fetch#module:captures). Empty in check mode.
  returned: as RV(failed_containers), unless O(phase=start), or O(live) without O(dest)
  type: list
  elements: dict
  contains:
    path:
      description: The C(trace.dat) on the controller. V(null) where nothing was recorded.
      type: str
      sample: traces/web1/api/20261121T231500.000000Z.dat
    manifest:
      description: The manifest, as RV(crashcart.fleet.ftrace_fetch#module:captures[].manifest).
      type: dict
      sample: {complete: true, entries: 1200}
instances:
  description:
    - The traces that were started, in the form of RV(crashcart.fleet.ftrace_instance#module:instances), as they were after the start.
      Empty in check mode.
  returned: as RV(failed_containers), unless O(phase=finish)
  type: list
  elements: dict
  contains:
    container:
      description: Name of the container.
      type: str
      sample: api
    id:
      description: Id of the container, or its beginning.
      type: str
      sample: 3f4e1c0c9b0b
    created:
      description: Whether this task created the trace.
      type: bool
      sample: true
"""

import os
import signal
import time
from contextlib import suppress

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import features, summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import (
    FleetError,
    explain,
    require_root,
    run_module,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import (
    arguments,
    awaiting,
    finishing,
    guard,
    live,
    starting,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import arguments as fetch_arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch as fetching
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds

_MAX_S = 86400
_MARGIN_S = 60  # from the end of the wait to the ttl: a stop and a fetch have begun by then
_LAST_S = 5  # from the ttl, at which the recorder stops the traces, to their end by the guard
_DEFAULT_PROFILE = "diagnose"
# The options that say what to record; without any of them the default profile does.
_CHOOSING = ("profile", "syscalls", "errors_only", "events", "probes")
_NEEDED = ("tracefs", "trace_instances", "event_fork")


def prepare(parameters):
    """Check the times in PARAMETERS, fill in what depends on other options, and return the seconds of the ttl."""
    seconds = parameters["seconds"]
    if not 0 < seconds <= _MAX_S:
        raise FleetError(
            f"seconds: {seconds:g} is not a time from 0.1 to {_MAX_S}: for a longer trace use the playbooks start and stop"
        )
    if parameters["ttl"] is None:
        parameters["ttl"] = f"{seconds + _MARGIN_S:.3f}s"
    ttl_s = parse_seconds(parameters["ttl"], "ttl")
    if ttl_s < seconds:
        raise FleetError(f"ttl: {parameters['ttl']} is shorter than seconds ({seconds:g}): give more, or leave it out")
    if parameters["live"]:
        live.prepare(parameters)
    if parameters["tracer"] == "nop" and not any(parameters[name] for name in _CHOOSING):
        parameters["profile"] = _DEFAULT_PROFILE
    return ttl_s


def check_waiting(parameters):
    """Check PARAMETERS of a capture of containers that are yet to start, and fill in what makes it a rule of this call alone."""
    if parameters["live"]:
        raise FleetError("live cannot be used with wait_for_start: name a container that runs")
    parameters.update(rule=f"start-{os.urandom(4).hex()}", max_containers=None, max_time=None, follow_restarts=None)


def check_host():
    """Raise FleetError, which names all that is missing, where the host cannot trace containers."""
    found = [feature for feature in features.list_trace_features() if feature.name in _NEEDED and not feature.ok]
    if found:
        missing = "; ".join(f"{feature.name}: {feature.reason}" for feature in found)
        raise FleetError(f"this host lacks what is needed: {missing}")


def list_left_alone(parameters, instances):
    """Return the ids of those of the traces INSTANCES that were there before and go on."""
    if parameters["existing"] == "refuse":  # then those that were there before had ended
        return []
    return [instance["id"] for instance in instances if not instance["created"]]


def start(module, root, outcome):
    """Start the traces and their guard; return the result, the containers, and the ids of traces that go on afterwards."""
    parameters = module.params
    ttl_s = prepare(parameters)
    check_host()
    if parameters["wait_for_start"]:
        check_waiting(parameters)
        result, containers = awaiting.await_containers(module, root, outcome)
    else:
        check = live.check_one if parameters["live"] else None
        result, containers = starting.start_traces(module, root, outcome, check)
    result.update(options.describe_selection(module, containers))
    leave = list_left_alone(parameters, result["instances"])
    mine = [instance for instance in result["instances"] if instance["id"] not in leave]
    if mine:
        everything = [instance["id"] for instance in result["instances"]]
        paths = [tracefs.Instance(root, instance["name"]).path for instance in mine]
        try:
            recording = live.find_recording(mine[0]["name"]) if parameters["live"] else None
            answer = make_answer(root, parameters, everything, leave, recording)
            silence_s = live.SILENCE_S if parameters["live"] else None
            guard.start_guard(paths, everything, ttl_s + _LAST_S, answer, silence_s)
        except (OSError, FleetError) as error:
            if parameters["live"]:
                live.drop(root, everything, parameters["docker_host"])
                raise
            module.warn(f"the host does not finish the traces by itself, they only stop at their ttl: {error}")
    return result, containers, leave


def make_answer(root, parameters, ids, leave, recording=None):
    """Return the function by which a guard finishes the traces of the containers with IDS, but not those of LEAVE by itself.

    With RECORDING, the trace's own, it also answers the looks of a controller that shows the trace.
    """

    def answer(request, is_alone):
        warnings = []
        chosen = [container_id for container_id in ids if request is not None or container_id not in leave]
        wanted = {**parameters, "leave": [], **(request or {})}
        try:
            if recording is not None:
                if live.LOOK in wanted:
                    return live.look(recording, wanted[live.LOOK])
                if live.DROP in wanted or (request is None and not parameters["dest"]):
                    return live.drop(root, ids, parameters["docker_host"])
            found = finishing.select(root, chosen, parameters["docker_host"], warnings.append)
            result = finish(found, wanted, is_alone, warnings.append)
        except FleetError as error:
            result = {"failed": True, "msg": str(error), **error.result}
        except OSError as error:
            result = {"failed": True, "msg": explain(error)}
        return {**result, "warnings": warnings}

    return answer


def run_start(module, root):
    outcome = Outcome()
    result, containers, _leave = start(module, root, outcome)
    result["lines"] = summaries.summarize_traces(result["instances"])
    outcome.check(containers, "traced", **result)
    if module.params["live"]:
        for one in result["instances"]:
            result["live"] = live.describe(live.find_recording(one["name"]), one["id"])
    return {**result, "failed_containers": []}


def run_whole(module, root):
    # A broken connection ends the terminal, if there is one. The traces are finished all the same.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    outcome = Outcome()
    result, containers, leave = start(module, root, outcome)
    ids = [instance["id"] for instance in result["instances"]]
    if ids:
        began = time.monotonic()
        try:
            time.sleep(module.params["seconds"])
        except KeyboardInterrupt:
            module.warn(f"the trace was interrupted after {time.monotonic() - began:.1f} seconds")
        with suppress(KeyboardInterrupt):
            found = finishing.select(root, ids, module.params["docker_host"], module.warn)
            home = fetching.make_home(module.params)
            ended = finishing.finish(found, outcome, home, leave=leave, is_alone=guard.is_alone(), warn=module.warn)
            result.update(ended, leave=leave, changed=True)
    outcome.check(containers, "traced", **result)
    return {**result, "failed_containers": []}


def finish(found, parameters, is_alone, warn):
    """Finish the traces FOUND for the controller that PARAMETERS describe, and return a module's result."""
    who = [trace.who for trace in found]
    home = fetching.make_home(parameters)
    outcome = Outcome()
    result = finishing.finish(found, outcome, home, leave=parameters["leave"], is_alone=is_alone(), warn=warn)
    result.update(leave=parameters["leave"], selected=sorted(one.name for one in who), not_found=[])
    outcome.check(who, "fetched", **result)
    return {**result, "failed_containers": []}


def run_finish(module, root):
    if not options.is_selecting(module):
        raise FleetError("say which containers: give containers, the ids that the first task has returned")
    found = selection.select_instances(module, root, untraced_ok=True)
    about = options.describe_selection(module, [trace.who for trace in found])
    if module.check_mode:
        return {"changed": bool(found), "failed_containers": [], **about}
    return {**finish(found, module.params, guard.is_alone, module.warn), **about}


def run(module):
    require_root()
    if module.params["live"] and module.params["phase"] == "whole":
        raise FleetError("live is the action's: do not call the module by itself")
    if module.params["phase"] != "start" and not module.params["dest"]:
        raise FleetError("dest is missing: name the folder of the controller that the captures go to")
    if module.params["phase"] != "finish" and module.params["leave"]:
        raise FleetError("leave can be used with phase=finish only")
    run_phase = {"whole": run_whole, "start": run_start, "finish": run_finish}[module.params["phase"]]
    return run_phase(module, tracefs.find_tracefs())


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            **{
                **arguments.ARGUMENTS,
                "existing": dict(type="str", choices=["change", "refuse"], default="refuse"),
                "paths": {**arguments.ARGUMENTS["paths"], "default": "auto"},
            },
            **fetch_arguments.FORMAT_ARGUMENTS,
            **fetch_arguments.HOME_ARGUMENTS,
            seconds=dict(type="float", default=10),
            dest=dict(type="path"),
            phase=dict(type="str", choices=["whole", "start", "finish"], default="whole"),
            leave=dict(type="list", elements="str", default=[]),
            live=dict(type="bool", default=False),
            wait_for_start=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
