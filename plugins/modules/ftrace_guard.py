#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_guard
short_description: Ask the guard of traces to finish them
description:
  - M(crashcart.fleet.ftrace_capture) with C(phase=finish) calls this module first, which is small. It asks the process on the host that guards
    the traces of C(phase=start) to finish them. That process has all that it takes in memory.
  - Use M(crashcart.fleet.ftrace_capture), which transfers the captures as well, and does without a guard where there is none.
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
    support: full
    details: The module needs root on the host.
  check_mode:
    support: none
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
    description: The ids of all containers whose traces were started together.
    type: list
    elements: str
    required: true
  leave:
    description: As O(crashcart.fleet.ftrace_capture#module:leave).
    type: list
    elements: str
    default: []
  _parts:
    description: Internal, as for M(crashcart.fleet.ftrace_fetch).
    type: dict
    default: {}
  _broken:
    description: Internal, as for M(crashcart.fleet.ftrace_fetch).
    type: str
    default: ""
  _stamps:
    description: Internal, as for M(crashcart.fleet.ftrace_fetch).
    type: list
    elements: str
    default: []
  _methods:
    description: Internal, as for M(crashcart.fleet.ftrace_fetch).
    type: list
    elements: str
    default: []
seealso:
  - module: crashcart.fleet.ftrace_capture
"""

EXAMPLES = r"""
- name: Finish the traces, and leave the captures on the host for the next fetch
  crashcart.fleet.ftrace_guard:
    containers: "{{ started.instances | map(attribute='id') }}"
  become: true
"""

RETURN = r"""
answer:
  description: The result of M(crashcart.fleet.ftrace_capture) on the host, before its captures are transferred. V(null) where there is no guard.
  returned: success
  type: dict
  sample: {changed: true, failed_containers: []}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import requests
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import arguments


def run(module):
    require_root()
    answer = requests.ask(module.params["containers"], module.params)
    return {"changed": bool(answer and answer.get("changed")), "answer": answer}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            containers=dict(type="list", elements="str", required=True),
            leave=dict(type="list", elements="str", default=[]),
            **arguments.HOME_ARGUMENTS,
        ),
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
