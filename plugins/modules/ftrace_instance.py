#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_instance
short_description: Trace containers, each in a trace instance of its own
description:
  - Creates one ftrace instance with a ring buffer of its own for each container. It records the events of that container's
    processes, threads and children, and of the processes that C(docker exec) starts in it.
  - Nothing is installed, loaded or attached. The container is not changed, and only recording its events slows it.
  - While any system call is traced on a host, every process there enters system calls on the kernel's slow path (writing one byte was
    measured to take 1.4 times as long). Keep such traces short.
  - A container that fails does not stop the others. The task fails at its end, and says which containers failed and which were served. A
    start that fails leaves nothing behind, and an interrupted task removes the traces that it has created.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
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
    support: full
  become:
    support: full
    details: The module needs root on the host.
  check_mode:
    support: full
  delegation:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
options:
  containers:
    description:
      - Containers to trace, by name, id of at least twelve digits, or shell glob over names.
        O(crashcart.fleet.crashcart_attach#module:containers) describes all forms.
      - With O(state=stopped) and O(state=absent) a container that was removed is selected by at least twelve digits of its id.
    type: list
    elements: str
  state:
    description:
      - The state that the traces should have. V(started) records events. V(awaiting) makes a standing rule - whatever container starts on
        this host from now on and is meant by the selection is traced from its first instruction, also a container that does not exist yet,
        or that lives for a moment only. V(stopped) stops recording and keeps what was recorded. V(absent)
        removes the instance with what it holds.
      - V(awaiting) has defaults of its own - O(profile=startup) where nothing else says what to record, O(mode=record), O(ttl=1h),
        O(max_size=256MiB), O(when_full=rotate) and O(paths=auto). Because a rule covers several containers that need not exist yet, it
        cannot be used with O(query), O(docker_host), O(probes), O(expose), O(follow_tools), O(follow_restarts), O(follow_exec=false),
        O(mode=ring), a O(tracer), or the O(clock)s V(global) and V(local).
      - With V(absent) a name that matches no container is a warning, not an error, because nothing of it is traced. It is an error where
        one of the host's runtimes does not answer.
    type: str
    choices: [started, awaiting, stopped, absent]
    default: started
  rule:
    description:
      - Name of the standing rule, for O(state=awaiting). The default is what O(containers) and O(labels) select, as text.
      - With O(state=stopped) and O(state=absent) it selects the rule in place of containers.
    type: str
    version_added: 0.1.0
  max_containers:
    description:
      - How many containers a rule traces at once. What starts beyond that is not traced, and counted. Only with O(state=awaiting), where the
        default is V(100).
    type: int
    version_added: 0.1.0
  max_time:
    description:
      - How long a rule traces each container from its start on, for example V(30s). By default it does so until the container ends. Only
        with O(state=awaiting).
    type: str
    version_added: 0.1.0
  everything:
    description:
      - Stop or remove every trace instance of this collection on the host. With V(absent) also remove files that killed tasks have left exposed
        in containers.
      - Requires O(state=stopped) or O(state=absent) and replaces a selection by O(containers), O(labels) or O(query).
    type: bool
    default: false
    version_added: 0.1.0
  existing:
    description:
      - What O(state=started) does for a container that is traced already.
      - V(change) gives the existing trace the settings of this task. V(refuse) fails for the container, and the message says who began the
        trace, when, and what has become of it.
      - A trace that has ended and has nothing left to fetch is started again in both cases.
    type: str
    choices: [change, refuse]
    default: change
    version_added: 0.1.0
  profile:
    description:
      - A ready selection of system calls and events, to which O(syscalls) and O(events) add. C(docs/benchmarks.md) has the measured cost
        of each.
      - V(errors) records system calls that fail, and V(syscalls) records all of them.
      - V(files) records calls that name files (C(%file)) or change open ones.
      - V(network) records calls on sockets (C(%network)), and state changes, resets and retransmissions of TCP.
      - V(exec) records calls that start, signal and end processes (C(%process)), and forks, exits and signals.
      - V(startup) records what a program looks for while it starts.
      - V(diagnose) records what it takes to find out why something fails or waits. These are calls on files, descriptors, sockets and
        processes, calls that wait for locks, signals and times, rare calls that may be denied, and forks, ends, signals, states of TCP and
        victims of the OOM killer. Unless the task says otherwise, it comes with O(mode=record), O(max_size=256MiB), O(max_rate=200000) and
        O(paths=auto). Calls that only ask for a number or a time, and most calls on memory, are left out.
      - V(sched) records when threads run, wait, wake and move. V(memory) records page faults, reclaim, calls that change mappings
        (C(%memory)), and growth of the page cache and of the kernel's directory entries and inodes (these where the kernel's events have
        the names of caches). Events caused by somebody else, such as interrupts, are counted for the thread that they interrupt.
      - V(errors), V(syscalls), V(files), V(network), V(startup) and V(diagnose) also record requests by io_uring, which are no system calls.
    type: str
    choices: [errors, syscalls, files, network, sched, exec, memory, startup, diagnose]
  ttl:
    description:
      - Time after which the trace stops by itself, for example V(30m) or V(2h), even when the controller is gone. The default is V(1h)
        with O(state=awaiting), and no limit otherwise.
      - The stopped trace keeps what it has for M(crashcart.fleet.ftrace_fetch), and costs the host no more time. A recording frees the ring
        buffer's memory at once, a ring only with O(state=absent).
      - A later call with O(ttl) starts the time again.
    type: str
