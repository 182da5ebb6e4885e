#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_fetch
short_description: Bring the traces of containers to the controller
description:
  - Drains the ring buffers of trace instances and writes each as a C(trace.dat) file on the controller, which
    M(crashcart.fleet.ftrace_report), C(trace-cmd report) and KernelShark read.
  - What was recorded to files (O(crashcart.fleet.ftrace_instance#module:mode=record)) comes as well, one capture for each recording, also of
    containers that are gone; of a recording that goes on, all up to now.
  - What is drained is gone from the kernel, or from a recording's files, and lies in C(/var/lib/crashcart/captures) on the host until it is
    at home. Tracing goes on where it was on; the next fetch brings what came since.
  - Where a transfer breaks nothing is lost. The next fetch of anything from that host brings first what was left, and continues at the
    byte where the transfer to the same O(dest) stopped. Where the module is killed the same holds of what it had drained; what it had
    in its hands, 256 KiB for each CPU at most, is lost, and that capture is not C(complete).
  - Beside each capture lies its manifest, which says whether events were lost. A buffer that holds no event gives no file.
  - A manifest beside a capture is not longer than 4 KiB, but for a long account of what is wrong. Where it would be, its longest parts, such
    as the labels of the container or the list of events, are within the C(trace.dat), where M(crashcart.fleet.ftrace_report) finds them.
    C(in_trace) of the manifest says which, and how many entries each has.
  - A container that fails costs no other. The others are served, and the task fails at its end and names both. What a
    container that failed has recorded stays where it is.
  - What arrives is checked before it becomes a C(trace.dat). It may not hold more than the ring buffers that its manifest tells of, in
    O(crashcart.fleet.ftrace_instance#module:mode=record) with twice C(max_size), nor more than a page for each four bytes that are
    compressed, and 64 MiB. What is damaged makes the task fail, and is kept as it came, with a name that ends with C(.segment).
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
  - crashcart.fleet.containers
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
    details: Needs root on the host. The captures travel as the login user.
  check_mode:
    support: full
  delegation:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A buffer that was fetched and has recorded nothing since is not fetched again.
  platform:
    platforms: linux
    support: full
options:
  containers:
    description:
      - Names, ids, twelve or more digits of ids, or shell globs over names. Without any selection the traces of all containers
        are fetched. Containers that are gone, or whose runtime does not answer, are known by what was noted when their trace began, unless
        another container has the name by now; then give twelve digits of the id.
    type: list
    elements: str
  dest:
    description:
      - Folder on the controller. Captures go to C(DEST/HOST/CONTAINER/STAMP.dat), manifests to C(STAMP.json) beside them.
    type: path
    required: true
  format:
    description:
      - V(dat) writes a C(trace.dat). V(text) writes C(STAMP.txt) beside it as well, a line for each event, like those of C(trace-cmd report),
        with the container's numbers of processes beside the host's. The controller makes it, not the host, and needs numpy for it.
    type: str
    choices: [dat, text]
    default: dat
  dat_version:
    description:
      - Version of the C(trace.dat). V(7) is compressed by zstd where the host has libzstd, and not compressed where it has not. V(6), which is
        never compressed, is for C(trace-cmd) before 3.0.
    type: int
    choices: [6, 7]
    default: 7
  consume:
    description:
      - Whether the host may forget what is brought home. With V(false) it is kept there, compressed, until a fetch with V(true) has it or its
        instance is removed by O(crashcart.fleet.ftrace_instance#module:state=absent), so that others can fetch it, too. What is kept on a
        host is bounded by 1 GiB, and by 256 captures of each container; the oldest goes first.
      - The kernel gives no copy of a buffer, so what is fetched is gone from there either way. Tracing is never stopped.
    type: bool
    default: true
  cursor:
    description:
      - Bring only what was drained after the fetch that returned this cursor. For what is kept on the host (O(consume=false)) when O(dest)
        holds the earlier captures no more; those that it holds are not brought again anyway.
    type: str
  _parts:
    description:
      - Internal. Names of segments and how many bytes of them are at home, given by the action plugin.
    type: dict
    default: {}
  _broken:
    description:
      - Internal. The transfer on the host that broke.
    type: str
    default: ""
  _stamps:
    description:
      - Internal. Stamps of the captures that are at home.
    type: list
    elements: str
    default: []
  _methods:
    description:
      - Internal. Compressions that the controller reads.
    type: list
    elements: str
    default: []
  _owned:
    description:
      - Internal. A folder on the host that the login user has made.
    type: path
seealso:
  - module: crashcart.fleet.ftrace_instance
  - module: crashcart.fleet.ftrace_report
"""

EXAMPLES = r"""
- name: Fetch the trace of one container
  crashcart.fleet.ftrace_fetch:
    containers: api
    dest: traces
  become: true
  register: fetched

- name: Look at a flight recorder, and leave what it shows for others
  crashcart.fleet.ftrace_fetch:
    containers: api
    dest: traces
    format: text
    consume: false
  become: true

- name: Stop if events were lost
  ansible.builtin.assert:
    that: fetched.captures | map(attribute='manifest.complete') is all
"""

RETURN = r"""
cursor:
  description: What O(cursor) takes, to get only what is drained later. Without anything fetched it is the one that was given.
  returned: as RV(failed_containers)
  type: str
  sample: "1790000000123456789"
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step; the message of the task says the same.
    - The captures of the others are at home.
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
  description: A line for people for each of RV(captures), with the container, the file, and why it is not complete or has stopped.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: ["api: traces/web1/api/20261121T231500.000000Z.dat (1200 events)"]
captures:
  description: One entry for each drain of an instance; what an earlier fetch could not bring home comes first.
  returned: as RV(failed_containers)
  type: list
  elements: dict
  contains:
    path:
      description: The trace on the controller, V(null) where the buffer held no event.
      type: str
      sample: traces/web1/api/20261121T231500.000000Z.dat
    manifest:
      description:
        - What the manifest says, and what is too long to stand beside the trace. Its form is in C(docs/manifest.schema.json) of the
          collection.
      type: dict
      contains:
        complete:
          description:
            - Whether every event since the last fetch, or since the start, is in the capture. Where that is not so, or nobody knows,
              RV(captures[].manifest.reasons) says why.
          type: bool
          sample: true
        reasons:
          description:
            - Why the capture is not complete, in words. Events were lost, or somebody else has taken, cleared, stopped or changed the
              trace, or the recorder did not watch it for a time.
          type: list
          elements: str
          sample: ["somebody opened trace_pipe, from which events are taken"]
        lost:
          description: How many events were lost.
          type: int
          sample: 0
        lost_exact:
          description: Whether that number is exact; if not, at least so many were lost.
          type: bool
          sample: true
        discarded:
          description: How many of those the kernel dropped when the clock or the tracer was changed.
          type: int
          sample: 0
        partial:
          description: Of a recording, whether the host had room for a part of it only; the rest of it is in the captures that follow.
          type: bool
          sample: false
        mode:
          description: V(ring) or V(record).
          type: str
          sample: record
        has_run:
          description:
            - Whether the container was seen to run when the trace began, or when it was fetched or ended. Where nothing was recorded of one
              whose start is awaited, and it has not run, RV(lines) and a warning say so.
          type: bool
          sample: true
        stopped:
          description: Why the trace stopped by itself, such as a limit or the recorder's death; V(null) where it did not.
          type: str
          sample: its ttl is over
        rotated:
          description: Of a recording, C(segments), C(events) and C(bytes) that had to make room since the last fetch; they count as lost.
          type: dict
          sample: {segments: 0, events: 0, bytes: 0}
        entries:
          description: How many events the buffers held.
          type: int
          sample: 12345
        container:
          description: C(id), C(name), C(image) and C(labels) of the container.
          type: dict
          sample: {name: api}
        cpus:
          description: The kernel's counters for each CPU, and what was lost there.
          type: list
          elements: dict
          sample: [{cpu: 0, entries: 12345, overrun: 0, lost: 0}]
        clock:
          description: The clock of the time stamps.
          type: str
          sample: mono
        clock_offset_ns:
          description: Nanoseconds to add to a time stamp to get real time, as measured at the end.
          type: int
          sample: 1790000000000000000
        time:
          description:
            - The same, measured when the trace began (C(start)) and when it was stopped or, while it runs, fetched (C(end)), each with its
              uncertainty and the real time of the measurement; before C(changed) events may be missing for having been fetched or selected
              otherwise. V(null) where nobody saw the start, or for clocks that only the kernel reads.
          type: dict
          sample: {start: {offset_ns: 1790000000000000000, uncertainty_ns: 80, real_time_ns: 1790000001000000000}}
        boot_id:
          description: Identity of the host's boot; time stamps of two captures are of one clock where it is the same.
          type: str
          sample: 6d6f3c7e-93a5-4a94-9a0e-0a0a3f7b7c11
        specification:
          description: What was asked for.
          type: dict
          sample: {profile: errors}
        earlier_syscalls:
          description: Other selections of system calls, as C(specification) has one, that were asked for before in the same trace.
          type: list
          elements: dict
          sample: [{native: [257], compat: [295]}]
        sha256:
          description: Digest of the trace file.
          type: str
          sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch as fetching
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs


def run(module):
    require_root()
    parameters = module.params
    cursor = parameters["cursor"] or "0"
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 20:
        raise FleetError(f"cursor: {cursor!r} is none: give one that an earlier fetch from this host has returned")
    home = fetching.Home(
        parts=parameters["_parts"],
        broken=parameters["_broken"],
        stamps=parameters["_stamps"],
        cursor=int(cursor),
        methods=parameters["_methods"],
        owner=outbox.find_owner(parameters["_owned"]),
    )
    root = tracefs.find_tracefs()
    found = selection.select_instances(module, root, untraced_ok=bool(outbox.list_segments()))
    if module.check_mode:
        return {
            "changed": fetching.foresee(found, home),
            "captures": [],
            "cursor": cursor,
            "failed_containers": [],
        }
    try:
        client.ensure_recorder()  # somebody may have killed it
    except FleetError as error:
        module.warn(str(error))  # what there is can be fetched all the same
    outcome = Outcome()
    result = fetching.fetch(found, outcome, home, module.warn, consume=parameters["consume"])
    outcome.check([one.who for one in found], "drained", **result)
    return {**result, "failed_containers": []}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            dest=dict(type="path", required=True),
            format=dict(type="str", choices=["dat", "text"], default="dat"),
            dat_version=dict(type="int", choices=[6, 7], default=7),
            consume=dict(type="bool", default=True),
            cursor=dict(type="str"),
            _parts=dict(type="dict", default={}),
            _broken=dict(type="str", default=""),
            _stamps=dict(type="list", elements="str", default=[]),
            _methods=dict(type="list", elements="str", default=[]),
            _owned=dict(type="path"),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
