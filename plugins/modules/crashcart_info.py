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
  - By default it returns RV(summary), a page for people - which containers run, what is attached to them and traced in them, and until
    when, which images are there, and what the host cannot do, with what follows and the next step.
  - O(gather) has the same and more as data, such as everything that the collection has put on the host and not yet taken away.
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
    details: Without root it sees less of other users' processes, of tracefs and of the engine. It warns of that, and fails where no engine
      answers.
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
      - It fails for V(summary), V(containers) and V(attachments) where no runtime of the host says what containers it has. All that is known
        is returned then, too. The others do not need a runtime.
    type: list
    elements: str
    choices: [all, summary, host, features, containers, images, tools, attachments, watchdog, recorder, census]
    default: [summary]
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

- name: Find what the host cannot do
  crashcart.fleet.crashcart_info:
    gather: [features]
  become: true
  register: info

- name: Show why
  ansible.builtin.debug:
    msg: "{{ info.features | rejectattr('ok') | map(attribute='reason') }}"
"""

RETURN = r"""
summary:
  description:
    - A page for people, a line for each thing. It has the host, what is C(missing) there of what the collection can use, with what follows and
      the next step, the images, the containers with what is attached and traced, traces of containers that are gone, and captures that
      wait to be fetched.
  returned: with V(summary) in O(gather)
  type: list
  elements: str
  sample:
    - "host: Linux 6.1.0-17-amd64 (amd64), cgroups v2, Docker 20.10.24"
    - "missing erofs: the kernel has no module for it (CONFIG_EROFS_FS); images of this format can be neither attached nor used by ..."
    - "image default: 57.2 MiB, squashfs, amd64, sha256 9f86d081884c"
    - "container api: docker, shop/api:7, 3f4e1c0c9b0b; has default at /dev/crashcart until 2026-09-21T14:13:20Z"
    - "container db: docker, postgres:17, 8d2f6a1b7c0e; traced: started, 1200 events in its buffers"
host:
  description: The host.
  returned: with V(host) in O(gather)
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
  description: What the collection can use, and why not what this host lacks.
  returned: with V(features) in O(gather)
  type: list
  elements: dict
  contains:
    name:
      description: The feature.
      type: str
      sample: loop
    ok:
      description: Whether it is there.
      type: bool
      sample: false
    reason:
      description: Why it is not there, and what to do.
      type: str
      sample: "/dev/loop-control is missing: modprobe loop (CONFIG_BLK_DEV_LOOP)"
    consequence:
      description: What the host cannot do without it; empty where nothing of the collection needs it, or where it is there.
      type: str
      sample: images can be neither attached nor used by crashcart_exec
containers:
  description: The selected containers with C(id), C(name), C(state), C(pid), C(image), C(runtime), and C(user), the
    number of the host's user who runs it, null for root.
  returned: with V(containers) in O(gather)
  type: list
  elements: dict
  sample: [{id: 3f4e1c0c9b0b, name: api, state: running, pid: 4711, image: "shop/api:7", runtime: docker, user: null}]
images:
  description: The images in the host's store with C(name), C(digest), C(path), C(arch), C(format), C(size) and C(prefix); of
    a damaged one its C(name) and the C(error).
  returned: with V(images) in O(gather)
  type: list
  elements: dict
  sample: [{name: default, arch: amd64, format: squashfs, size: 60000000}]
tools:
  description: The names of each image's tools, by the image's name.
  returned: with V(tools) in O(gather)
  type: dict
  sample: {default: [bash, gdb, ss, strace]}
attachments:
  description: What is attached in the selected containers, as M(crashcart.fleet.crashcart_attach) returns it.
  returned: with V(attachments) in O(gather)
  type: list
  elements: dict
  sample: [{container: api, path: /dev/crashcart, image: default}]
