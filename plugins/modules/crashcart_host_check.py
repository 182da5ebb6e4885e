#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_host_check
short_description: See that a host has what a playbook needs before it begins
description:
  - Fails where the host lacks something, and tells all that it lacks at once, each with the next step. Changes nothing.
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
    details: To be root is among what is looked for.
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
      - What is needed besides root's rights. V(containers) is a runtime that says which there are, V(query) the library for
        O(crashcart.fleet.crashcart_attach#module:query), V(tools) what attaching an image takes, V(commands) what running a command of an image
        by M(crashcart.fleet.crashcart_exec) takes, V(traces) what tracing system calls takes.
    type: list
    elements: str
    choices: [containers, query, tools, commands, traces]
    default: []
  allow_empty:
    description:
      - Accept a host that has no runtime at all, since it has no container either. A runtime that does not answer stays an error.
    type: bool
    default: false
  docker_host:
    description:
      - URL of an engine that speaks Docker's API, as in M(crashcart.fleet.crashcart_attach).
    type: str
  image:
    description:
      - The image that V(tools) and V(commands) are about. It is not looked for with O(allow_empty), as who has no such container needs none.
    type: str
    default: default
seealso:
  - module: crashcart.fleet.crashcart_info
  - module: crashcart.fleet.crashcart_playbook_check
"""

EXAMPLES = r"""
- name: See that this host can trace containers
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
    """What is missing where there is no image called NAME."""
    try:
        found = store.find_image(name)
    except FleetError as error:
        return [str(error)]
    return [] if found else [f"there is no image called {name!r}: the playbook crashcart.fleet.install brings one"]


def run(module):
    needs = module.params["needs"]
    missing = find_privileges()
    if not missing:  # without them all the rest would seem to be missing, too
        wanted = {name for need in needs for name in FEATURES.get(need, ())}
        missing = [f"{one.name}: {one.reason}" for one in features.list_features() if one.name in wanted and not one.ok]
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
