#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_rules
short_description: Have standing rules that survive a restart of the host
description:
  - Begins standing rules, by which containers are traced from their first instruction whenever they start, and has them begin again when the
    host starts, before its container engines do. A unit of systemd does that, C(crashcart-rules.service).
  - A rule of M(crashcart.fleet.ftrace_instance) with C(state=awaiting) is the same but ends with the host, and needs no systemd.
  - The rules of O(rules) are all that begin with the host. An earlier one that is not among them ends; what it has recorded stays until it is
    fetched.
  - The role P(crashcart.fleet.standing_rules#role) calls this module.
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
  state:
    description: Whether the host keeps rules. V(absent) ends all that begin with the host.
    type: str
    choices: [present, absent]
    default: present
  rules:
    description:
      - The rules that begin with the host. Each needs C(containers) or C(labels). Options without a description here are those of
        M(crashcart.fleet.ftrace_instance).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the rule, as O(crashcart.fleet.ftrace_instance#module:rule).
        type: str
        required: true
      containers:
        description: Names, ids or globs of the containers to trace, which need not exist.
        type: list
        elements: str
      labels:
        description: Labels that the containers have, with a value or V(null) for any.
        type: dict
      profile:
        description: As O(crashcart.fleet.ftrace_instance#module:profile). V(startup) where nothing else says what to record.
        type: str
        choices: [errors, syscalls, files, network, sched, exec, memory, startup, diagnose]
      syscalls:
        description: As O(crashcart.fleet.ftrace_instance#module:syscalls).
        type: list
        elements: str
        default: []
      events:
        description: As O(crashcart.fleet.ftrace_instance#module:events).
        type: list
        elements: raw
        default: []
      errors_only:
        description: As O(crashcart.fleet.ftrace_instance#module:errors_only).
        type: bool
        default: false
      paths:
        description: As O(crashcart.fleet.ftrace_instance#module:paths), V(auto) by default.
        type: str
        choices: ["false", "true", auto]
      buffer_size:
        description: As O(crashcart.fleet.ftrace_instance#module:buffer_size).
        type: str
      max_size:
        description: As O(crashcart.fleet.ftrace_instance#module:max_size), V(256MiB) by default. The oldest events are deleted first.
        type: str
      min_free:
        description: As O(crashcart.fleet.ftrace_instance#module:min_free).
        type: str
      max_rate:
        description: As O(crashcart.fleet.ftrace_instance#module:max_rate).
        type: int
      max_loss:
        description: As O(crashcart.fleet.ftrace_instance#module:max_loss).
        type: int
      max_containers:
        description: How many containers are traced at once. What starts beyond that is not traced, and counted. V(100) by default.
        type: int
      max_time:
        description: How long each container is traced from its start on, for example V(30s). By default until it ends.
        type: str
      ttl:
        description: How long the rule goes on each time it begins. By default until it is removed.
        type: str
seealso:
  - module: crashcart.fleet.ftrace_instance
  - module: crashcart.fleet.ftrace_fetch
"""

EXAMPLES = r"""
- name: Trace each container of the shop from its first instruction, also after a restart of the host
  crashcart.fleet.ftrace_rules:
    rules:
      - name: shop
        containers: [shop-*]
        max_time: 5m
  become: true

- name: End all rules that begin with the host
  crashcart.fleet.ftrace_rules:
    state: absent
  become: true
"""

RETURN = r"""
changes:
  description: The files that were changed and the rules that have begun or, in check mode, would be and would.
  returned: success
  type: list
  elements: str
  sample: [/usr/libexec/crashcart/begin-rules, /etc/crashcart/rules.json, /etc/systemd/system/crashcart-rules.service, rule shop]
rules:
  description: The names of the rules that begin with the host.
  returned: success
  type: list
  elements: str
  sample: [shop]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.boot import setup
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.steps import changing, take
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs

_RULE = dict(
    name=dict(type="str", required=True),
    containers=dict(type="list", elements="str"),
    labels=dict(type="dict"),
    **arguments.OF_RULES,
    max_containers=dict(type="int"),
    max_time=dict(type="str"),
    ttl=dict(type="str"),
)


def run(module):
    require_root()
    with changing(check_mode=module.check_mode):
        if module.params["state"] == "absent":
            wanted, steps = {}, setup.plan_absence()
        else:
            wanted = setup.complete_rules(module.params["rules"])
            steps = setup.plan_presence(wanted, tracefs.find_for(module))
        changes = take(steps, check_mode=module.check_mode)
    return {
        "changed": bool(changes),
        "changes": changes,
        "rules": list(wanted),
        "diff": {"before": "", "after": "".join(f"{what}\n" for what in changes)},
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["present", "absent"], default="present"),
            rules=dict(type="list", elements="dict", options=_RULE, default=[]),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
