#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_attach
short_description: Attach a tool image to running containers, or detach it
description:
  - Mounts a tool image from the host's store inside running containers, without a restart. The containers need no shell, no writable root
    filesystem and no privileges.
  - The mount is read-only, without setuid and without devices. The host itself gets no mount, except with O(method=rslave). The loop device
    is freed when the last container detaches or ends.
  - A single command needs no attached image, see M(crashcart.fleet.crashcart_exec). Attach an image where tools must be visible in the
    container, for C(docker exec) and interactive shells.
  - A container that fails does not stop the others. The task fails at its end, and says which containers failed and which were served.
    It leaves nothing half-done in a container that failed.
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
      - crashcart.fleet.images
  async:
    support: none
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
    description:
      - Whether the image should be attached.
      - V(detached) also works for paused containers. A name that matches no container is a warning then, not an error, because nothing
        is attached there. It is an error where one of the host's runtimes does not answer.
    type: str
    choices: [attached, detached]
    default: attached
  everything:
    description:
      - Detach every image on the host, including those in containers of the host's users, and remove what killed tasks have left.
      - Requires O(state=detached) and replaces a selection by O(containers), O(labels) or O(query). O(image), O(path) and O(docker_host)
        narrow it.
    type: bool
    default: false
    version_added: 0.1.0
  image:
    description:
      - Name of an image in the host's store. The default is V(default).
      - With O(state=detached) only attachments of this image are detached, by default those of any image.
    type: str
  path:
    description:
      - Where the image is mounted in the container. The default is the prefix that the image was built for, usually V(/dev/crashcart). The
        image's programs work at that path only, so another one is an error.
      - With O(state=detached) only attachments at this path are detached, by default those at any path.
    type: path
  method:
    description:
      - How the image gets into containers that do not have it yet.
      - V(auto) uses V(fsmount) where the kernel has it, else V(mknod).
      - V(fsmount) moves a detached mount into the container and needs nothing of the container. Requires Linux 5.2.
      - V(mknod) mounts the image's block device with the mount system call of older kernels. No container sees the device node.
      - V(rslave) mounts the image on the host, in the folder that is the container's volume at O(path), for example
        C(-v /srv/tools:/dev/crashcart:rslave). All containers with that volume get the tools, and lose them, together.
    type: str
    choices: [auto, fsmount, mknod, rslave]
    default: auto
  ttl:
    description:
      - Time after which the attachment ends by itself, for example V(30m) or V(2h), even when the controller is gone. Tools that still run keep
        the files that they use. By default the attachment stays until it is detached.
      - A later call with O(ttl) starts the time again. A later call without it leaves the end as it is.
      - Cannot be used with O(method=rslave), whose mount belongs to the host and outlives the container.
      - One small process on the host, C(crashcart-watchdog), ends attachments. It exits when it has nothing left to watch.
    type: str
  busy:
    description:
      - What to do when processes use the tools that are to be detached.
      - V(fail) names the processes and keeps the mount. V(wait) waits until they end, and V(kill) kills them. Both fail after O(busy_timeout)
        and name the processes that are left. V(lazy) hides the mount at once, and it goes when the last process that uses it ends.
      - For tools in an rslave volume only processes of the selected containers are named, waited for or killed.
    type: str
    choices: [fail, wait, kill, lazy]
    default: fail
  busy_timeout:
    description:
      - Maximum time for each container that O(busy=wait) and O(busy=kill) wait, for example V(30s) or V(5m).
    type: str
    default: 30s
seealso:
  - module: crashcart.fleet.crashcart_image
  - module: crashcart.fleet.crashcart_exec
"""

EXAMPLES = r"""
- name: Attach the default image to some containers
  crashcart.fleet.crashcart_attach:
    containers: [api, "worker-*"]
  become: true
  register: attached

- name: Show the command that opens a shell in each
  ansible.builtin.debug:
    msg: "{{ attached.attachments | map(attribute='shell') }}"

- name: Attach to every container of a compose project that has no health check
  crashcart.fleet.crashcart_attach:
    labels:
      com.docker.compose.project: shop
    query: "Config.Healthcheck == null"
  become: true

- name: Attach for two hours, even if this controller goes away
  crashcart.fleet.crashcart_attach:
    containers: api
    ttl: 2h
  become: true

- name: Detach from one container, killing the processes that still use the tools
  crashcart.fleet.crashcart_attach:
    containers: api
    state: detached
    busy: kill
  become: true

- name: Detach everything on the host
  crashcart.fleet.crashcart_attach:
    state: detached
    everything: true
  become: true
"""

RETURN = r"""
lines:
  description: One line to read for each of RV(attachments), with the container, the end if there is one, and the command that opens a shell.
  returned: as RV(attachments)
  type: list
  elements: str
  sample: ["api, until 2026-09-21T14:13:20Z: docker exec -it 3f4e1c0c9b0b /dev/crashcart/bin/bash"]
