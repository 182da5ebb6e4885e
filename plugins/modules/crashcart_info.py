#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_info
short_description: Show what a host can do, what runs there, and what the collection has put on it
description:
  - By default the module returns RV(summary), a page to read - which containers run, what is attached to them and traced in them and until
    when, which images are in the store, and what the host lacks, with the consequence and the next step.
  - O(gather) returns the same and more as data, such as a list of everything that the collection has put on the host and not removed.
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
    details: Without root the module warns, and sees less of other users' processes, of tracefs and of the engine. It fails where no
      engine answers.
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
      - With V(summary), V(containers) or V(attachments) the module fails where no runtime of the host lists its containers, and returns
        what is known all the same. The other values need no runtime.
    type: list
    elements: str
    choices: [all, summary, host, features, containers, images, tools, attachments, watchdog, recorder, census]
    default: [summary]
  containers:
    description:
      - Containers to look at, by name, id of at least twelve digits, or shell glob over names.
        O(crashcart.fleet.crashcart_attach#module:containers) describes all forms. Without a selection the module looks at every running
        container.
seealso:
  - module: crashcart.fleet.ftrace_info
"""

EXAMPLES = r"""
- name: Look at the host
  crashcart.fleet.crashcart_info:
  become: true
  register: info

- name: Show the page
  ansible.builtin.debug:
    var: info.summary

- name: Find what the host lacks
  crashcart.fleet.crashcart_info:
    gather: [features]
  become: true
  register: info

- name: Show the reasons
  ansible.builtin.debug:
    msg: "{{ info.features | rejectattr('ok') | map(attribute='reason') }}"
"""

RETURN = r"""
summary:
  description:
    - A page to read. It has one line for the host, for each feature that is C(missing) with the consequence and the next step, for each
      image, for each container with what is attached and traced, for each trace of a container that is gone, and for captures that wait to
      be fetched.
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
      description: Release of the kernel.
      type: str
      sample: 6.1.0-17-amd64
    arch:
      description: Architecture by Debian's name.
      type: str
      sample: amd64
    cgroups:
      description: Layout of the control groups, V(v1), V(hybrid), V(v2) or V(none).
      type: str
      sample: v2
    tracefs:
      description: Where tracefs is mounted. V(null) when it is not.
      type: str
      sample: /sys/kernel/tracing
    engine:
      description: Version of the Docker engine. V(null) when none answers.
      type: str
      sample: 20.10.24
    engine_error:
      description: Why engines that are on the host, or should be, do not answer. Empty when all of them do.
      type: str
      sample: ""
features:
  description: What the collection can use on a host, and for each feature whether this host has it.
  returned: with V(features) in O(gather)
  type: list
  elements: dict
  contains:
    name:
      description: Name of the feature.
      type: str
      sample: loop
    ok:
      description: Whether the host has the feature.
      type: bool
      sample: false
    reason:
      description: Why the host lacks the feature, and what to do. Empty where it has the feature.
      type: str
      sample: "/dev/loop-control is missing: modprobe loop (CONFIG_BLK_DEV_LOOP)"
    consequence:
      description: What does not work without the feature. Empty where the host has it, or where nothing in the collection needs it.
      type: str
      sample: images can be neither attached nor used by crashcart_exec
containers:
  description: The selected containers with C(id), C(name), C(state), C(pid), C(image), C(runtime) and C(user), the number of the host's
    user who runs the container (V(null) for root).
  returned: with V(containers) in O(gather)
  type: list
  elements: dict
  sample: [{id: 3f4e1c0c9b0b, name: api, state: running, pid: 4711, image: "shop/api:7", runtime: docker, user: null}]
images:
  description: The images in the host's store with C(name), C(digest), C(path), C(arch), C(format), C(size) in bytes and C(prefix). A
    damaged image has C(name) and C(error) only.
  returned: with V(images) in O(gather)
  type: list
  elements: dict
  sample: [{name: default, arch: amd64, format: squashfs, size: 60000000}]
tools:
  description: Names of the tools in each image, by the name of the image.
  returned: with V(tools) in O(gather)
  type: dict
  sample: {default: [bash, gdb, ss, strace]}
attachments:
  description: Attachments of the selected containers, as RV(crashcart.fleet.crashcart_attach#module:attachments) but without C(shell).
  returned: with V(attachments) in O(gather)
  type: list
  elements: dict
  sample: [{container: api, path: /dev/crashcart, image: default}]
watchdog:
  description: The process that ends attachments on time, see O(crashcart.fleet.crashcart_attach#module:ttl).
  returned: with V(watchdog) in O(gather)
  type: dict
  contains:
    pid:
      description: Process id of the watchdog. V(null) when it does not run. The next call of M(crashcart.fleet.crashcart_attach) starts it
        where it is needed.
      type: int
      sample: 4712
    attachments:
      description:
        - The attachments that it watches, with C(container), C(path), C(expires) (seconds since the epoch), C(expires_at) (UTC in ISO 8601
          format) and C(error), the reason why an attachment could not be ended.
      type: list
      elements: dict
      sample: [{container: api, path: /dev/crashcart, expires: 1790000000.25, expires_at: "2026-09-21T14:13:20Z", error: ""}]
recorder:
  description: The process that drains traces to files and ends traces on time, see O(crashcart.fleet.ftrace_instance#module:mode).
  returned: with V(recorder) in O(gather)
  type: dict
  contains:
    pid:
      description: Process id of the recorder. V(null) when it does not run. The next call of M(crashcart.fleet.ftrace_instance) starts it where
        it is needed.
      type: int
      sample: 4713
    traces:
      description:
        - The traces that it watches, with C(instance), C(container), C(mode), C(expires) (seconds since the epoch) and C(expires_at) (UTC in
          ISO 8601 format).
      type: list
      elements: dict
      sample: [{instance: crashcart-3f4e1c0c9b0b, container: api, mode: record, expires: 1790000000.25, expires_at: "2026-09-21T14:13:20Z"}]
census:
  description: Everything that the collection has put on the host and not removed, by kind. After a cleanup all lists are empty.
  returned: with V(census) in O(gather)
  type: dict
  contains:
    loop_devices:
      description: Loop devices of images.
      type: list
      elements: str
      sample: []
    mounts:
      description: Mounts of images in containers and in running commands, and folders that show containers their traces.
      type: list
      elements: str
      sample: []
    scratch:
      description: Mount points of the temporary folders of connections (P(crashcart.fleet.cart#connection)).
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
      description: The watchdog while it runs.
      type: list
      elements: str
      sample: []
    recorders:
      description: The recorder while it runs.
      type: list
      elements: str
      sample: []
    start_hook:
      description: Files of the start hook (M(crashcart.fleet.ftrace_hook)).
      type: list
      elements: str
      sample: [/etc/crashcart/start-hook.json]
    boot_rules:
      description: Files by which standing rules begin with the host (M(crashcart.fleet.ftrace_rules)).
      type: list
      elements: str
      sample: [/etc/crashcart/rules.json, /etc/systemd/system/crashcart-rules.service]
    directories:
      description: Directories on the host.
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
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders, state
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.selection import list_instances
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, mounts
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

# Values of `gather` that the summary is made of.
_OF_SUMMARY = {"host", "features", "containers", "images", "attachments"}
# Values of `gather` that need a runtime to list its containers.
_OF_CONTAINERS = {"containers", "attachments"}


def open_host(module):
    """Return the host's runtimes, the version of its engine, and why these are unknown ('' where they are known)."""
    host = None
    try:
        host = options.open_host(module)
        return host, host.docker.read_version() if host.docker else None, ""
    except ContainerError as error:
        return host, None, str(error)


def select(module, host, engine_error):
    """Return the selected containers, or all that run where nothing is selected.

    Raises ContainerError where a selection matches none, and where no runtime answers (ENGINE_ERROR says why).
    """
    if host is None:
        raise ContainerError(engine_error)
    containers = options.select(module, host, required=False)
    if options.is_selecting(module):
        return containers
    return [container for container in containers if container.state == "running"]


def list_attachments(module, host, containers):
    """Return the attachments in CONTAINERS as results. Containers of users have a time limit where nothing is selected."""

    def list_theirs(some):
        found, unknown = attachments.list_attachments(some)
        if unknown:
            raise ContainerError(unknown[0])
        return [attachment.as_result() for attachment in found]

    is_for_all = host is not None and not options.is_selecting(module)
    unlimited = [container for container in containers if container.owner_uid is None or not is_for_all]
    own, unknown = attachments.list_attachments(unlimited)
    for reason in unknown:
        module.warn(escape(f"the attachments of one container are left out: {reason}"))
    others = []
    if is_for_all:
        others = options.run_for_users(module, host, containers, list_theirs, "what is attached in containers")
    return [attachment.as_result() for attachment in own] + [result for found in others for result in found]


def take_census(module, host):
    """Return the census, and warn of users whose processes could not all be looked at in time."""
    found, omitted = census.take_census(strangers.TOTAL_S if host is None else host.seconds_for_users)
    for uid in omitted:
        if host is not None and host.has_warned_of(uid):
            continue
        module.warn(
            escape(f"not all processes of {find_account(uid).label} were searched for mounts: there are too many")
        )
    return found


def find_tracefs():
    try:
        return tracefs.find_tracefs()
    except tracefs.TraceError:
        return None


def list_traces(module, containers):
    """Return the traces of CONTAINERS as results, or all traces where nothing is selected.

    The list is empty where tracefs cannot be read, which the features report.
    """
    root = find_tracefs()
    if root is None or not os.access(root, os.R_OK | os.X_OK):
        return []
    with suppress(tracefs.TraceError, PermissionError):
        found = list_instances(root, containers)
        if options.is_selecting(module):
            found = [trace for trace in found if trace.container is not None]
        return [{**describe_trace(trace), "container": find_name(trace)} for trace in found]
    return []


def find_name(trace):
    """Return the name of the container that TRACE is of, also where the container is gone."""
    about = read_container(trace) if trace.container is None else None
    return about["name"] if about else trace.container_name


def list_captures():
    with suppress(PermissionError):
        return [segment.as_result() for segment in outbox.list_segments()]
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
    """Return the summary of what was FOUND. IS_KNOWN is False where no runtime lists its CONTAINERS."""
    traces = list_traces(module, containers)
    unknown = ["container: unknown, because no runtime answers", *summaries.summarize_traces(traces)]
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
    host, version, engine_error = open_host(module) if needed & {"host", *_OF_CONTAINERS} else (None, None, "")
    containers, error = [], None
    if needed & _OF_CONTAINERS:
        try:
            containers = select(module, host, engine_error)
        except ContainerError as caught:
            if options.is_selecting(module):
                raise
            error = caught
    errors = dict.fromkeys([*([engine_error] if engine_error else []), *(host.errors.values() if host else [])])
    ways = {
        "host": lambda: describe_host(version, errors),
        "features": lambda: [vars(feature) for feature in [*features.list_features(), check_sdk(), check_jmespath()]],
        "containers": lambda: [container.as_result() for container in containers],
        "images": census.describe_images,
        "tools": census.list_tools,
        "attachments": lambda: list_attachments(module, host, containers),
        "watchdog": lambda: {
            "pid": expiry.find_watchdog(),
            "attachments": [expiring.as_result() for expiring in expiry.list_expiries()],
        },
        "recorder": lambda: {"pid": orders.find_recorder(), "traces": state.list_watched()},
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
