#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_info
short_description: Say what a host can do, what runs there, and what of ours is on it
description:
  - Lists running containers, tool images and attachments, and tells which features of the kernel the collection can use and
    why it cannot use the others.
  - Lists everything that the collection has put on the host and not yet taken away.
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
    details: Without root it sees less of other users' processes, of tracefs and of the engine.
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
      - Names, ids, twelve or more digits of ids, or shell globs over names. Without any selection every running container is listed.
seealso:
  - module: crashcart.fleet.ftrace_info
"""

EXAMPLES = r"""
- name: Look at the host
  crashcart.fleet.crashcart_info:
  become: true
  register: info

- name: Say what it lacks
  ansible.builtin.debug:
    msg: "{{ info.host.features | rejectattr('ok') | map(attribute='reason') }}"
"""

RETURN = r"""
host:
  description: The host.
  returned: success
  type: dict
  contains:
    kernel:
      description: The kernel's release.
      type: str
      sample: 6.1.0-17-amd64
    arch:
      description: The architecture by Debian's name.
      type: str
      sample: amd64
    cgroups:
      description: The layout of control groups, V(v1), V(hybrid), V(v2) or V(none).
      type: str
      sample: v2
    tracefs:
      description: Where tracefs is mounted, V(null) when it is not.
      type: str
      sample: /sys/kernel/tracing
    engine:
      description: The Docker engine's version, V(null) when none answers.
      type: str
      sample: 20.10.24
    engine_error:
      description: Why engines that are on the host, or should be, do not answer; empty when all do.
      type: str
      sample: ""
    features:
      description: What the collection needs, with C(name), C(ok) and, where not ok, the C(reason).
      type: list
      elements: dict
      sample: [{name: loop, ok: true, reason: ""}]
containers:
  description: The selected containers with C(id), C(name), C(state), C(pid), C(image), C(runtime), and C(user), the
    number of the host's user who runs it, null for root.
  returned: success
  type: list
  elements: dict
  sample: [{id: 3f4e1c0c9b0b, name: api, state: running, pid: 4711, image: "shop/api:7", runtime: docker, user: null}]
images:
  description: The images in the host's store with C(name), C(digest), C(path), C(arch), C(format), C(size), C(prefix), C(tools).
  returned: success
  type: list
  elements: dict
  sample: [{name: default, arch: amd64, format: squashfs, size: 60000000}]
attachments:
  description: What is attached in the selected containers, as M(crashcart.fleet.crashcart_attach) returns it.
  returned: success
  type: list
  elements: dict
  sample: [{container: api, path: /dev/crashcart, image: default}]
