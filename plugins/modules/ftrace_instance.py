#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_instance
short_description: Trace the system calls of containers, each in a trace instance of its own
description:
  - Makes one ftrace instance per container, with a ring buffer of its own, and records the events of that container's
    processes, threads and children, and of what C(docker exec) starts in it.
  - Nothing is installed, loaded or attached; the container is not touched and not slowed by more than the recording of its events.
  - While any system call is traced anywhere, every process of the host enters system calls on the kernel's slow path
    (a write of one byte was measured to take 1.4 times as long). So keep traces short.
  - A container that fails costs no other. The others are served, and the task fails at its end and names both. Nothing is left
    of a start that failed; one that is interrupted leaves no trace that it has made.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
  - crashcart.fleet.containers
  - crashcart.fleet.probes
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
    details: Needs root on the host.
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
      - Names, ids, twelve or more digits of ids, or shell globs over names.
      - With O(state=stopped) and O(state=absent) a container that was removed is named by twelve or more digits of its id.
    type: list
    elements: str
  state:
    description:
      - V(started) records events, V(stopped) keeps what was recorded, V(absent) removes the instance with what it holds.
      - With V(absent) a name that no container has is a warning, and no error, as nothing of it is traced; it is an error where a runtime of
        the host does not answer.
    type: str
    choices: [started, stopped, absent]
    default: started
  everything:
    description:
      - With O(state=stopped) and O(state=absent), and in the place of a selection, every trace instance of this collection on the host is
        meant, with V(absent) also what killed tasks have left exposed in containers.
    type: bool
    default: false
    version_added: 0.1.0
  existing:
    description:
      - What to do with O(state=started) where a container is traced already.
      - With V(change) that trace goes on as is asked for now. With V(refuse) the container fails, and the message says who has begun the trace,
        when, and what has become of it. A trace that has ended, and of which nothing waits to be fetched, is started again with both.
    type: str
    choices: [change, refuse]
    default: change
    version_added: 0.1.0
  profile:
    description:
      - A ready answer to a question, to which O(syscalls) and O(events) add. The measured cost of each is in C(docs/benchmarks.md).
      - V(errors) records system calls that fail, V(syscalls) all of them, V(files) those that name files (C(%file)) or change open ones,
        V(network) those of sockets (C(%network)) beside TCP's states, resets and retransmissions, V(exec) those that start, signal and end
        processes (C(%process)) beside forks, ends and signals, V(startup) what a program looks for while it starts. These but V(exec) record
        requests by io_uring, too, which are no system calls.
      - V(sched) records when threads run, wait, wake and move; V(memory) what the page cache and the kernel's objects for
        directory entries and inodes grow by (these on kernels whose events say names of caches), page faults, reclaim, and calls that change
        mappings (C(%memory)). What an event does for somebody else, such as an interrupt, is booked on whom it interrupts.
    type: str
    choices: [errors, syscalls, files, network, sched, exec, memory, startup]
  syscalls:
    description:
      - Names of the system calls to record, or shell globs of such, filtered in the kernel; V(*) means all.
      - Or strace's classes of calls, V(%file), V(%desc), V(%network), V(%process), V(%signal), V(%ipc), V(%memory), V(%creds) and V(%clock),
        of which those are recorded that the host has. But for V(%signal) and V(%ipc) the sign may be left out.
      - Without any of O(syscalls), O(errors_only), O(events), O(profile) and O(tracer) all are recorded.
    type: list
    elements: str
    default: []
  compat:
    description:
      - Record the O(syscalls) of 32-bit programs as well, on x86_64 and arm64. Their numbers are those of other calls in 64-bit
        programs, and the kernel cannot tell them apart, so some of those are recorded, too, and left out of reports.
    type: bool
    default: true
  errors_only:
    description:
      - Record only calls that fail. Then their beginnings, and so their arguments and times, are not in the trace.
    type: bool
    default: false
  events:
    description:
      - Events to record, as V(system:name), where both may be shell globs, such as V(sched:*) or V(syscalls:sys_enter_open*).
      - Or dictionaries with C(name) (the same), C(filter) (in the kernel's language, such as C(prev_prio < 100)) and C(triggers), a
        list of what the event sets off, each as C(ACTION[:COUNT] [if CONDITION]). Actions are C(stacktrace), C(traceoff), C(traceon),
        C(enable_event:SYSTEM:NAME), C(disable_event:SYSTEM:NAME) and, where the kernel has them, C(snapshot) and C(hist:keys=FIELD).
        They are set off by processes of the container only, and reach its own trace only.
      - Of several entries for one event the last one counts. The kernel gives events of the system C(syscalls) for 64-bit programs only;
        a report counts what they tell as calls.
    type: list
    elements: raw
    default: []
  tracer:
    description:
      - The tracer of the instance. V(nop) records events only; with another one no system calls are recorded unless O(syscalls) asks for them.
      - V(function) records calls of the kernel's own functions, V(function_graph) their times, too, by the container's threads; what
        C(docker exec) starts is not followed by these two.
      - V(function_graph) needs Linux 6.11; before that it is for one user per host, the top instance, which is not ours.
      - The others record the longest time that interrupts or preemption were off, or that it took a woken thread to run. They look at
        the host as a whole, and there is one user of them per host, always.
      - A change of the tracer empties the buffer (the kernel's way), and so does one of O(clock). The next capture counts what went as lost,
        so fetch before. O(state=absent) gives the tracer back; with O(state=stopped) it stays set, as taking it away would empty the buffer.
    type: str
    choices: [nop, function, function_graph, irqsoff, preemptoff, preemptirqsoff, wakeup, wakeup_rt, wakeup_dl]
    default: nop
  functions:
    description:
      - Functions of the kernel to trace, or globs of such, for O(tracer=function) and O(tracer=function_graph). Without it all are,
        and these are tens of thousands, some of them called a million times per second.
      - Their depth cannot be limited, since the kernel has one such limit for the whole host.
    type: list
    elements: str
    default: []
  notrace:
    description:
      - Functions of the kernel to leave out, or globs of such.
    type: list
    elements: str
    default: []
  buffer_size:
    description:
      - Size of the ring buffer for each CPU, for example V(2MiB).
      - With O(mode=record) it bridges the time until the recorder comes, on a busy host some tens of milliseconds. An event of a system call
        takes about 50 bytes, so V(8MiB) holds those of 160 ms at a million per second.
    type: str
    default: 2MiB
  mode:
    description:
      - V(ring) keeps the newest events in the kernel and overwrites the oldest; how many were lost is counted.
      - V(record) loses nothing. One small process on the host, C(crashcart-recorder), drains the ring buffers of all its recordings to files
        below C(/var/lib/crashcart/traces), in segments. It belongs to no login, yields to the host's services (niceness 5), and takes
        time in proportion to the events, which O(max_rate) bounds. M(crashcart.fleet.ftrace_fetch) brings the files, also while it goes on.
      - A recording ends with O(state=stopped), by its limits, and when the container's first process ends. It keeps its files until they are
        fetched or O(state=absent) removes them, also when the instance, the container or the boot are gone.
      - If the recorder dies, the kernel stops a recording, and the capture says so. A V(ring) goes on, and its next capture is not complete,
        since nobody watched it.
      - A change of anything ends a recording and begins another; each gives a capture of its own.
    type: str
    choices: [ring, record]
    default: ring
  ttl:
    description:
      - After this time the trace stops by itself, for example V(30m) or V(2h), whatever has become of the controller. It keeps what it
        has, for M(crashcart.fleet.ftrace_fetch), and its events are switched off, so that it costs the host no time any more; the ring buffer's
        memory is free with O(state=absent) only, of a recording at once.
      - A later call with O(ttl) gives it that time anew.
    type: str
  max_rate:
    description:
      - A brake. The trace stops when it records more events per second than this; it may be ahead of that by what it allows in five seconds,
        for bursts. Lost and overwritten events count, too.
      - What stopped it is in C(stopped), here, in M(crashcart.fleet.ftrace_info) and in the manifest.
    type: int
  max_loss:
    description:
      - A brake for O(mode=record). The recording stops when more events than this were lost.
    type: int
  max_size:
    description:
      - For O(mode=record). Bytes that the files of one recording take at most, for example V(4GiB), by default V(1GiB). At least four times
        the ring buffers of all CPUs.
    type: str
  max_age:
    description:
      - For O(mode=record). What is older goes, for example V(1h), and is counted as lost.
    type: str
  rotate_size:
    description:
      - For O(mode=record). A segment ends with this size, by default an eighth of O(max_size), V(64MiB) at most, and only finished
        ones can make room.
    type: str
  rotate_time:
    description:
      - For O(mode=record). A segment ends after this time, by default V(1m).
    type: str
  when_full:
    description:
      - For O(mode=record). What to do when O(max_size) is reached, or when less than O(min_free) is free.
      - V(stop), the default, stops the trace with all that it has; nothing is lost. V(rotate) removes the oldest segments, whose events are
        counted as lost. While a fetch reads a recording nothing of it is removed, and it may outgrow O(max_size) for that time.
    type: str
    choices: [stop, rotate]
  min_free:
    description:
      - For O(mode=record). What stays free where the files are, by default V(512MiB).
    type: str
  clock:
    description:
      - The clock of the time stamps, one of the kernel's trace clocks.
    type: str
    choices: [mono, mono_raw, boot, global, local]
    default: mono
  follow_exec:
    description:
      - Record also what C(docker exec) starts in the container. Processes of the runtime itself (named runc, crun or
        containerd-shim) are left out by a filter in the kernel, and so is a process of the container that takes such a name.
      - Containers of containerd (Docker's, too) have an ancestor of all that is exec'ed, and nothing is missed. Of others (C(podman exec))
        the recorder looks for new processes twenty times a second. RV(instances[].followed) and the manifest say which, and what may be missed.
    type: bool
    default: true
  follow_tools:
    description:
      - Record also the commands of M(crashcart.fleet.crashcart_exec) and of the connection P(crashcart.fleet.cart#connection) in the container,
        those that run already and those that start later.
    type: bool
    default: false
    version_added: 0.1.0
  follow_restarts:
    description:
      - Whether the trace goes on when the container starts again, after C(docker restart) for example, with all that the start does
        but the runtime's first steps. Without it a trace is of the processes that run now and of their children.
      - The default is V(true) with O(profile=startup), which has nothing to see otherwise, and V(false) else.
      - A container of root's Docker or Podman that is named in O(containers) need not run then. One that was stopped, was never started, or
        ends again and again sooner than anybody could look at it, is traced from its next start on.
      - The recorder waits for the start, and goes on waiting for a container that was removed, till O(ttl) or O(state=absent). Tracers of
        functions do not follow a start, and neither do O(probes) in programs and O(expose), which belong to the files and the mounts of now. A
        container whose control group does not bear its id (LXC, a bare process) is not waited for; RV(instances[].followed) says so.
    type: bool
    version_added: 0.1.0
  expose:
    description:
      - Show files of the trace inside the container, so that it sees its own trace, or writes lines of its own into it. They stand in a
        read-only folder, belong to the user of the container's first process, and lead nowhere else. They go with O(state=absent), when this is
        left out at another start, and when the container ends.
      - Needs Linux 5.12. A container that may mount (in a user namespace of its own, too) can take the read-only away from V(trace) and
        empty its own trace.
    type: dict
    suboptions:
      path:
        description:
          - Folder in the container, made when it is missing; one that is there has to be empty. V(/sys/kernel/tracing) is where many programs
            look for C(trace_marker).
        type: str
        default: /dev/crashcart-trace
      files:
        description:
          - V(trace) is what the buffer holds, as text. A process that is traced itself never comes to its end, since each read is one more
            event; so read a part of it (C(head -c 1000000 trace)).
          - V(trace_marker) takes lines to be put into the trace.
          - V(trace_pipe) gives each event once, and what the container has read from it M(crashcart.fleet.ftrace_fetch) does not bring.
        type: list
        elements: str
        choices: [trace, trace_pipe, trace_marker]
        default: [trace, trace_marker]
seealso:
  - module: crashcart.fleet.ftrace_fetch
  - module: crashcart.fleet.ftrace_report
  - module: crashcart.fleet.ftrace_info
"""

EXAMPLES = r"""
- name: Record what fails in all containers of the shop
  crashcart.fleet.ftrace_instance:
    labels:
      com.docker.compose.project: shop
    errors_only: true
  become: true
  register: traced

- name: Say what is recorded
  ansible.builtin.debug:
    msg: "{{ traced.instances | map(attribute='events') }}"

- name: Record two system calls with their times
  crashcart.fleet.ftrace_instance:
    containers: api
    syscalls: [connect, openat]
    buffer_size: 8MiB
  become: true

- name: Record what the page cache grows by
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: memory
  become: true

- name: Record who is woken, and from where in the kernel a short sleep comes
  crashcart.fleet.ftrace_instance:
    containers: api
    events:
      - sched:sched_wak*
      - name: syscalls:sys_enter_clock_nanosleep
        filter: flags == 0
        triggers: [stacktrace]
  become: true

- name: Record which paths calls fail on
  crashcart.fleet.ftrace_instance:
    containers: api
    errors_only: true
    paths: true
  become: true

- name: Record who asks for which host, in the C library of the container
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

- name: Record every system call of the next hour, but not more than 4 GiB
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: syscalls
    mode: record
    buffer_size: 8MiB
    max_size: 4GiB
    when_full: rotate
    ttl: 1h
  become: true

- name: Keep a flight recorder running that stops when it costs too much, or after a day
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: errors
    max_rate: 20000
    ttl: 1d
  become: true

- name: See why a container does not stay up, from its next start on
  crashcart.fleet.ftrace_instance:
    containers: api
    profile: startup
    ttl: 1h
  become: true

- name: Let the application write its own lines into its trace, with echo done >/dev/crashcart-trace/trace_marker
  crashcart.fleet.ftrace_instance:
    containers: api
    errors_only: true
    expose:
      files: [trace_marker]
  become: true

- name: Remove every instance of ours
  crashcart.fleet.ftrace_instance:
    state: absent
  become: true
"""

RETURN = r"""
selected:
  description: Names of the containers that the selection means here, also in check mode.
  returned: success, and where some of them failed
  type: list
  elements: str
  sample: [api, web]
not_found:
  description: Names and ids of the selection that no container here has; without O(allow_empty) that is an error, or a warning.
  returned: as RV(selected)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step; the message of the task says the same.
    - Of a start that failed nothing is left; a trace that was there before is as it was.
  returned: always, unless the task failed for all alike, as by its selection
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
  description: A line for people for each of RV(instances), with its state, when it ends by itself, and what it holds.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: ["trace of api: started until 2026-09-21T14:13:20Z, 0 events in its buffers"]
instances:
  description:
    - The selected containers' instances as they are after the task, of O(state=started) those that are traced as was asked for. With
      O(state=absent) those that could not be removed; none in check mode.
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
      description: Whether it was made by this very task; in no result of the states that end.
      type: bool
      sample: true
    state:
      description: V(started) or V(stopped).
      type: str
      sample: started
    clock:
      description: The clock of its time stamps.
      type: str
      sample: mono
    buffer_kb:
      description: Size of its ring buffer for each CPU in units of 1024 bytes.
      type: int
      sample: 2048
    events:
      description: What it records, event to filter.
      type: dict
      sample: {"raw_syscalls:sys_exit": "ret < 0 && ret >= -4095"}
    triggers:
      description: What its events set off, in the kernel's words.
      type: dict
      sample: {"sched:sched_switch": ["stacktrace:unlimited if common_pid >= 0"]}
    exposed:
      description: The folder in the container that shows files of it, and which ones; V(null) where none does.
      type: dict
      sample: {path: /dev/crashcart-trace, files: [trace, trace_marker]}
    tracer:
      description: Its tracer.
      type: str
      sample: nop
    probes:
      description: Its probes, name to definition, as the kernel shows it.
      type: dict
      sample: {getaddrinfo: "p:crashcart_3f4e1c0c9b0b_5d41402a/getaddrinfo /proc/self/fd/9:0x10a2b0 host=+0(%di):ustring"}
    paths:
      description:
        - How paths are recorded (C(by), V(null) where O(paths=auto) has found no way), why so, and of which of the calls they are
          C(missing), in results of O(state=started) only; V(null) without O(paths).
      type: dict
      sample: {by: eprobe, why: "event: the kernel's events of system calls have no text (Linux 6.19); ...", missing: []}
    pids:
      description: Number of threads that it follows now.
      type: int
      sample: 17
    followed:
      description:
        - How new processes of the container come to be recorded, with C(exec) (C(descent), C(watch) or C(none)), C(tools) (whether
          commands of ours are), C(restarts) (whether starts are awaited) and C(may_be_missed) (what of all these, V(null) for
          nothing); V(null) where it is not known.
      type: dict
      sample: {exec: descent, tools: false, restarts: false, may_be_missed: null}
    cpus:
      description: The kernel's counters for each CPU.
      type: list
      elements: dict
      sample: [{cpu: 0, entries: 12, overrun: 0, dropped: 0}]
    discarded:
      description: How many events the kernel has dropped for a change of O(clock) or O(tracer), that the next fetch will count as lost.
      type: int
      sample: 0
    mode:
      description: V(ring) or V(record).
      type: str
      sample: record
    begun:
      description:
        - Who began it - C(time) (seconds since the epoch, by the host's clock), C(user) (of the host, as whom the task ran) and C(login) (who
          had logged in there and become that user, V(null) for nobody). A change of a trace that goes on leaves this as it is.
        - The controller is not known to the host. V(null) for a trace of an older version of this collection.
      type: dict
      sample: {time: 1790000000.25, user: root, login: alice}
    ended:
      description: Who stopped it, in the same form; V(null) while it records, C(user) is V(null) where it stopped by itself.
      type: dict
      sample: {time: 1790000600.25, user: null, login: null}
    summary:
      description: Who traces since when, and how that ended or will end, as one line to show.
      type: str
      sample: "begun 2026-09-21 14:13:20 UTC by root (login alice), stopped 2026-09-21 14:23:20 UTC: its ttl is over"
    stopped:
      description: Why it stopped by itself; V(null) where it did not.
      type: str
      sample: its ttl is over
    expires:
      description: When its O(ttl) is over, in seconds since the epoch by the host's clock; V(null) where it has none.
      type: float
      sample: 1790000000.25
    expires_at:
      description: The same for people, in UTC as ISO 8601 has it.
      type: str
      sample: "2026-09-21T14:13:20Z"
    recordings:
      description:
        - What of it is in files, the oldest first, with C(path), C(started) (seconds since the epoch), C(recording) (whether it goes on),
          C(stopped) (why it ended by itself), C(segments), C(size) (bytes) and C(rotated) (events that had to make room).
      type: list
      elements: dict
      sample: [{recording: true, segments: 3, size: 200000000, rotated: 0, stopped: null}]
"""

from contextlib import ExitStack
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import exposure
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError, check_running
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import end, selection, start
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import recording
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import (
    limits,
    paths,
    probes,
    profiles,
    specification,
    tracers,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import options as trace_options
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.trace import find_instance
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs

_DONE = {"started": "traced", "stopped": "stopped", "absent": "removed"}


def make_request(module, root, path, files):
    """What is asked for, with FILES shown at PATH, and the event specification that it was made of."""
    parameters = module.params
    wanted = trace_options.find_specification(parameters, root)
    restarts = parameters["follow_restarts"]
    if restarts is None:
        restarts = parameters["profile"] == "startup"

    def expose(trace):
        return exposure.ensure_exposed(
            trace.container, trace.instance.name, root, path, files, check_mode=module.check_mode
        )

    return wanted, start.TraceRequest(
        settings=specification.find_settings(wanted),
        follow_exec=parameters["follow_exec"],
        follow_tools=parameters["follow_tools"],
        probes=wanted.list_probes(),
        limits=replace(limits.parse_limits(parameters), restarts=restarts),
        exposing=start.Exposing(expose, lambda trace: conceal([trace.container], {trace.instance.name})),
        described=trace_options.describe(parameters, wanted),
    )


def find_exposed(parameters):
    """Where which files of a trace are to be shown in its container; no folder where none is."""
    shown = parameters["expose"]
    path, files = exposure.check_wish(shown["path"], shown["files"]) if shown else (None, ())
    if "trace_pipe" in files and parameters["mode"] == "record":
        raise FleetError(
            "expose: trace_pipe would take events away from the recording: expose trace, which leaves them, or use mode: ring"
        )
    return path, files


def run_started(module, root, outcome):
    options.refuse_everything(module, "state=stopped and state=absent")
    path, files = find_exposed(module.params)
    wanted, request = make_request(module, root, path, files)
    host = options.open_host(module)
    containers = options.select(module, host, required=True, refuse=outcome.fail)
    if module.params["existing"] == "refuse":
        for container in containers:
            with outcome.serve(container):
                check_free(root, container)
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
        "instances": [{**one, "created": one["name"] in made, "paths": way} for one in results],
        "diff": {"before": started.before, "after": started.after},
    }, containers


def check_free(root, container):
    """Raise ContainerError where CONTAINER is traced already, or what was traced waits to be fetched."""
    one = find_instance(root, container)
    if not one.instance.exists():
        return
    found = describe_trace(one)
    if found["state"] == "started" or recording.count_entries(one):
        raise ContainerError(
            f"container {container.name} is traced already: {found['summary']}; bring home what there is (ftrace_fetch, or the playbook"
            " collect), or end it (state=absent, or the playbook stop)"
        )


def conceal(containers, names=None):
    """Take what is exposed of instances called NAMES, or of all, out of CONTAINERS: the folders it was in, as phrases. Raises FleetError."""
    outcome = Outcome()
    left = exposure.remove(containers, outcome, names)
    outcome.check()
    return left


def describe(found):
    exposed = exposure.list_exposed([one.container for one in found if one.container is not None])
    results = []
    for one in found:
        shown = exposed.get(one.instance.name)
        what = {"path": shown.path, "files": list(shown.files)} if shown else None
        results.append({**describe_trace(one), "exposed": what})
    return results


def remove(module, found, outcome):
    """Remove instances, what is exposed of them first; with everything also what a killed task has left exposed.

    What a user of the host has put in the way of that is a warning, and keeps no instance.
    """
    names = {one.instance.name for one in found}
    holders = {one.container.id: one.container for one in found if one.container is not None}
    others = []
    if module.params["everything"]:
        names = None
        try:
            host = options.open_host(module)
            holders.update((one.id, one) for one in options.select(module, host, required=False))
        except ContainerError:
            pass  # no engine answers: those of the instances' containers are all that is known
        else:
            others = options.run_for_users(
                module, host, list(holders.values()), conceal, "what is exposed in containers"
            )
            holders = {one.id: one for one in holders.values() if one.owner_uid is None}
    left = exposure.remove(holders.values(), outcome, names)
    end.remove([one for one in found if not outcome.has_failed(one.who)], outcome)
    left += [phrase for phrases in others for phrase in phrases]
    return left


def run_ended(module, root, outcome):
    state = module.params["state"]
    options.require_selection(module, "every trace of this collection on the host")
    found = selection.select_instances(module, root, untraced_ok=True, missing_ok=state == "absent")
    before = {one.instance.name: one.find_state() for one in found}
    left = []
    leftovers = False
    if not module.check_mode and state == "stopped":
        end.stop(found, outcome)
    elif state == "absent":
        left = [] if module.check_mode else remove(module, found, outcome)
        with outcome.complaining():
            leftovers = end.remove_leftovers(root, busy_ok=False, check_mode=module.check_mode)
    failed = [one for one in found if outcome.has_failed(one.who)]
    after = {one.instance.name: one.find_state() for one in failed}
    if state == "stopped":
        after = {**dict.fromkeys(before, "stopped"), **after}
    stay = [] if module.check_mode else found if state == "stopped" else failed
    return {
        "changed": before != after or bool(left) or leftovers,
        "instances": describe(stay),
        "diff": {"before": before, "after": after},
    }, [one.who for one in found]


def run(module):
    require_root()
    root = tracefs.find_tracefs()
    outcome = Outcome()
    run_state = run_started if module.params["state"] == "started" else run_ended
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
            state=dict(type="str", choices=["started", "stopped", "absent"], default="started"),
            everything=dict(type="bool", default=False),
            existing=dict(type="str", choices=["change", "refuse"], default="change"),
            profile=dict(type="str", choices=list(profiles.PROFILES)),
            syscalls=dict(type="list", elements="str", default=[]),
            compat=dict(type="bool", default=True),
            errors_only=dict(type="bool", default=False),
            events=dict(type="list", elements="raw", default=[]),
            tracer=dict(type="str", choices=list(tracers.OPTIONS), default="nop"),
            functions=dict(type="list", elements="str", default=[]),
            notrace=dict(type="list", elements="str", default=[]),
            buffer_size=dict(type="str", default="2MiB"),
            mode=dict(type="str", choices=["ring", "record"], default="ring"),
            ttl=dict(type="str"),
            max_rate=dict(type="int"),
            max_loss=dict(type="int"),
            max_size=dict(type="str"),
            max_age=dict(type="str"),
            rotate_size=dict(type="str"),
            rotate_time=dict(type="str"),
            when_full=dict(type="str", choices=["stop", "rotate"]),
            min_free=dict(type="str"),
            clock=dict(type="str", choices=["mono", "mono_raw", "boot", "global", "local"], default="mono"),
            follow_exec=dict(type="bool", default=True),
            follow_tools=dict(type="bool", default=False),
            follow_restarts=dict(type="bool"),
            probes=dict(type="list", elements="dict", default=[], options=probes.ARGUMENTS),
            paths=dict(type="str", choices=list(paths.WISHES), default="false"),
            paths_by=dict(type="str", choices=["auto", *paths.WAYS], default="auto"),
            expose=dict(
                type="dict",
                options=dict(
                    path=dict(type="str", default="/dev/crashcart-trace"),
                    files=dict(
                        type="list",
                        elements="str",
                        choices=list(exposure.FILES),
                        default=["trace", "trace_marker"],
                    ),
                ),
            ),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
