#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_report
short_description: Summarize fetched traces per process and system call
description:
  - Reads captures that M(crashcart.fleet.ftrace_fetch) has brought home and says for each process and system call how often it
    was called, with which errors it failed, and how long it took.
  - Where paths were recorded (C(paths) of M(crashcart.fleet.ftrace_instance)), it names those that calls were given, with the errors on each.
  - Reads what C(trace-cmd) writes, too - C(trace.dat) of versions 6 and 7, compressed or not, with one buffer or several, as C(record),
    C(extract), C(convert) and C(split) make them. Each buffer is reported by itself.
  - What of a folder cannot be read is named and skipped, and the rest is reported. A capture that O(src) names itself ends in an error then.
  - Not read, and named so, are traces of a 32-bit kernel or of another byte order, the text of a latency tracer, and clocks that do not
    count time (C(counter), or C(x86-tsc) where the file does not say how long a tick is). Those of C(uptime) are known to ten milliseconds.
    C(trace-cmd extract) names another clock than an instance had. Where that one does not count time the file's statistics tell it.
  - A file is not let become more than a kernel could have written. That is a page for each four bytes of compressed pages, and 64 MiB.
  - Runs where the captures are. In a play over hosts use C(delegate_to=localhost) with C(run_once=true), and C(become=false).
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
attributes:
  action_group:
    support: full
  async:
    support: full
  become:
    support: none
    details: It needs no privileges.
  check_mode:
    support: full
  delegation:
    support: full
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
      - A capture, or a folder below which captures lie. These are files whose names end with C(.dat), or, as C(trace-cmd split) names them, with
        C(.dat.1) and so on; the manifest of C(NAME.dat) is C(NAME.json). Others are not looked at.
      - Without it O(captures) is needed.
    type: path
  captures:
    description:
      - Paths of captures, as RV(crashcart.fleet.ftrace_fetch#module:captures[].path) has them. Only these are reported, also where O(src) has
        others; of an empty list there is nothing to report on. One that cannot be read is named and skipped.
      - The report names them relative to O(src), or without it to the folder that they have in common.
    type: list
    elements: path
  dest:
    description:
      - Folder to write the report to, made when missing.
    type: path
    required: true
  formats:
    description:
      - What to write. V(json) gives C(DEST/summary.json), V(text) gives C(DEST/summary.txt), a table to read.
    type: list
    elements: str
    choices: [json, text]
    default: [json, text]
  min_latency:
    description:
      - Leave out system calls that took less time than this, for example V(10ms), and those of which only one end is in the trace.
        The kernel cannot filter by it, so what it costs to record them is not saved.
    type: str
requirements:
  - Python 3.11 or later and numpy, on the controller
seealso:
  - module: crashcart.fleet.ftrace_fetch
"""

EXAMPLES = r"""
- name: Summarize all captures
  crashcart.fleet.ftrace_report:
    src: traces
    dest: traces/report
  delegate_to: localhost
  run_once: true
  become: false
  register: report

- name: Show it
  ansible.builtin.debug:
    var: report.lines

- name: Report only on what this run has fetched from all hosts
  crashcart.fleet.ftrace_report:
    src: traces
    captures: >-
      {{ ansible_play_hosts_all | map('extract', hostvars) | selectattr('fetched', 'defined') | map(attribute='fetched')
      | map(attribute='captures', default=[]) | flatten | map(attribute='path') | select }}
    dest: traces/report
  delegate_to: localhost
  run_once: true
  become: false
"""

RETURN = r"""
lines:
  description:
    - A page to read. Up to 60 lines it is the table that V(text) in O(formats) writes. Where there are more it has the first rows of each
      capture, with the path that they failed on most often, and says where the rest is.
  returned: success
  type: list
  elements: str
  sample:
    - "api on web1: 12345 events in 30.100 s from 2026-11-21T23:15:00.000+00:00, complete"
    - "  PROCESS  PID   SYSCALL  CALLS  TOTAL ms  P99 us  ERRORS"
    - "  python3  4711  connect     10     1.234   310.0  ECONNREFUSED 10"
summary:
  description:
    - What was found, one entry for each capture; the rows for each system call are in C(summary.json) only. There C(calls) counts calls that
      began or ended in the capture, C(unfinished) those of them that did not end in it and C(continued) those that did not begin in it.
      To add up captures of one trace, leave out what is C(continued) in all but the first.
    - C(summary.json) has two tables for each capture. C(programs) has a row for each program and system call, C(processes) has one for each
      process and system call. A table has at most 1000 rows. Where it would have more, the processes with most failures keep rows of their own,
      and the others share those of their program. Programs that have none of their own then are V((other programs\)), such calls are
      V((other calls\)). Each call is in one row of a table. C(process_count) says how many processes a row is of, C(pids) has the lowest 100 of
      their numbers.
    - Text that is no UTF-8, such as a file's name, is shown escaped.
    - C(denied) counts what seccomp answered in the kernel's place, by error, C(SIGSYS) or C(no error), and C(interrupted) what a signal ended
      before its time, which the kernel begins again or lets fail with EINTR. C(docs/calls.md) says what strace would show.
  returned: success
  type: dict
  contains:
    captures:
      description: The captures.
      type: list
      elements: dict
      contains:
        capture:
          description: The capture's path, relative to O(src) where that is a folder, or to the folder that O(captures) have in common.
          type: str
          sample: web1/api/20261121T231500.000000Z.dat
        buffer:
          description: The name of the buffer in a file of several, or of one that C(trace-cmd) took from an instance; V(null) for the top one.
          type: str
          sample: peer
        host:
          description: The host by its name in the inventory.
          type: str
          sample: web1
        container:
          description: The container's name.
          type: str
          sample: api
        complete:
          description: Whether no event was lost, V(null) where the manifest is missing.
          type: bool
          sample: true
        lost:
          description: How many events were lost.
          type: int
          sample: 0
        events:
          description: How many events there are.
          type: int
          sample: 12345
        event_counts:
          description: How many events there are of each kind.
          type: dict
          sample: {"raw_syscalls:sys_exit": 12345}
        duration_s:
          description: Time between the first and the last event in seconds.
          type: float
          sample: 30.1
        errors:
          description: How often system calls failed, by the name of the error.
          type: dict
          sample: {ENOENT: 12, ECONNREFUSED: 3}
    skipped:
      description:
        - What of the folder could not be read, which is in a warning, too. A trace whose manifest is damaged is reported without it.
      type: list
      elements: dict
      contains:
        path:
          description: The file's path, relative to O(src).
          type: str
          sample: web1/api/20261121T231500.000000Z.dat
        reason:
          description: Why.
          type: str
          sample: the trace is cut short
        next_step:
          description: What can be done about it.
          type: str
          sample: fetch or record it again, or remove it
        io_uring:
          description:
            - What is known of requests by io_uring, which are no system calls - whether they were C(recorded), how many there were of which
              operation (C(requests)), and whether some could not be seen as the kernel itself C(polled) for them.
          type: dict
          sample: {recorded: true, requests: {READ: 12}, polled: false}
files:
  description: The files that were asked for, by format; none where there was nothing to report on, of which nothing is written.
  returned: success
  type: dict
  sample: {json: traces/report/summary.json, text: traces/report/summary.txt}
"""

import os

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.capture_summary import gen_captures, gen_source
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.numeric import NUMPY_IMPORT_ERROR
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_files import ReportWriter
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.report_text import describe_skipped
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds


def find_root(captures):
    """The folder that CAPTURES have in common."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(one)) for one in captures] or ["."])


def run(module):
    if NUMPY_IMPORT_ERROR:
        module.fail_json(msg=missing_required_lib("numpy"), exception=NUMPY_IMPORT_ERROR)
    parameters = module.params
    min_latency_ns = int((parse_seconds(parameters["min_latency"], "min_latency") or 0) * 1e9)
    source, chosen = parameters["src"], parameters["captures"]
    captures, skipped = [], []
    if chosen is None:
        found = gen_source(source, skipped, min_latency_ns)
    else:
        found = gen_captures(dict.fromkeys(chosen), source or find_root(chosen), skipped, min_latency_ns)
    with ReportWriter(parameters["dest"], parameters["formats"], check_mode=module.check_mode) as report:
        for one in found:
            report.add(one)
            del one["programs"], one["processes"]
            captures.append(one)
        changed = report.finish(skipped)
    for one in skipped:
        module.warn(escape(f"skipped {describe_skipped(one)}"))
    summary = {"captures": captures, "skipped": skipped}
    return {"changed": changed, "lines": report.lines, "summary": summary, "files": report.files}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            src=dict(type="path"),
            captures=dict(type="list", elements="path"),
            dest=dict(type="path", required=True),
            min_latency=dict(type="str"),
            formats=dict(type="list", elements="str", choices=["json", "text"], default=["json", "text"]),
        ),
        required_one_of=[("src", "captures")],
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
