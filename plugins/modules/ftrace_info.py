#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_info
short_description: Say what is traced on a host and what could be
description:
  - By default it returns RV(summary), a page for people - which containers are traced, in which state and until when, what waits to be
    fetched, and what the host cannot trace, with what follows and the next step.
  - O(gather) has the same and more as data, such as the instances with their settings and the kernel's counters, and what the kernel offers
    to trace. Changes nothing, so it can be asked before a run.
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
    support: full
  become:
    support: full
    details: Needs root on the host, to read tracefs.
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
  gather:
    description:
      - What to return. Each of these gives the return value of its name, and V(all) gives all of them.
    type: list
    elements: str
    choices: [all, summary, instances, captures, features, available]
    default: [summary]
  containers:
    description:
      - Names, ids, twelve or more digits of ids, or shell globs over names. Without any selection every instance of ours is listed.
    type: list
    elements: str
seealso:
  - module: crashcart.fleet.ftrace_instance
"""

EXAMPLES = r"""
- name: Look at all traces
  crashcart.fleet.ftrace_info:
  become: true

- name: Get them as data
  crashcart.fleet.ftrace_info:
    gather: [instances]
  become: true
  register: traces

- name: Say which have stopped by themselves, and why
  ansible.builtin.debug:
    msg: "{{ traces.instances | selectattr('stopped') | items2dict(key_name='container', value_name='stopped') }}"
"""

RETURN = r"""
summary:
  description:
    - A page for people, a line for each thing. It has the traces, captures that wait to be fetched, and what is C(missing) of what can be
      traced, with what follows and the next step.
  returned: with V(summary) in O(gather)
  type: list
  elements: str
  sample:
    - "trace of api: started until 2026-09-21T14:13:20Z, 1200 events in its buffers"
    - "captures: 2 (3.4 MiB) wait for ftrace_fetch"
instances:
  description:
    - The instances as M(crashcart.fleet.ftrace_instance) returns them, and those that are gone and of which recordings are left in files.
  returned: with V(instances) in O(gather)
  type: list
  elements: dict
  sample: [{name: crashcart-3f4e1c0c9b0b, container: api, state: started}]
captures:
  description: What was drained and lies on the host, the oldest first. M(crashcart.fleet.ftrace_fetch) brings what waits.
  returned: with V(captures) in O(gather)
  type: list
  elements: dict
  contains:
    instance:
      description: The instance that it is of.
      type: str
      sample: crashcart-3f4e1c0c9b0b
    state:
      description: V(new) waits to be brought home, V(kept) was and stays for others, V(part) is being drained, or its fetch was killed.
      type: str
      sample: new
    size:
      description: Its size in bytes, compressed.
      type: int
      sample: 204800
    drained:
      description: When, in seconds since the epoch.
      type: float
      sample: 1790000000.25
available:
  description: What the kernel offers; V(null) where its tracefs is not mounted or cannot be read.
  returned: with V(available) in O(gather)
  type: dict
  contains:
    events:
      description: Names of events by system.
      type: dict
      sample: {raw_syscalls: [sys_enter, sys_exit]}
    tracers:
      description: Names of tracers.
      type: list
      elements: str
      sample: [nop, function]
    clocks:
      description: Names of clocks.
      type: list
      elements: str
      sample: [local, global, mono]
    probes:
      description: Kinds of dynamic events that can be defined, from V(eprobe), V(kprobe), V(uprobe) and V(synthetic).
      type: list
      elements: str
      sample: [uprobe]
features:
  description: What this host can trace, and why not what it cannot.
  returned: with V(features) in O(gather)
  type: list
  elements: dict
  contains:
    name:
      description: The feature; a tracer that the kernel lacks stands here by its name.
      type: str
      sample: syscall_events
    ok:
      description: Whether it is there.
      type: bool
      sample: false
    reason:
      description: Why not, with the kernel's option or the next step.
      type: str
      sample: the kernel has no syscall events (CONFIG_FTRACE_SYSCALLS)
    consequence:
      description: What cannot be done without it; empty where the feature itself is all, or where it is there.
      type: str
      sample: "system calls cannot be traced: trace events or functions"
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import features, summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape


def find_available(root):
    """What the kernel offers to trace; None where its tracefs cannot be read, which the features tell."""
    try:
        return {**tracefs.list_available(root), "probes": dynamic_events.list_kinds(root)}
    except tracefs.TraceError:
        return None


def list_features(available):
    found = {one.name: vars(one) for one in features.list_trace_features()}
    for name, reason in tracers.list_missing(available["tracers"]).items() if available else ():
        found.setdefault(name, vars(features.make_missing(name, reason)))
    return list(found.values())


def list_traces(module, root):
    found = [describe_trace(one) for one in selection.select_instances(module, root, untraced_ok=True)]
    for order in orders.list_abandoned():
        module.warn(
            escape(
                f"nobody watches the trace of {order.container.name} any more, and a ttl or a brake of it does not hold: its recorder was"
                " killed; the next ftrace_instance or ftrace_fetch starts one again"
            )
        )
    return found


def run(module):
    require_root()
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError:
        root = None
    available = None if root is None else find_available(root)
    found = {
        "instances": [] if available is None else list_traces(module, root),
        "captures": [one.as_result() for one in outbox.list_segments()],
        "features": list_features(available),
        "available": available,
    }
    found["summary"] = [
        *(summaries.summarize_traces(found["instances"]) or ["trace: none"]),
        *summaries.summarize_captures(found["captures"]),
        *summaries.summarize_features(found["features"]),
    ]
    wanted = summaries.find_gathered(module)
    return {"changed": False, **{name: value for name, value in found.items() if name in wanted}}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            gather=dict(
                type="list",
                elements="str",
                choices=["all", "summary", "instances", "captures", "features", "available"],
                default=["summary"],
            ),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