watchdog:
  description: The process that ends attachments in time, see O(crashcart.fleet.crashcart_attach#module:ttl).
  returned: success
  type: dict
  contains:
    pid:
      description: Its pid; V(null) when none runs, which the next call of M(crashcart.fleet.crashcart_attach) mends where it should.
      type: int
      sample: 4712
    attachments:
      description:
        - What it watches with C(container), C(path), C(expires) (seconds since the epoch) and C(error), which says why one
          could not be ended.
      type: list
      elements: dict
      sample: [{container: api, path: /dev/crashcart, expires: 1790000000.25, error: ""}]
recorder:
  description: The process that drains traces to files and ends traces in time, see O(crashcart.fleet.ftrace_instance#module:mode).
  returned: success
  type: dict
  contains:
    pid:
      description: Its pid; V(null) when none runs, which the next call of M(crashcart.fleet.ftrace_instance) mends where it should.
      type: int
      sample: 4713
    traces:
      description: What it looks after with C(instance), C(container), C(mode) and C(expires) (seconds since the epoch).
      type: list
      elements: dict
      sample: [{instance: crashcart-3f4e1c0c9b0b, container: api, mode: record, expires: 1790000000.25}]
census:
  description: Everything of the collection's on the host, by kind. All lists are empty after a cleanup.
  returned: success
  type: dict
  contains:
    loop_devices:
      description: Loop devices of images.
      type: list
      elements: str
      sample: []
    mounts:
      description: Mounts of images, in containers and in commands that run, and folders in which containers are shown their traces.
      type: list
      elements: str
      sample: []
    scratch:
      description: Where the temporary folders of connections (P(crashcart.fleet.cart#connection)) are mounted.
      type: list
      elements: str
      sample: []
    instances:
      description: Trace instances.
      type: list
      elements: str
      sample: []
    probes:
      description: Dynamic events.
      type: list
      elements: str
      sample: []
    watchdogs:
      description: The watchdog, as long as it runs.
      type: list
      elements: str
      sample: []
    recorders:
      description: The recorder, as long as it runs.
      type: list
      elements: str
      sample: []
    directories:
      description: Directories.
      type: list
      elements: str
      sample: [/var/lib/crashcart]
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import attachments, census, expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options, strangers
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import find_account
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import check_sdk
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import check_jmespath
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace import keeping, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, features, mounts, tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape


def find_containers(module):
    """The host's runtimes, its engine's version, who is silent and why, and the selected containers: none where all are silent, unless some
    were asked for."""
    is_asked = options.is_selecting(module)
    host = None
    try:
        host = options.open_host(module)
        version = host.docker.read_version() if host.docker else None
        chosen = options.select(module, host, required=False)
        errors = "; ".join(host.errors.values())
        return host, version, errors, [one for one in chosen if is_asked or one.state == "running"]
    except ContainerError as error:
        if is_asked:
            raise
        return host, None, str(error), []


def list_attachments(module, host, containers):
    """What is attached in CONTAINERS, as results. Nobody has to wait for containers of users that were not asked for."""

    def list_theirs(some):
        found, unknown = attachments.list_attachments(some)
        if unknown:
            raise ContainerError(unknown[0])
        return [one.as_result() for one in found]

    is_for_all = host is not None and not options.is_selecting(module)
    own, unknown = attachments.list_attachments([one for one in containers if one.owner_uid is None or not is_for_all])
    for reason in unknown:
        module.warn(escape(f"what is attached in one of the containers is left out: {reason}"))
    others = []
    if is_for_all:
        others = options.run_for_users(module, host, containers, list_theirs, "what is attached in containers")
    return [one.as_result() for one in own] + [one for found in others for one in found]


def take_census(module, host):
    """The census, with a warning for users whose processes could not all be looked at in time."""
    found, omitted = census.take_census(strangers.TOTAL_S if host is None else host.seconds_for_users)
    for uid in omitted:
        if host is not None and host.has_warned_of(uid):
            continue
        module.warn(
            escape(
                f"mounts of processes of {find_account(uid).label}, or some of them, are not looked at: there are too many"
            )
        )
    return found


def find_tracefs():
    try:
        return tracefs.find_tracefs()
    except tracefs.TraceError:
        return None


def run(module):
    host, version, engine_error, containers = find_containers(module)
    attached = list_attachments(module, host, containers)
    return {
        "changed": False,
        "host": {
            "kernel": os.uname().release,
            "arch": find_architecture(),
            "cgroups": cgroups.find_version(mounts.read_mounts("self", " - cgroup")),
            "tracefs": find_tracefs(),
            "engine": version,
            "engine_error": engine_error,
            "features": [vars(feature) for feature in [*features.list_features(), check_sdk(), check_jmespath()]],
        },
        "containers": [container.as_result() for container in containers],
        "images": census.describe_images(),
        "attachments": attached,
        "watchdog": {"pid": expiry.find_watchdog(), "attachments": [one.as_result() for one in expiry.list_expiries()]},
        "recorder": {"pid": orders.find_recorder(), "traces": keeping.list_watched()},
        "census": take_census(module, host),
    }


def main():
    run_module(AnsibleModule(argument_spec=options.ARGUMENTS, supports_check_mode=True), run)


if __name__ == "__main__":
    main()