seealso:
  - module: crashcart.fleet.ftrace_fetch
  - module: crashcart.fleet.ftrace_report
  - module: crashcart.fleet.ftrace_info
"""

EXAMPLES = r"""
- name: Record system calls that fail in all containers of the shop
  crashcart.fleet.ftrace_instance:
    labels:
      com.docker.compose.project: shop
    errors_only: true
  become: true
  register: traced

- name: Show what is recorded
  ansible.builtin.debug:
    msg: "{{ traced.instances | map(attribute='events') }}"

- name: Record two system calls with their durations
  crashcart.fleet.ftrace_instance:
    containers: api
    syscalls: [connect, openat]
    buffer_size: 8MiB
  become: true

- name: Record what makes the page cache grow
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: memory
  become: true

- name: Record which threads are woken, and the kernel stack of each short sleep
  crashcart.fleet.ftrace_instance:
    containers: api
    events:
      - sched:sched_wak*
      - name: syscalls:sys_enter_clock_nanosleep
        filter: flags == 0
        triggers: [stacktrace]
  become: true

- name: Record the paths on which calls fail
  crashcart.fleet.ftrace_instance:
    containers: api
    errors_only: true
    paths: true
  become: true

- name: Record look-ups of host names in the container's C library
  crashcart.fleet.ftrace_instance:
    containers: api
    probes:
      - name: getaddrinfo
        type: uprobe
        binary: /lib/x86_64-linux-gnu/libc.so.6
        symbol: getaddrinfo
        arguments:
          host: "+0(%di):ustring"
      - name: getaddrinfo_end
        type: uretprobe
        binary: /lib/x86_64-linux-gnu/libc.so.6
        symbol: getaddrinfo
        arguments:
          result: $retval:s32
        filter: result != 0
  become: true

- name: Record every system call of the next hour, and keep the newest 4 GiB
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: syscalls
    mode: record
    buffer_size: 8MiB
    max_size: 4GiB
    when_full: rotate
    ttl: 1h
  become: true

- name: Run a flight recorder that stops when it costs too much, or after a day
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: errors
    max_rate: 20000
    ttl: 1d
  become: true

- name: Trace a container that does not stay up, from its next start on
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: startup
    ttl: 1h
  become: true

- name: Trace whatever is called shop-something from its first instruction, also containers that do not exist yet
  crashcart.fleet.ftrace_instance:
    state: awaiting
    rule: shop
    containers: shop-*
    ttl: 8h
  become: true

- name: End that rule, with what it has recorded and nobody has fetched
  crashcart.fleet.ftrace_instance:
    state: absent
    rule: shop
  become: true

- name: Let the application write its own lines into its trace, with echo done >/dev/crashcart-trace/trace_marker
  crashcart.fleet.ftrace_instance:
    containers: api
    errors_only: true
    expose:
      files: [trace_marker]
  become: true

- name: Remove every trace instance of the collection
  crashcart.fleet.ftrace_instance:
    state: absent
    everything: true
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
  description: Names and ids of the selection that match no container of this host. They fail the task unless O(allow_empty) or
    O(state=absent) accepts them.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step. The message of the task says the same.
    - A start that failed leaves nothing behind, and a trace that existed before is unchanged.
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
  description: One line to read for each of RV(instances), with the state, the end if there is one, and the number of events.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: ["trace of api: started until 2026-09-21T14:13:20Z, 0 events in its buffers"]
