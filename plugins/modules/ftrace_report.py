#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

# The code is in the action plugin of the same name, because nothing here runs on a host.

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_report
short_description: Find what fails and waits in fetched traces, and summarize them
description:
  - Reads captures that M(crashcart.fleet.ftrace_fetch) has fetched. It says first what it has found - what failed or waited, on what, who,
    where and how often, with the next command to run - over all captures together.
  - For each process and system call it reports how often the call was made, with which errors it failed, and how long it took.
  - Where paths were recorded (O(crashcart.fleet.ftrace_instance#module:paths)), it also reports the paths of the calls, with the errors on each.
  - Also reads what C(trace-cmd) writes by C(record), C(extract), C(convert) and C(split) - C(trace.dat) of versions 6 and 7, compressed or not,
    with one buffer or several. Each buffer is reported by itself.
  - Files of a folder that cannot be read are named and skipped, and the others are reported. A single capture in O(src) that cannot be read
    is an error.
  - The traces may be of another machine, of either byte order and with words of 32 or 64 bits. Not supported are the text of a latency tracer,
    and clocks that do not count time (C(counter), or C(x86-tsc) where the file does not say how long a tick is). The report names such files.
  - Times of the clock C(uptime) are exact to ten milliseconds. C(trace-cmd extract) may name another clock than the instance had. If the real
    one does not count time, the file's statistics show it.
  - A file may not decompress to more than a kernel could have written, which is one page for each four compressed bytes plus 64 MiB.
  - It runs on the controller, where the captures are, in a process of its own. In a play over hosts use C(run_once=true). Relative paths are
    below the playbook's folder.
  - The first report compiles its code and keeps it below C($XDG_CACHE_HOME), or C(~/.cache), in C(crashcart.fleet). Where this user cannot
    write there, each report compiles it again. That takes about a minute of processor time, so captures of less than 256 KiB are read without.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
attributes:
  action_group:
    support: full
  async:
    support: none
  become:
    support: none
    details: The module runs on the controller and needs no privileges.
  check_mode:
    support: full
  delegation:
    support: none
    details: The module runs on the controller.
  diff_mode:
    support: none
  idempotent:
    support: full
  platform:
    platforms: linux
    support: full
options:
  src:
    description:
      - A capture, or a folder to search for captures. Captures in a folder are files whose names end with C(.dat), or with C(.dat.1) and so
        on as C(trace-cmd split) names them. The manifest of C(NAME.dat) is C(NAME.json).
      - Required without O(captures).
    type: path
  captures:
    description:
      - Paths of captures, for example those in RV(crashcart.fleet.ftrace_fetch#module:captures[].path). Only these are reported, even where
        O(src) has others. An empty list gives no report. A capture that cannot be read is named and skipped.
      - The report names captures relative to O(src), or to the folder that all of them have in common.
    type: list
    elements: path
  dest:
    description:
      - Folder to write the report to. It is created where it is missing.
    type: path
    required: true
  formats:
    description:
      - What to write. V(json) writes C(DEST/findings.json) and C(DEST/summary.json). V(text) writes C(DEST/summary.txt), a table to read.
    type: list
    elements: str
    choices: [json, text]
    default: [json, text]
  min_latency:
    description:
      - Leave out system calls that took less time than this, for example V(10ms), and calls whose beginning or end is not in the capture.
      - This makes recording no cheaper, because the kernel cannot filter by it. Findings are made of all calls.
    type: str
  fail_on:
    description:
      - Fail when there are such findings. V(any) means all, V(critical) those after which a program cannot do its work, which have a
        severity of 80 or more, and the name of a rule those of that rule.
      - The rules are V(connections), V(deaths), V(denied), V(differs), V(failures), V(leaks), V(limits), V(locks), V(names), V(programs),
        V(storms) and V(waits).
      - The report is written all the same, and the result has all values.
    type: list
    elements: str
    default: []
  since:
    description:
      - Report only on captures that ended at this time or later, for example V(2h) or V(3d) (ago), V(2026-11-29) or V(2026-11-29T10:00:00Z).
        A time in ISO 8601 format without a zone is UTC.
      - This and the other options of a selection - O(until), O(hosts), O(containers), O(runs) - select captures from the catalogue of O(src), a
        folder then, see M(crashcart.fleet.ftrace_store). The catalogue is brought up to date first, in memory where the folder cannot be
        written. Captures without a manifest are not in it.
      - Where nothing matches, RV(lines) says so, and no report is written.
      - Where O(src) is a single capture, a selection has no effect, and a warning says so. With O(captures) it is an error.
    type: str
  until:
    description:
      - Report only on captures that began at this time or earlier. It is written as O(since).
    type: str
  hosts:
    description:
      - Report only on captures of these hosts, by their names in the inventory, or globs such as V(web*).
    type: list
    elements: str
    default: []
  containers:
    description:
      - Report only on captures of these containers, by their names, globs such as V(api-*), or the first 12 or more characters of an id.
    type: list
    elements: str
    default: []
  runs:
    description:
      - Report only on captures that came with these runs, by their ids (O(crashcart.fleet.ftrace_store#module:run)).
    type: list
    elements: str
    default: []
requirements:
  - Python 3.11 or later, numpy and numba, on the controller
seealso:
  - module: crashcart.fleet.ftrace_fetch
  - module: crashcart.fleet.ftrace_store
"""

EXAMPLES = r"""
- name: Summarize all captures
  crashcart.fleet.ftrace_report:
    src: traces
    dest: traces/report
  run_once: true
  register: report

- name: Show the report
  ansible.builtin.debug:
    var: report.lines

- name: Report only on what this run has fetched from all hosts
  crashcart.fleet.ftrace_report:
    src: traces
    captures: >-
      {{ ansible_play_hosts_all | map('extract', hostvars) | selectattr('fetched', 'defined') | map(attribute='fetched')
      | map(attribute='captures', default=[]) | flatten | map(attribute='path') | select }}
    dest: traces/report
  run_once: true

- name: Report on the last two hours of a group of hosts
  crashcart.fleet.ftrace_report:
    src: traces
    since: 2h
    hosts: [web*]
    dest: traces/report
  run_once: true

- name: Fail where a program cannot do its work
  crashcart.fleet.ftrace_report:
    src: traces
    dest: traces/report
    fail_on: [critical]
  run_once: true
"""

RETURN = r"""
lines:
  description:
    - A page to read. First come the findings, two lines each, the worst first and at most 20. Then comes, up to 60 lines, the table that
      V(text) in O(formats) writes. A longer one is shortened to the first rows of each capture, with the path that failed most often, and
      names the file with the rest. The last line names the files.
  returned: success
  type: list
  elements: str
  sample:
    - "1 finding in 1 capture, in 1 container on 1 host:"
    - "1. python3: connect /run/db.sock failed with ECONNREFUSED"
    - "     python3 pid 1 · api on web1 · 10 of 10 times · since 2026-11-21T23:15:00Z · next: ansible-playbook crashcart.fleet.trace -l web1"
    - ""
    - "api on web1: 12345 events in 30.100 s from 2026-11-21T23:15:00.000+00:00, complete"
    - "  PROCESS  PID   SYSCALL  CALLS  TOTAL ms  P99 us  ERRORS"
    - "  python3  4711  connect     10     1.234   310.0  ECONNREFUSED 10"
findings:
  description:
    - The first 20 of C(findings.json), over all captures, the worst first. C(docs/findings.schema.json) is its form.
  returned: success
  type: list
  elements: dict
  contains:
    rule:
      description: Name of the rule that made the finding.
      type: str
      sample: failures
    statement:
      description: One plain sentence.
      type: str
      sample: "python3: connect /run/db.sock failed with ECONNREFUSED"
    severity:
      description: From 0 to 100. From 80 on a program cannot do its work, from 90 on it died or cannot start.
      type: int
      sample: 80
    object:
      description: The thing that it is about, with C(kind) and C(text). V(null) where there is none.
      type: dict
      sample: {kind: path, text: /run/db.sock}
    program:
      description: Name of the program.
      type: str
      sample: python3
    call:
      description: Name of the system call. V(null) where several are meant.
      type: str
      sample: connect
    error:
      description: Name of the error. V(null) where there was none.
      type: str
      sample: ECONNREFUSED
    container_pids:
      description: Numbers of the processes inside their containers, at most 20.
      type: list
      elements: int
      sample: [1]
    where:
      description: Where it was seen, at most 20 pairs of C(host) and C(container).
      type: list
      elements: dict
      sample: [{host: web1, container: api}]
    hosts:
      description: Number of hosts.
      type: int
      sample: 1
    containers:
      description: Number of containers.
      type: int
      sample: 1
    count:
      description: How often it happened.
      type: int
      sample: 10
    of:
      description: How often it was tried. V(null) where that has no meaning.
      type: int
      sample: 10
    first:
      description: When it happened first, as UTC in ISO 8601 format. V(null) where that is not known.
      type: str
      sample: "2026-11-21T23:15:00.000+00:00"
    last:
      description: When it happened last.
      type: str
      sample: "2026-11-21T23:15:09.000+00:00"
    evidence:
      description: Moments that show it, at most five pairs of C(file) and C(time).
      type: list
      elements: dict
      sample: [{file: web1/api/20261121T231500.000000Z.dat, time: "2026-11-21T23:15:00.000+00:00"}]
    confidence:
      description: V(certain), V(likely), or V(inferred) from what was not seen.
      type: str
      sample: certain
    missing:
      description: The part of the truth that was lost or not recorded, in words. V(null) where nothing is known to be missing.
      type: str
      sample: null
    next:
      description: A command to run next.
      type: str
      sample: ansible-playbook crashcart.fleet.trace -l web1 -e crashcart_containers=api
summary:
  description:
    - The contents of C(summary.json) without the rows for each system call, which are in the file only. C(docs/summary.schema.json) is its form.
    - C(summary.json) has two tables for each capture. C(programs) has a row for each program and system call, C(processes) has one for each
      process and system call. A row's C(process_count) is the number of its processes, and C(pids) has the lowest 100 of their numbers.
    - A table has at most 1000 rows. In a larger one the processes with most failures keep rows of their own, and the others share those of
      their program. Programs without rows of their own are V((other programs\)), and their calls may be V((other calls\)). Each call is in one
      row of a table.
    - In a row C(calls) counts calls that began or ended in the capture. C(unfinished) of them did not end in it, C(continued) did not begin
      in it. To add up captures of one trace, leave out C(continued) in all but the first.
    - C(denied) counts calls that seccomp answered instead of the kernel, by error, C(SIGSYS) or C(no error). C(interrupted) counts calls that
      a signal ended early, which the kernel restarts or lets fail with EINTR. C(docs/calls.md) compares this with strace.
    - Text that is not UTF-8, such as a file's name, is escaped.
  returned: success
  type: dict
  contains:
    captures:
      description: One entry for each buffer of each capture.
      type: list
      elements: dict
      contains:
        capture:
          description: Path of the capture, relative to O(src) where that is a folder, or to the folder that O(captures) have in common.
          type: str
          sample: web1/api/20261121T231500.000000Z.dat
        buffer:
          description: Name of the buffer in a file with several, or in one that C(trace-cmd) took from an instance. V(null) for the top one.
          type: str
          sample: peer
        host:
          description: Name of the host in the inventory.
          type: str
          sample: web1
        container:
          description: Name of the container.
          type: str
          sample: api
        container_id:
          description: Full id of the container. V(null) where the manifest is missing.
          type: str
          sample: 4f66ad9a0b2e4f66ad9a0b2e4f66ad9a0b2e4f66ad9a0b2e4f66ad9a0b2e4f66
        complete:
          description: Whether no event was lost. V(null) where the manifest is missing.
          type: bool
          sample: true
        reasons:
          description: Why the capture is not complete, in words.
          type: list
          elements: str
          sample: []
        lost:
          description: Number of events that were lost. V(null) where the manifest is missing.
          type: int
          sample: 0
        start:
          description: >-
            Time of the first event, or of the capture's beginning where it has no events, as UTC in ISO 8601 format. V(null) where the manifest
            does not have the clock's offset.
          type: str
          sample: "2026-11-21T23:15:00.000+00:00"
        duration_s:
          description: Time between the first and the last event, or of the whole capture where it has no events, in seconds.
          type: float
          sample: 30.1
        events:
          description: Number of events.
          type: int
          sample: 12345
        event_counts:
          description: Number of events of each kind.
          type: dict
          sample: {"raw_syscalls:sys_exit": 12345}
        errors:
          description: How often system calls failed, by the name of the error.
          type: dict
          sample: {ENOENT: 12, ECONNREFUSED: 3}
        functions:
          description: How often each function of the kernel was called. Empty where the trace had no tracer of functions.
          type: dict
          sample: {vfs_read: 12}
        min_latency_ns:
          description: Calls that took less than this many nanoseconds are not in the tables. V(0) where all are.
          type: int
          sample: 0
        io_uring:
          description:
            - Requests by io_uring, which are no system calls. C(recorded) says whether the trace records them, C(requests) counts them by
              operation, C(polled) says whether some could not be seen because the kernel itself polled for them.
          type: dict
          sample: {recorded: true, requests: {READ: 12}, polled: false}
    skipped:
      description:
        - Files that could not be read. A warning names them, too. A capture whose manifest is damaged is listed, and reported without it.
      type: list
      elements: dict
      contains:
        path:
          description: Path of the file, relative to O(src).
          type: str
          sample: web1/api/20261121T231500.000000Z.dat
        reason:
          description: Why the file could not be read.
          type: str
          sample: the trace is cut short
        next_step:
          description: What to do about it.
          type: str
          sample: fetch or record it again, or remove it
files:
  description: The written files by format. Empty where there was nothing to report on.
  returned: success
  type: dict
  sample: {findings: traces/report/findings.json, json: traces/report/summary.json, text: traces/report/summary.txt}
"""
