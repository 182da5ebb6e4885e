# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that say what a trace records, shared by the modules that start traces (ftrace/calls/arguments.py has their types)."""

from __future__ import annotations


class ModuleDocFragment:
    """The options that say what a trace records, where, and when it ends."""

    DOCUMENTATION = r"""
options:
  syscalls:
    description:
      - System calls to record, filtered in the kernel. Each entry is a name or a shell glob over names, and V(*) means all.
      - Strace's classes V(%file), V(%desc), V(%network), V(%process), V(%signal), V(%ipc), V(%memory), V(%creds) and V(%clock) record the calls
        of the class that the host has. The percent sign is optional except for V(%signal) and V(%ipc).
      - The default is all of them. Where O(events), O(probes), O(profile) or O(tracer) is given and O(errors_only) is not, the default is
        none except those of O(profile). A standing rule (O(crashcart.fleet.ftrace_instance#module:state=awaiting)) has O(profile=startup) then.
    type: list
    elements: str
    default: []
  compat:
    description:
      - Record the O(syscalls) of 32-bit programs as well, on x86_64 and arm64. Their numbers belong to other calls in 64-bit programs, and
        the kernel cannot tell these apart. So some of those calls are recorded, too, and reports leave them out.
    type: bool
    default: true
  errors_only:
    description:
      - Record only system calls that fail. The trace then lacks the beginnings of calls, and with them arguments and durations.
    type: bool
    default: false
  events:
    description:
      - Events to record. Each entry is V(system:name), where both parts may be shell globs, such as V(sched:*) or V(syscalls:sys_enter_open*).
      - An entry may also be a dictionary with C(name), C(filter) in the kernel's language (such as C(prev_prio < 100)), and C(triggers), a
        list of V(ACTION[:COUNT] [if CONDITION]).
      - Actions are C(stacktrace), C(traceoff), C(traceon), C(enable_event:SYSTEM:NAME), C(disable_event:SYSTEM:NAME) and, where the kernel has
        them, C(snapshot) and C(hist:keys=FIELD). Only processes of the container set them off, and they affect its own trace only.
      - If several entries match one event, the last one counts. The kernel has events of the system C(syscalls) for 64-bit programs only.
        Reports count them as calls.
    type: list
    elements: raw
    default: []
  tracer:
    description:
      - The kernel's tracer for the instance. V(nop) records events only. Any other tracer records no system calls unless O(syscalls) asks
        for them.
      - V(function) records calls of the kernel's own functions by the container's threads, and V(function_graph) also their durations.
        Neither follows what C(docker exec) starts. V(function_graph) requires Linux 6.11.
      - The others record the longest time that interrupts or preemption were off, or that a woken thread waited to run. They look at
        the whole host, and only one trace of a host can use them at a time.
      - Changing the tracer or O(clock) empties the buffer, as the kernel requires. The next capture counts the events as lost, so fetch
        first. C(state=absent) releases the tracer. C(state=stopped) keeps it, because removing it would empty the buffer.
    type: str
    choices: [nop, function, function_graph, irqsoff, preemptoff, preemptirqsoff, wakeup, wakeup_rt, wakeup_dl]
    default: nop
  functions:
    description:
      - Kernel functions to trace, or globs of them, for O(tracer=function) and O(tracer=function_graph). By default all are traced, which are
        tens of thousands, some of them called a million times per second.
      - The depth of calls cannot be limited, because the kernel has one such limit for the whole host.
    type: list
    elements: str
    default: []
  notrace:
    description:
      - Kernel functions to leave out, or globs of them.
    type: list
    elements: str
    default: []
  buffer_size:
    description:
      - Size of the ring buffer for each CPU, for example V(8MiB). The minimum is V(8KiB).
      - The default is V(2MiB), and with O(profile=diagnose) less where the host has so many CPUs that four times all buffers would exceed
        O(max_size).
      - With O(mode=record) the buffer has to hold the events until the recorder reads it, on a busy host some tens of milliseconds. An event
        of a system call takes about 50 bytes, so V(8MiB) holds 160 ms at a million events per second.
    type: str
  mode:
    description:
      - Where recorded events are kept.
      - V(ring) keeps the newest ones in the kernel, overwrites the oldest, and counts those that are lost.
      - V(record) keeps all events. One small process on the host, C(crashcart-recorder), drains the ring buffers of all recordings to files
        below C(/var/lib/crashcart/traces). Events are lost, and counted, only where it gets too little processor time or disk space.
        M(crashcart.fleet.ftrace_fetch) fetches the files, also while the recording runs.
      - The recorder belongs to no login session, yields to the host's services (niceness 5; while a standing rule runs it goes before them, with
        niceness -10), and takes processor time in proportion to the events, which O(max_rate) limits.
      - A recording ends with C(state=stopped), at its limits, and with the container's first process. Its files stay until they are
        fetched or C(state=absent) removes them, even when the instance or the container is gone or the host has rebooted.
      - If the recorder dies, the kernel stops a recording, and its capture says so. A V(ring) continues, but its next capture is not complete,
        because nobody watched it.
      - Any change of a recording's settings ends it and begins another one. Each gives a capture of its own.
      - The default is V(record) with O(profile=diagnose) and for standing rules, and V(ring) otherwise.
    type: str
    choices: [ring, record]
  max_rate:
    description:
      - Stop the trace when it records more events per second than this. Bursts may exceed the rate by what it allows in five seconds. Lost
        and overwritten events count, too.
      - C(stopped) in the result, in M(crashcart.fleet.ftrace_info) and in the manifest says what stopped a trace.
      - The default is V(200000) with O(profile=diagnose), and no limit otherwise.
    type: int
  max_loss:
    description:
      - Stop a recording when more events than this were lost. Only with O(mode=record).
    type: int
  max_size:
    description:
      - Maximum size of the files of one recording, for example V(4GiB). The default is V(256MiB) with O(profile=diagnose) and for
        standing rules, and V(1GiB) otherwise. It must be at least four times the size of all ring buffers together. Only with O(mode=record).
    type: str
  max_age:
    description:
      - Age at which recorded events are deleted, for example V(1h). They count as lost. Only with O(mode=record).
    type: str
  rotate_size:
    description:
      - Size at which a segment of a recording is finished. Only finished segments can be deleted to make room. The default is an eighth of
        O(max_size), but at most V(64MiB). Only with O(mode=record).
    type: str
  rotate_time:
    description:
      - Time after which a segment of a recording is finished. The default is V(1m). Only with O(mode=record).
    type: str
  when_full:
    description:
      - What to do when a recording reaches O(max_size), or when less than O(min_free) is free. Only with O(mode=record).
      - V(stop), the default except for standing rules, stops the trace with all that it has, and nothing is lost. V(rotate), their default,
        deletes the oldest segments, whose events count as lost. While a fetch reads a recording none of its segments is deleted, and it may
        exceed O(max_size).
    type: str
    choices: [stop, rotate]
  min_free:
    description:
      - Space to leave free on the file system of the recordings. The default is V(512MiB). Only with O(mode=record).
    type: str
  clock:
    description:
      - Trace clock of the kernel for the time stamps.
    type: str
    choices: [mono, mono_raw, boot, global, local]
    default: mono
  follow_exec:
    description:
      - Record also the processes that C(docker exec) starts in the container. A filter in the kernel leaves out processes of the runtime
        itself, and also a process of the container that takes the name of one (runc, crun, containerd-shim, C(exe), one or two digits, and
        C(memfd:) before runc or crun).
      - For containers of containerd, including Docker's, nothing is missed, because all of these processes descend from the container's shim.
        For others, such as those started by C(podman exec), the recorder looks for new processes twenty times a second.
        C(followed) in the result and in the manifest says which way is used, and what may be missed.
    type: bool
    default: true
  follow_tools:
    description:
      - Record also the commands that M(crashcart.fleet.crashcart_exec) and the connection P(crashcart.fleet.cart#connection) run in the
        container, those that run already and those that start later.
    type: bool
    default: false
    version_added: 0.1.0
  follow_restarts:
    description:
      - Continue the trace when the container starts again, for example after C(docker restart). It then has the whole start except the
        runtime's first steps. Without this option the trace is of the processes that run now, and of their children.
      - The default is V(true) with O(profile=startup), and V(false) otherwise.
      - A container of root's Docker or Podman that is named in O(containers) need not run then. One that was stopped, was never started, or
        ends too soon to be looked at, is traced from its next start on.
      - The recorder waits for the start until O(ttl) or C(state=absent), also when the container was removed.
      - Not continued are the tracers V(function) and V(function_graph), O(probes) in programs, and O(expose), which belong to the present files
        and mounts. A container whose control group does not have its id in its name (LXC, a single process) is not waited for, and
        C(followed) in the result says so.
    type: bool
    version_added: 0.1.0
  expose:
    description:
      - Show files of the trace inside the container, so that it can read its own trace or write lines into it. The files are in a
        read-only folder, belong to the user of the container's first process, and give access to nothing else.
      - They are removed with C(state=absent), by a start without this option, and when the container ends.
      - Requires Linux 5.12. A container that may mount, also one with a user namespace of its own, can make V(trace) writable and empty its
        own trace.
    type: dict
    suboptions:
      path:
        description:
          - Folder in the container. It is created where it is missing, and has to be empty otherwise. Many programs look for
            C(trace_marker) in V(/sys/kernel/tracing).
        type: str
        default: /dev/crashcart-trace
      files:
        description:
          - Files to show.
          - V(trace) is the content of the buffer as text. A traced process never reaches its end, because each read adds an event, so
            read a part of it (C(head -c 1000000 trace)).
          - V(trace_marker) accepts lines to put into the trace.
          - V(trace_pipe) gives each event once. Events that the container has read from it are lost for M(crashcart.fleet.ftrace_fetch).
        type: list
        elements: str
        choices: [trace, trace_pipe, trace_marker]
        default: [trace, trace_marker]
"""
