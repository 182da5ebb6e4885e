#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_fetch
short_description: Fetch the traces of containers to the controller
description:
  - Drains the ring buffers of trace instances and writes the events of each to a C(trace.dat) file on the controller, which
    M(crashcart.fleet.ftrace_report), C(trace-cmd report) and KernelShark read. A buffer without events gives no file, unless
    a thread of its container waited from the beginning to the end for something that has a name, such as a lock or a peer, or all of them waited
    for each other.
  - Also fetches recordings (O(crashcart.fleet.ftrace_instance#module:mode=record)), including those of containers that are gone. Each
    recording gives a capture of its own. A recording that is still running gives what it has so far.
  - Tracing never stops for a fetch. The next fetch brings the events that came later.
  - Drained events are removed from the kernel or from the recording's files, and stay in C(/var/lib/crashcart/captures) on the host until
    they are on the controller.
  - A broken transfer loses nothing. The next fetch from that host brings the rest, and continues an incomplete transfer to the same O(dest) at
    the byte where it stopped. If the module is killed while it drains, at most 256 KiB for each CPU are lost, and that capture is not
    C(complete).
  - Each capture has a manifest beside it that says whether events were lost. A manifest is at most 4 KiB long, except for a long account of
    problems. Longer parts, such as the container's labels, are moved into the C(trace.dat), where M(crashcart.fleet.ftrace_report) finds them.
    C(in_trace) in the manifest lists these parts with the number of entries of each.
  - A container that fails does not stop the others. The task fails at its end, and says which containers failed and which were served.
    Events of a container that failed stay on the host.
  - The controller checks what arrives. A capture must not be larger than the ring buffers in its manifest (for
    O(crashcart.fleet.ftrace_instance#module:mode=record) plus twice C(max_size)), nor than one page for each four compressed bytes plus 64 MiB.
    A damaged capture fails the task and is kept as it arrived, with a name that ends in C(.segment).
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
  - crashcart.fleet.captures
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
    details: The module needs root on the host. The captures are copied as the login user.
  check_mode:
    support: full
  delegation:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details: A buffer that recorded nothing since the last fetch is not fetched again.
  platform:
    platforms: linux
    support: full
options:
  containers:
    description:
      - Containers whose traces to fetch, by name, id of at least twelve digits, or shell glob over names.
        O(crashcart.fleet.crashcart_attach#module:containers) describes all forms. Without a selection the traces of all containers are
        fetched.
      - A container that is gone, or whose runtime does not answer, is known by the name that it had when its trace began. Where another
        container has that name now, give twelve digits of the id.
    type: list
    elements: str
  dest:
    description:
      - Folder on the controller for the captures. They are written to C(DEST/HOST/CONTAINER/STAMP.dat), with their manifests in C(STAMP.json)
        beside them.
    type: path
    required: true
  consume:
    description:
      - Whether the host may delete captures that are on the controller. V(false) keeps them there, compressed, so that others can fetch them,
        too. They stay until a fetch with V(true) has them, or O(crashcart.fleet.ftrace_instance#module:state=absent) removes their instance.
      - A host keeps at most 1 GiB in all, and 256 captures of each container. The oldest are deleted first.
      - The events leave the kernel's buffer in any case, because the kernel gives no copy of it. Tracing does not stop.
    type: bool
    default: true
  cursor:
    description:
      - Fetch only what was drained after the fetch that returned this RV(cursor). This is for captures that the host keeps
        (O(consume=false)) when O(dest) does not have the earlier ones any more. Captures that O(dest) has are not fetched again anyway.
    type: str
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

- name: Look at a flight recorder, and keep what it shows on the host for others
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
  description: Value for O(cursor) of a later fetch, to get only what is drained after this one. The given O(cursor) where nothing was fetched.
  returned: as RV(failed_containers)
  type: str
  sample: "1790000000123456789"
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step. The message of the task says the same.
    - The captures of all others are on the controller.
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
  description: One line to read for each of RV(captures), with the container, the file, and why it is not complete or why the trace stopped.
  returned: as RV(failed_containers)
  type: list
  elements: str
  sample: ["api: traces/web1/api/20261121T231500.000000Z.dat (1200 events)"]
captures:
  description: One entry for each drain of an instance, also those that an earlier fetch could not transfer, sorted by container and time.
    Empty in check mode.
  returned: as RV(failed_containers)
  type: list
  elements: dict
  contains:
    path:
      description: The C(trace.dat) on the controller. V(null) where the buffer held no event.
      type: str
      sample: traces/web1/api/20261121T231500.000000Z.dat
    manifest:
      description:
        - The manifest, with the parts that are in the C(trace.dat). C(docs/manifest.schema.json) of the collection is its schema.
      type: dict
      contains:
        complete:
          description:
            - Whether the capture has every event since the last fetch, or since the start. V(false) also where this is not known.
              RV(captures[].manifest.reasons) says why.
          type: bool
          sample: true
        reasons:
          description:
            - Why the capture is not complete, in words. Either events were lost, or somebody else has read, cleared, stopped or changed
              the trace, or the recorder did not watch it for a time.
          type: list
          elements: str
          sample: ["somebody opened trace_pipe, from which events are taken"]
        lost:
          description: Number of events that were lost.
          type: int
          sample: 0
        lost_exact:
          description: Whether RV(captures[].manifest.lost) is exact. Otherwise at least so many events were lost.
          type: bool
          sample: true
        discarded:
          description: How many of the lost events the kernel dropped because the clock or the tracer was changed.
          type: int
          sample: 0
        partial:
          description: For a recording, whether the host had room for a part of it only. The captures that follow have the rest.
          type: bool
          sample: false
        mode:
          description: The mode of the trace, V(ring) or V(record).
          type: str
          sample: record
        has_run:
          description:
            - Whether the container was seen running when the trace began, was fetched or ended. Where the container was awaited, has not run
              and nothing was recorded, RV(lines) and a warning say so.
          type: bool
          sample: true
        stopped:
          description: Why the trace stopped by itself, such as a limit or the recorder's death. V(null) where it did not.
          type: str
          sample: its ttl is over
        rotated:
          description: For a recording, C(segments), C(events) and C(bytes) deleted since the last fetch to make room. They count as lost.
          type: dict
          sample: {segments: 0, events: 0, bytes: 0}
        entries:
          description: Number of events in the capture.
          type: int
          sample: 12345
        container:
          description: C(id), C(name), C(image) and C(labels) of the container.
          type: dict
          sample: {name: api}
        cpus:
          description: The kernel's counters for each CPU, and the number of events that were lost there.
          type: list
          elements: dict
          sample: [{cpu: 0, entries: 12345, overrun: 0, lost: 0}]
        clock:
          description: The clock of the time stamps.
          type: str
          sample: mono
        clock_offset_ns:
          description: Nanoseconds to add to a time stamp to get real time, as measured at the end of the capture.
          type: int
          sample: 1790000000000000000
        time:
          description:
            - Offsets of the clock to real time, measured at C(start) of the trace and at C(end), when it stopped or was fetched. Each has
              its uncertainty and the real time of the measurement, in nanoseconds. Before C(changed) events may be missing because they were
              fetched earlier or selected differently. V(null) where nobody saw the start, and for clocks that only the kernel can read.
          type: dict
          sample: {start: {offset_ns: 1790000000000000000, uncertainty_ns: 80, real_time_ns: 1790000001000000000}}
        boot_id:
          description: Id of the host's boot. Time stamps of two captures can be compared where it is the same.
          type: str
          sample: 6d6f3c7e-93a5-4a94-9a0e-0a0a3f7b7c11
        specification:
          description: What the trace was asked to record.
          type: dict
          sample: {profile: errors}
        earlier_syscalls:
          description: Other selections of system calls that were asked for before in the same trace, in the form of C(specification).
          type: list
          elements: dict
          sample: [{native: [257], compat: [295]}]
        sha256:
          description: SHA-256 of the C(trace.dat).
          type: str
          sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

from functools import partial

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import is_meant
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import arguments, distribute, outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import fetch as fetching
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import client
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs


def run(module):
    require_root()
    parameters = module.params
    cursor = parameters["cursor"] or "0"
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 20:
        raise FleetError(
            f"cursor: {cursor!r} is not a cursor: give one that an earlier fetch from this host has returned"
        )
    home = fetching.make_home(parameters, int(cursor))
    root = tracefs.find_tracefs()
    outcome = Outcome()
    if not module.check_mode:
        # A query asks engines, which do not know those that are gone.
        selector = options.parse_selector(module, None)
        distribute.distribute_all(root, outcome, partial(is_meant, selector))
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
        module.warn(str(error))  # a fetch needs no recorder
    result = fetching.fetch(found, outcome, home, module.warn, consume=parameters["consume"])
    outcome.check([trace.who for trace in found], "drained", **result)
    return {**result, "failed_containers": []}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            dest=dict(type="path", required=True),
            **arguments.FORMAT_ARGUMENTS,
            consume=dict(type="bool", default=True),
            cursor=dict(type="str"),
            **arguments.HOME_ARGUMENTS,
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