attachments:
  description: Attachments of the selected containers after the task.
  returned: always, unless the task failed before it served any container
  type: list
  elements: dict
  contains:
    container:
      description: Name of the container.
      type: str
      sample: api
    id:
      description: Id of the container.
      type: str
      sample: 3f4e1c0c9b0b1c4f6a3f7d0d5f4b1f2e9d8c7b6a59483726150493827161504f
    pid:
      description: Process id on the host of the container's first process.
      type: int
      sample: 4711
    path:
      description: Path of the tools in the container.
      type: str
      sample: /dev/crashcart
    image:
      description: Name of the image.
      type: str
      sample: default
    digest:
      description: SHA-256 of the image.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    method:
      description: The O(method) by which the image was attached.
      type: str
      sample: fsmount
    expires:
      description: When the attachment ends by itself, in seconds since the epoch by the host's clock. V(null) when it does not.
      type: float
      sample: 1790000000.25
    expires_at:
      description: The time in RV(attachments[].expires) as UTC in ISO 8601 format. V(null) when that is V(null).
      type: str
      sample: "2026-09-21T14:13:20Z"
    shell:
      description: Command for a terminal of the controller that opens an interactive shell in the container.
      type: str
      sample: ssh -t admin@web1 sudo docker exec -it 3f4e1c0c9b0b /dev/crashcart/bin/bash
selected:
  description: Names of the selected containers, also in check mode.
  returned: as RV(attachments)
  type: list
  elements: str
  sample: [api, web]
not_found:
  description: Names and ids of the selection that match no container of this host. They fail the task unless O(allow_empty) or
    O(state=detached) accepts them.
  returned: as RV(attachments)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step. The message of the task says the same.
    - All other selected containers are as O(state) says.
  returned: always, unless the task failed before it served any container
  type: list
  elements: dict
  contains:
    container:
      description: Name of the container.
      type: str
      sample: api
    id:
      description: Id of the container.
      type: str
      sample: 3f4e1c0c9b0b1c4f6a3f7d0d5f4b1f2e9d8c7b6a59483726150493827161504f
    msg:
      description: Why it failed, and what to do.
      type: str
      sample: "container api (3f4e1c0c9b0b) is exited: start it first"
method_reason:
  description: Why this O(method) was chosen for containers that did not have the image.
  returned: as RV(attachments), with O(state=attached)
  type: str
  sample: the kernel has detached mounts, which need nothing of the container
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import (
    attach,
    expiry_watchdog,
    methods,
    removal,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.shells import shell_line
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds


def run_detached(module, host, outcome):
    """Detach what MODULE's options select, and return the containers that were served and what changed.

    With everything=true the containers of users are left out of these, and have a time limit so that no user can delay the task.
    """
    parameters = module.params
    options.require_selection(module, "whatever is attached on the host")
    containers = options.select(module, host, required=False, missing_ok=True)
    busy = removal.Busy(parameters["busy"], parse_seconds(parameters["busy_timeout"], "busy_timeout"))

    def detach(some, outcome, **more):
        what = attach.Detaching(parameters["image"], parameters["path"], busy, **more)
        return attach.ensure_detached(some, outcome, what, check_mode=module.check_mode)

    if not parameters["everything"]:
        return containers, detach(containers, outcome)

    def detach_theirs(some):
        theirs = Outcome()
        change = detach(some, theirs, refused_ok=True)
        theirs.check()
        return asdict(change)

    is_everywhere = all(parameters[name] is None for name in ("docker_host", "image", "path"))
    own = [container for container in containers if container.owner_uid is None]
    change = detach(own, outcome, everywhere=is_everywhere)
    others = options.run_for_users(module, host, containers, detach_theirs, "what is attached in containers")
    return own, attach.add_changes([change, *map(attach.parse_change, others)])


def run(module):
    require_root()
    parameters = module.params
    host = options.open_host(module)
    outcome = Outcome()
    more = {}
    if parameters["state"] == "attached":
        options.refuse_everything(module, "state=detached")
        if parameters["method"] == "rslave" and parameters["ttl"] is not None:
            raise ContainerError(
                "ttl does not go with method=rslave: its mount is the host's and outlives the container"
            )
        method, reason = methods.choose_method(parameters["method"])
        more["method_reason"] = reason
        containers = options.select(module, host, required=True, refuse=outcome.fail)
        change = attach.ensure_attached(
            containers,
            outcome,
            parameters["image"] or "default",
            parameters["path"],
            method,
            parse_seconds(parameters["ttl"], "ttl"),
            check_mode=module.check_mode,
        )
    else:
        containers, change = run_detached(module, host, outcome)
    if not module.check_mode:
        with outcome.complaining():
            expiry_watchdog.ensure_watchdog()  # somebody may have killed it
    result = {
        "changed": change.is_change,
        "attachments": [{**attached.as_result(), "shell": shell_line(attached, host)} for attached in change.after],
        "diff": {
            "before": attach.describe(change.before, change.leftovers),
            "after": attach.describe(change.after),
        },
        **more,
        **options.describe_selection(module, containers),
    }
    outcome.check(containers, parameters["state"], **result)
    return {**result, "failed_containers": []}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            state=dict(type="str", choices=["attached", "detached"], default="attached"),
            everything=dict(type="bool", default=False),
            image=dict(type="str"),
            path=dict(type="path"),
            method=dict(type="str", choices=["auto", *methods.METHODS], default="auto"),
            ttl=dict(type="str"),
            busy=dict(type="str", choices=["fail", "wait", "kill", "lazy"], default="fail"),
            busy_timeout=dict(type="str", default="30s"),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