instances:
  description:
    - The instances of the selected containers after the task. With O(state=started) those that are traced as asked for, with O(state=absent)
      those that could not be removed. Empty in check mode.
  returned: as RV(failed_containers)
  type: list
  elements: dict
  contains:
    name:
      description: Name of the instance in tracefs.
      type: str
      sample: crashcart-3f4e1c0c9b0b
    container:
      description: Name of the container, or the beginning of its id when it is gone.
      type: str
      sample: api
    id:
      description: Id of the container, or its beginning.
      type: str
      sample: 3f4e1c0c9b0b
    created:
      description: Whether this task created the instance. Only with O(state=started).
      type: bool
      sample: true
    state:
      description: State of the trace, V(started) or V(stopped).
      type: str
      sample: started
    clock:
      description: The clock of the time stamps.
      type: str
      sample: mono
    buffer_kb:
      description: Size of the ring buffer for each CPU, in units of 1024 bytes.
      type: int
      sample: 2048
    events:
      description: The recorded events, each with its filter.
      type: dict
      sample: {"raw_syscalls:sys_exit": "ret < 0 && ret >= -4095"}
    triggers:
      description: The triggers of each event, as the kernel shows them.
      type: dict
      sample: {"sched:sched_switch": ["stacktrace:unlimited if common_pid >= 0"]}
    exposed:
      description: The folder in the container that shows files of the trace, and these files. V(null) where there is none.
      type: dict
      sample: {path: /dev/crashcart-trace, files: [trace, trace_marker]}
    tracer:
      description: The tracer of the instance.
      type: str
      sample: nop
    probes:
      description: The probes of the instance, each with its definition as the kernel shows it.
      type: dict
      sample: {getaddrinfo: "p:crashcart_3f4e1c0c9b0b_5d41402a/getaddrinfo /proc/self/fd/9:0x10a2b0 host=+0(%di):ustring"}
    paths:
      description:
        - How paths are recorded, with C(by) (V(null) where O(paths=auto) found no way), C(why) and C(missing), the calls whose paths are
          not recorded. V(null) with O(paths=false). Only with O(state=started).
      type: dict
      sample: {by: eprobe, why: "event: the kernel's events of system calls have no text (Linux 6.19); ...", missing: []}
    pids:
      description: Number of threads that are traced now.
      type: int
      sample: 17
    followed:
      description:
        - How new processes of the container are found. C(exec) is V(descent), V(watch) or V(none), see O(follow_exec). C(tools) and C(restarts)
          say whether O(follow_tools) and O(follow_restarts) are in effect. C(may_be_missed) says what these may miss (V(null) for nothing).
          V(null) where it is not known.
      type: dict
      sample: {exec: descent, tools: false, restarts: false, may_be_missed: null}
    cpus:
      description: The kernel's counters of events for each CPU.
      type: list
      elements: dict
      sample: [{cpu: 0, entries: 12, overrun: 0, dropped: 0}]
    discarded:
      description: Number of events that the kernel dropped for a change of O(clock) or O(tracer). The next fetch counts them as lost.
      type: int
      sample: 0
    mode:
      description: The mode of the trace, V(ring) or V(record).
      type: str
      sample: record
    begun:
      description:
        - Who began the trace, with C(time) (seconds since the epoch by the host's clock), C(user) of the host that the task ran as, and
          C(login), who had logged in there and become that user (V(null) for nobody). Changes of a running trace do not change this.
        - V(null) for a trace of an older version of this collection. The host does not know the controller.
      type: dict
      sample: {time: 1790000000.25, user: root, login: alice}
    ended:
      description: Who stopped the trace, in the form of C(begun). V(null) while it records. C(user) is V(null) where it stopped by itself.
      type: dict
      sample: {time: 1790000600.25, user: null, login: null}
    summary:
      description: Who began the trace and when, and how it ended or will end, as one line.
      type: str
      sample: "begun 2026-09-21 14:13:20 UTC by root (login alice), stopped 2026-09-21 14:23:20 UTC: its ttl is over"
    stopped:
      description: Why the trace stopped by itself. V(null) where it did not.
      type: str
      sample: its ttl is over
    expires:
      description: When O(ttl) ends the trace, in seconds since the epoch by the host's clock. V(null) without O(ttl).
      type: float
      sample: 1790000000.25
    expires_at:
      description: The time in RV(instances[].expires) as UTC in ISO 8601 format. V(null) when that is V(null).
      type: str
      sample: "2026-09-21T14:13:20Z"
    recordings:
      description:
        - The recordings of the container that are in files, the oldest first, with C(path), C(started) (seconds since the epoch), C(recording)
          (whether it still runs), C(stopped) (why it ended by itself), C(segments), C(size) in bytes and C(rotated) (number of events that
          were deleted to make room).
      type: list
      elements: dict
      sample: [{recording: true, segments: 3, size: 200000000, rotated: 0, stopped: null}]
    rule:
      description:
        - The standing rule, with its selection (C(patterns), C(labels)) and bounds (C(max_containers), C(max_time_s)), and what has started
          since it began. V(null) for the trace of one container.
        - C(traced) containers were meant, C(unmeant) were not, C(refused) were beyond C(max_containers), C(missed) were gone before they
          were seen, and C(running) are traced now. C(latest) names the last twenty. C(troubles) says in words why starts may have been
          missed.
      type: dict
      sample: {name: shop, patterns: ["shop-*"], labels: {}, max_containers: 100, traced: 3, unmeant: 0, refused: 0, running: 1}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end, selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments, awaiting, starting
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs

# What a message says was done for the containers that did not fail, by state.
_DONE = {"started": "traced", "awaiting": "awaited", "stopped": "stopped", "absent": "removed"}


def run_started(module, root, outcome):
    options.refuse_everything(module, "state=stopped and state=absent")
    return starting.start_traces(module, root, outcome)


def run_awaiting(module, root, outcome):
    options.refuse_everything(module, "state=stopped and state=absent")
    return awaiting.await_containers(module, root, outcome)


def remove(module, found, outcome):
    """Remove the instances FOUND and first their exposed files, and return phrases for the folders of these.

    With everything=true this includes files that killed tasks have left exposed. An obstacle that a user of the host has made is a
    warning and keeps no instance.
    """
    names = {trace.instance.name for trace in found}
    holders = {trace.container.id: trace.container for trace in found if trace.container and trace.container.pid}
    others = []
    if module.params["everything"]:
        names = None
        try:
            host = options.open_host(module)
            holders.update((container.id, container) for container in options.select(module, host, required=False))
        except ContainerError:
            pass  # no engine answers, so only the containers of the instances are known
        else:
            others = options.run_for_users(
                module, host, list(holders.values()), starting.conceal, "what is exposed in containers"
            )
            holders = {container.id: container for container in holders.values() if container.owner_uid is None}
    left = exposure.remove(holders.values(), outcome, names)
    awaiting.remove_made(found)
    end.remove([trace for trace in found if not outcome.has_failed(trace.who)], outcome)
    left += [phrase for phrases in others for phrase in phrases]
    return left


def run_ended(module, root, outcome):
    state = module.params["state"]
    if module.params["rule"] is not None:
        found = awaiting.select_rule(module, root)
    else:
        options.require_selection(module, "every trace of this collection on the host")
        found = selection.select_instances(module, root, untraced_ok=True, missing_ok=state == "absent")
    before = {trace.instance.name: trace.find_state() for trace in found}
    left = []
    leftovers = False
    if not module.check_mode and state == "stopped":
        end.stop(found, outcome)
    elif state == "absent":
        left = [] if module.check_mode else remove(module, found, outcome)
        with outcome.complaining():
            leftovers = end.remove_leftovers(root, busy_ok=False, check_mode=module.check_mode)
    failed = [trace for trace in found if outcome.has_failed(trace.who)]
    after = {trace.instance.name: trace.find_state() for trace in failed}
    if state == "stopped":
        after = {**dict.fromkeys(before, "stopped"), **after}
    stay = [] if module.check_mode else found if state == "stopped" else failed
    return {
        "changed": before != after or bool(left) or leftovers,
        "instances": starting.describe(stay),
        "diff": {"before": before, "after": after},
    }, [trace.who for trace in found]


def run(module):
    require_root()
    awaiting.check_options(module.params)
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError:
        # A cleanup has nothing to do where nothing can be traced.
        if not module.params["everything"] or module.params["state"] != "absent" or tracefs.list_own_instances():
            raise
        return {"changed": False, "instances": [], "lines": [], "failed_containers": []}
    outcome = Outcome()
    run_state = {"started": run_started, "awaiting": run_awaiting}.get(module.params["state"], run_ended)
    result, containers = run_state(module, root, outcome)
    result["lines"] = summaries.summarize_traces(result["instances"])
    result.update(options.describe_selection(module, containers))
    if not module.check_mode:
        with outcome.complaining():
            client.ensure_recorder()  # somebody may have killed it
    outcome.check(containers, _DONE[module.params["state"]], **result)
    return {**result, "failed_containers": []}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            state=dict(type="str", choices=["started", "awaiting", "stopped", "absent"], default="started"),
            everything=dict(type="bool", default=False),
            **awaiting.ARGUMENTS,
            **arguments.ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
