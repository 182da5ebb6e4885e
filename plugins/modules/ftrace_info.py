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
  - Lists the trace instances of ours with their settings and the kernel's counters, what the kernel offers to trace, and why not what
    it does not. Changes nothing, so it can be asked before a run.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
  - crashcart.fleet.containers
attributes:
  action_group:
    support: full
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
  register: traces

- name: Say which have lost events
  ansible.builtin.debug:
    msg: "{{ traces.instances | selectattr('cpus', 'search', 'overrun') }}"
"""

RETURN = r"""
instances:
  description:
    - The instances as M(crashcart.fleet.ftrace_instance) returns them, and those that are gone and of which recordings are left in files.
  returned: success
  type: list
  elements: dict
  sample: [{name: crashcart-3f4e1c0c9b0b, container: api, state: started}]
captures:
  description: What was drained and lies on the host, the oldest first. M(crashcart.fleet.ftrace_fetch) brings what waits.
  returned: success
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
  returned: success
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
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The feature; a tracer that the kernel lacks stands here by its name.
      type: str
      sample: hist_triggers
    ok:
      description: Whether it is there.
      type: bool
      sample: false
    reason:
      description: Why not, with the kernel's option or the next step.
      type: str
      sample: the kernel has no histograms (CONFIG_HIST_TRIGGERS)
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import orders, selection, staging, tracers
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import dynamic_events, features, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape


def list_features(available):
    found = {one.name: vars(one) for one in features.list_trace_features()}
    for name, reason in tracers.list_missing(available["tracers"]).items() if available else ():
        found.setdefault(name, {"name": name, "ok": False, "reason": reason})
    return list(found.values())


def list_captures():
    return [
        {"instance": one.instance, "state": one.state, "size": one.size, "drained": one.stamp_ns / 1e9}
        for one in staging.list_segments()
    ]


def run(module):
    require_root()
    try:
        root = tracefs.find_tracefs()
        available = {**tracefs.list_available(root), "probes": dynamic_events.list_kinds(root)}
    except tracefs.TraceError:
        # The features say why.
        return {
            "changed": False,
            "instances": [],
            "captures": list_captures(),
            "available": None,
            "features": list_features(None),
        }
    found = selection.select_instances(module, root, untraced_ok=True)
    for order in orders.list_abandoned():
        module.warn(
            escape(
                f"nobody watches the trace of {order.container.name} any more, and a ttl or a brake of it does not hold: its recorder was"
                " killed; the next ftrace_instance or ftrace_fetch starts one again"
            )
        )
    return {
        "changed": False,
        "instances": [one.as_result() for one in found],
        "captures": list_captures(),
        "available": available,
        "features": list_features(available),
    }


def main():
    run_module(AnsibleModule(argument_spec=options.ARGUMENTS, supports_check_mode=True), run)


if __name__ == "__main__":
    main()
