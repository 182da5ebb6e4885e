#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_info
short_description: Show what is traced on a host and what can be traced there
description:
  - By default the module returns RV(summary), a page to read - which containers are traced, in which state and until when, which captures
    wait to be fetched, and what the host cannot trace, with the consequence and the next step.
  - O(gather) returns the same and more as data, such as the instances with their settings and the kernel's counters, and what the kernel can
    trace. The module changes nothing.
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
    details: The module needs root on the host to read tracefs.
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
      - What to return. Each value gives the return value of the same name, V(all) gives all of them.
    type: list
    elements: str
    choices: [all, summary, instances, captures, start_hook, boot_rules, features, available]
    default: [summary]
  containers:
    description:
      - Containers whose traces to show, by name, id of at least twelve digits, or shell glob over names.
        O(crashcart.fleet.crashcart_attach#module:containers) describes all forms. Without a selection every trace instance of the collection is
        shown.
    type: list
    elements: str
seealso:
  - module: crashcart.fleet.ftrace_instance
"""

EXAMPLES = r"""
- name: Look at all traces
  crashcart.fleet.ftrace_info:
  become: true

- name: Get the traces as data
  crashcart.fleet.ftrace_info:
    gather: [instances]
  become: true
  register: traces

- name: Show which traces have stopped by themselves, and why
  ansible.builtin.debug:
    msg: "{{ traces.instances | selectattr('stopped') | items2dict(key_name='container', value_name='stopped') }}"
"""

RETURN = r"""
summary:
  description:
    - A page to read. It has one line for each trace, for captures that wait to be fetched, and for each feature that is C(missing), with
      the consequence and the next step.
  returned: with V(summary) in O(gather)
  type: list
  elements: str
  sample:
    - "trace of api: started until 2026-09-21T14:13:20Z, 1200 events in its buffers"
    - "captures: 2 (3.4 MiB) wait for ftrace_fetch"
instances:
  description:
    - The trace instances, as RV(crashcart.fleet.ftrace_instance#module:instances), and those that are gone but have recordings left in files.
  returned: with V(instances) in O(gather)
  type: list
  elements: dict
  sample: [{name: crashcart-3f4e1c0c9b0b, container: api, state: started}]
captures:
  description: Captures on the host, the oldest first. M(crashcart.fleet.ftrace_fetch) fetches those that wait.
  returned: with V(captures) in O(gather)
  type: list
  elements: dict
  contains:
    instance:
      description: Name of the trace instance that the capture comes from.
      type: str
      sample: crashcart-3f4e1c0c9b0b
    state:
      description: V(new) waits to be fetched, V(kept) was fetched and is kept for others, V(part) is being drained or its fetch was killed.
      type: str
      sample: new
    size:
      description: Size on the host in bytes, compressed.
      type: int
      sample: 204800
    drained:
      description: When the events were drained, in seconds since the epoch by the host's clock.
      type: float
      sample: 1790000000.25
available:
  description: What the kernel offers to trace. V(null) where tracefs is not mounted or cannot be read.
  returned: with V(available) in O(gather)
  type: dict
  contains:
    events:
      description: Names of the events, by system.
      type: dict
      sample: {raw_syscalls: [sys_enter, sys_exit]}
    tracers:
      description: Names of the tracers.
      type: list
      elements: str
      sample: [nop, function]
    clocks:
      description: Names of the trace clocks.
      type: list
      elements: str
      sample: [local, global, mono]
    probes:
      description: Kinds of dynamic events that can be defined, from V(eprobe), V(kprobe), V(uprobe) and V(synthetic).
      type: list
      elements: str
      sample: [uprobe]
start_hook:
  description:
    - The start hook of the host (M(crashcart.fleet.ftrace_hook)), V(null) where there is none. C(profiles) are the names of its profiles,
      C(error) says why its policy cannot be read, or its program not be run (V(null) for nothing).
    - C(troubles) are the last 20 cases since the host has booted in which the hook could not trace a container, each with C(time) (seconds
      since the epoch), C(profile), C(container) (its id, empty for all) and C(why).
  returned: with V(start_hook) in O(gather)
  type: dict
  sample: {profiles: [startup], error: null, troubles: []}
boot_rules:
  description: The standing rules that begin when the host starts (M(crashcart.fleet.ftrace_rules)), with C(name) and C(is_running).
  returned: with V(boot_rules) in O(gather)
  type: list
  elements: dict
  sample: [{name: shop, is_running: true}]
features:
  description: What the collection can use for traces, and for each feature whether this host has it.
  returned: with V(features) in O(gather)
  type: list
  elements: dict
  contains:
    name:
      description: Name of the feature. A tracer that the kernel lacks is listed by its name.
      type: str
      sample: syscall_events
    ok:
      description: Whether the host has the feature.
      type: bool
      sample: false
    reason:
      description: Why the host lacks the feature, with the kernel's configuration option or the next step. Empty where it has the feature.
      type: str
      sample: the kernel has no syscall events (CONFIG_FTRACE_SYSCALLS)
    consequence:
      description: What does not work without the feature. Empty where the host has it, or where nothing in the collection needs it.
      type: str
      sample: "system calls cannot be traced: trace events or functions"
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import feature, features, summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import selection
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import notes, policy
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.rule import read_at_boot
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import dynamic_events, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

MAX_TROUBLES = 20


def find_available(root):
    """Return what the kernel offers to trace, or None where tracefs cannot be read, which the features report."""
    try:
        return {**tracefs.list_available(root), "probes": dynamic_events.list_kinds(root)}
    except tracefs.TraceError:
        return None


def list_features(available):
    found = {found.name: vars(found) for found in features.list_trace_features()}
    for name, reason in tracers.list_missing(available["tracers"]).items() if available else ():
        found.setdefault(name, vars(feature.make_missing(name, reason)))
    return list(found.values())


def list_traces(module, root):
    found = [describe_trace(trace) for trace in selection.select_instances(module, root, untraced_ok=True)]
    for order in orders.list_abandoned():
        module.warn(
            escape(
                f"nobody watches the trace of {order.container.name} any more: its recorder was killed, so its ttl and limits do not hold;"
                " the next ftrace_instance or ftrace_fetch starts the recorder again"
            )
        )
    return found


def describe_start_hook():
    """Return what the start hook of this host is; None where there is none."""
    if not policy.exists():
        return None
    found = {"profiles": [], "error": None, "troubles": notes.read()[-MAX_TROUBLES:]}
    try:
        found["profiles"] = sorted(policy.read())
        policy.check_program()
    except FleetError as error:
        found["error"] = str(error)
    return found


def describe_boot_rules(instances):
    """Return the rules that begin when the host starts, and why they are not known; '' if they are. INSTANCES are as in the result."""
    running = {one["rule"]["name"] for one in instances if one["rule"] is not None and one["state"] == "started"}
    try:
        return [{"name": name, "is_running": name in running} for name in sorted(read_at_boot())], ""
    except FleetError as error:
        return [], str(error)


def run(module):
    require_root()
    try:
        root = tracefs.find_tracefs()
    except tracefs.TraceError:
        root = None
    available = None if root is None else find_available(root)
    found = {
        "instances": [] if available is None else list_traces(module, root),
        "captures": [segment.as_result() for segment in outbox.list_segments()],
        "start_hook": describe_start_hook(),
        "boot_rules": [],
        "features": list_features(available),
        "available": available,
    }
    found["boot_rules"], error = describe_boot_rules(found["instances"])
    found["summary"] = [
        *(summaries.summarize_traces(found["instances"]) or ["trace: none"]),
        *summaries.summarize_captures(found["captures"]),
        *summaries.summarize_start_hook(found["start_hook"]),
        *summaries.summarize_boot_rules(found["boot_rules"], error),
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
                choices=[
                    "all",
                    "summary",
                    "instances",
                    "captures",
                    "start_hook",
                    "boot_rules",
                    "features",
                    "available",
                ],
                default=["summary"],
            ),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