watchdog:
  description: The process that ends attachments in time, see O(crashcart.fleet.crashcart_attach#module:ttl).
  returned: with V(watchdog) in O(gather)
  type: dict
  contains:
    pid:
      description: Its pid; V(null) when none runs, which the next call of M(crashcart.fleet.crashcart_attach) mends where it should.
      type: int
      sample: 4712
    attachments:
      description:
        - What it watches with C(container), C(path), C(expires) (seconds since the epoch), C(expires_at) (the same for people) and C(error),
          which says why one could not be ended.
      type: list
      elements: dict
      sample: [{container: api, path: /dev/crashcart, expires: 1790000000.25, expires_at: "2026-09-21T14:13:20Z", error: ""}]
recorder:
  description: The process that drains traces to files and ends traces in time, see O(crashcart.fleet.ftrace_instance#module:mode).
  returned: with V(recorder) in O(gather)
  type: dict
  contains:
    pid:
      description: Its pid; V(null) when none runs, which the next call of M(crashcart.fleet.ftrace_instance) mends where it should.
      type: int
      sample: 4713
    traces:
      description:
        - What it looks after with C(instance), C(container), C(mode), C(expires) (seconds since the epoch) and C(expires_at) (the same for
          people).
      type: list
      elements: dict
      sample: [{instance: crashcart-3f4e1c0c9b0b, container: api, mode: record, expires: 1790000000.25, expires_at: "2026-09-21T14:13:20Z"}]
census:
  description: Everything of the collection's on the host, by kind. All lists are empty after a cleanup.
  returned: with V(census) in O(gather)
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
from contextlib import suppress

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils import features, summaries
from ansible_collections.crashcart.fleet.plugins.module_utils.architectures import find_architecture
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import census
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import attachments, expiry
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options, strangers
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.asking import find_account
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import check_sdk
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.query import check_jmespath
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.describe import describe_trace, read_container
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.fetch import outbox
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import handover, orders
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.selection import list_instances
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

# What the summary is made of.
_OF_SUMMARY = {"host", "features", "containers", "images", "attachments"}
# For these the runtimes have to say which containers there are.
_OF_CONTAINERS = {"containers", "attachments"}


def open_host(module):
    """The host's runtimes, its engine's version, and why these are not known."""
    host = None
    try:
        host = options.open_host(module)
        return host, host.docker.read_version() if host.docker else None, ""
    except ContainerError as error:
        return host, None, str(error)


def select(module, host, silence):
    """The selected containers, or all that run. Raises ContainerError for a selection that matches none, and where all runtimes are silent."""
    if host is None:
        raise ContainerError(silence)
    is_asked = options.is_selecting(module)
    return [one for one in options.select(module, host, required=False) if is_asked or one.state == "running"]


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


def list_traces(module, containers):
    """The traces of CONTAINERS as results, or of all where none were selected; none where they cannot be read, which the features tell."""
    root = find_tracefs()
    if root is None or not os.access(root, os.R_OK | os.X_OK):
        return []
    with suppress(tracefs.TraceError, PermissionError):
        found = list_instances(root, containers)
        if options.is_selecting(module):
            found = [one for one in found if one.container is not None]
        return [{**describe_trace(one), "container": find_name(one)} for one in found]
    return []


def find_name(trace):
    """Who is traced, also where it does not run any more."""
    about = read_container(trace) if trace.container is None else None
    return about["name"] if about else trace.container_name


def list_captures():
    with suppress(PermissionError):
        return [one.as_result() for one in outbox.list_segments()]
    return []


def describe_host(version, errors):
    return {
        "kernel": os.uname().release,
        "arch": find_architecture(),
        "cgroups": cgroups.find_version(mounts.read_mounts("self", " - cgroup")),
        "tracefs": find_tracefs(),
        "engine": version,
        "engine_error": "; ".join(errors),
    }


def summarize(module, found, containers, *, is_known):
    """The page for people of what was FOUND; where IS_KNOWN is false no runtime has said which CONTAINERS there are."""
    traces = list_traces(module, containers)
    unknown = ["container: not known, for no runtime answers", *summaries.summarize_traces(traces)]
    of_containers = summaries.summarize_containers(found["containers"], found["attachments"], traces)
    return [
        summaries.summarize_host(found["host"]),
        *summaries.summarize_features(found["features"]),
        *summaries.summarize_images(found["images"]),
        *(of_containers if is_known else unknown),
        *summaries.summarize_captures(list_captures()),
    ]


def run(module):
    wanted = summaries.find_gathered(module)
    needed = wanted | (_OF_SUMMARY if summaries.SUMMARY in wanted else set())
    if os.geteuid() != 0:
        module.warn(
            f"user {os.geteuid()} of the host sees little of what is attached, traced and left there: add become=true, or -b on the command line"
        )
    host, version, silence = open_host(module) if needed & {"host", *_OF_CONTAINERS} else (None, None, "")
    containers, error = [], None
    if needed & _OF_CONTAINERS:
        try:
            containers = select(module, host, silence)
        except ContainerError as caught:
            if options.is_selecting(module):
                raise
            error = caught
    errors = dict.fromkeys([*([silence] if silence else []), *(host.errors.values() if host else [])])
    ways = {
        "host": lambda: describe_host(version, errors),
        "features": lambda: [vars(one) for one in [*features.list_features(), check_sdk(), check_jmespath()]],
        "containers": lambda: [one.as_result() for one in containers],
        "images": census.describe_images,
        "tools": census.list_tools,
        "attachments": lambda: list_attachments(module, host, containers),
        "watchdog": lambda: {
            "pid": expiry.find_watchdog(),
            "attachments": [one.as_result() for one in expiry.list_expiries()],
        },
        "recorder": lambda: {"pid": orders.find_recorder(), "traces": handover.list_watched()},
        "census": lambda: take_census(module, host),
    }
    found = {name: way() for name, way in ways.items() if name in needed}
    if summaries.SUMMARY in wanted:
        found["summary"] = summarize(module, found, containers, is_known=error is None)
    result = {name: value for name, value in found.items() if name in wanted}
    if error is not None:
        raise ContainerError(f"no runtime of this host says what containers it has: {error}", **result)
    return {"changed": False, **result}


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
                    "host",
                    "features",
                    "containers",
                    "images",
                    "tools",
                    "attachments",
                    "watchdog",
                    "recorder",
                    "census",
                ],
                default=["summary"],
            ),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
