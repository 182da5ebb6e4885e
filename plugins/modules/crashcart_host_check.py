#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_host_check
short_description: Check that a host has what a playbook needs
description:
  - Fails where the host lacks something, and lists all that it lacks with the next step for each. Changes nothing.
  - The collection's playbooks run it before they change anything.
version_added: 0.1.0
author:
  - crashcart.fleet contributors (@crashcart-fleet)
extends_documentation_fragment:
  - crashcart.fleet.attributes
attributes:
  action_group:
    support: full
    membership: [crashcart.fleet.crashcart, crashcart.fleet.images]
  async:
    support: full
  become:
    support: full
    details: The module fails without root on the host.
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
  needs:
    description:
      - What to check for besides root's privileges.
      - V(containers) checks for a runtime that lists its containers, V(query) for the library that
        O(crashcart.fleet.crashcart_attach#module:query) requires, V(tools) for what attaching O(image) takes, V(commands) for what
        running a command of O(image) by M(crashcart.fleet.crashcart_exec) takes, V(traces) for what tracing system calls takes.
    type: list
    elements: str
    choices: [containers, query, tools, commands, traces]
    default: []
  allow_empty:
    description:
      - Accept a host without any container runtime, because it has no containers either. A runtime that does not answer is still an error.
        O(image) is not checked then.
    type: bool
    default: false
  docker_host:
    description:
      - URL of an engine that speaks Docker's API, as O(crashcart.fleet.crashcart_attach#module:docker_host).
    type: str
  image:
    description:
      - Name of the image that V(tools) and V(commands) check for.
    type: str
    default: default
seealso:
  - module: crashcart.fleet.crashcart_info
  - module: crashcart.fleet.crashcart_playbook_check
"""

EXAMPLES = r"""
- name: Check that this host can trace containers
  crashcart.fleet.crashcart_host_check:
    needs: [containers, traces]
  become: true
"""

RETURN = r""" # """

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import features
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import store
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import check_jmespath
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module

FEATURES = {
    "tools": ("loop",),
    "commands": ("kernel", "mount_api", "loop"),
    "traces": ("tracefs", "trace_instances", "syscall_events", "event_fork", "syscall_names"),
}


def find_privileges():
    try:
        require_root()
    except FleetError as error:
        return [str(error)]
    return []


def find_runtimes(docker_host, allow_empty):
    host = None
    try:
        host = Host(docker_host)
        host.list_containers(users=False)
    except ContainerError as error:
        return [] if allow_empty and host is not None and host.is_complete else [str(error)]
    return []


def find_image(name):
    """Return a phrase that says what is missing where the store has no image called NAME, else an empty list."""
    try:
        found = store.find_image(name)
    except FleetError as error:
        return [str(error)]
    return [] if found else [f"there is no image called {name!r}: the playbook crashcart.fleet.install brings one"]


def run(module):
    needs = module.params["needs"]
    missing = find_privileges()
    if not missing:  # without root's privileges every feature would seem to be missing
        wanted = {name for need in needs for name in FEATURES.get(need, ())}
        found = [feature for feature in features.list_features() if feature.name in wanted]
        missing = [f"{feature.name}: {feature.reason}" for feature in found if not feature.ok]
    if "containers" in needs:
        missing += find_runtimes(module.params["docker_host"], module.params["allow_empty"])
    if not module.params["allow_empty"] and {"tools", "commands"} & set(needs):
        missing += find_image(module.params["image"])
    if "query" in needs and not check_jmespath().ok:
        missing.append(f"jmespath: {check_jmespath().reason}")
    if missing:
        raise FleetError("this host lacks what is needed: " + "; ".join(missing))
    return {"changed": False}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            needs=dict(
                type="list", elements="str", choices=["containers", "query", "tools", "commands", "traces"], default=[]
            ),
            allow_empty=dict(type="bool", default=False),
            docker_host=dict(type="str"),
            image=dict(type="str", default="default"),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
