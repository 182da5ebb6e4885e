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
  - Mounts a tool image of the host's store inside running containers, without a restart and without any help from them
    (they need no shell, no writable root filesystem, no privileges).
  - The mount is read-only, without setuid and without devices. The host itself gets no mount (but with O(method=rslave)), and
    the loop device goes by itself when the last container detaches or ends.
  - To run a single command nothing has to be attached, see M(crashcart.fleet.crashcart_exec).
    Attach where tools must be visible in the container, for C(docker exec) and interactive shells.
  - A container that fails costs no other. The others are served, and the task fails at its end and names both. Nothing is left
    of what was begun in a container that failed.
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
    details: Needs root on the host.
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
      - Whether the image shall be attached.
      - Paused containers can be detached, too. With V(detached) a name that no container has is a warning, and no error, as nothing is
        attached there; it is an error where a runtime of the host does not answer.
    type: str
    choices: [attached, detached]
    default: attached
  everything:
    description:
      - With O(state=detached) and in the place of a selection, detach whatever is attached on the host, also what users of the host have
        attached, and take away what killed tasks have left. O(image), O(path) and O(docker_host) narrow it.
    type: bool
    default: false
    version_added: 0.1.0
  image:
    description:
      - Name of an image in the host's store. Without it, V(default).
      - With O(state=detached), only attachments of this image; without it, of any image.
    type: str
  path:
    description:
      - Where the image is mounted in the container. Without it, the prefix that the image was built for, usually
        V(/dev/crashcart); its programs work nowhere else.
      - With O(state=detached), only attachments at this path; without it, at any path.
    type: path
  method:
    description:
      - How the image gets into containers that lack it.
      - V(fsmount) moves a detached mount there, which needs nothing of the container (Linux 5.2).
      - V(mknod) mounts the image's block device by the old system call, for older kernels. Its device node is in no container.
      - V(rslave) mounts the image on the host, in the folder that the container was started with as a volume at O(path), for
        example C(-v /srv/tools:/dev/crashcart:rslave). All containers with that volume get the tools and lose them together.
      - V(auto) takes V(fsmount) where the kernel has it, else V(mknod).
    type: str
    choices: [auto, fsmount, mknod, rslave]
    default: auto
  ttl:
    description:
      - After this time the attachment goes away by itself, for example V(30m) or V(2h), whatever has become of the controller.
        Tools that still run keep what they use.
      - A later call with O(ttl) gives it that time anew; one without leaves its end as it is.
      - It does not go with O(method=rslave).
      - One small process on the host, C(crashcart-watchdog), sees to it, and ends when nothing is left to watch.
    type: str
  busy:
    description:
      - What to do when processes use the tools that are to be detached.
      - V(fail) names them and leaves the mount. V(wait) waits for their end, V(kill) kills them, and both name who is left after
        O(busy_timeout). V(lazy) takes the mount out of sight at once; it ends with the last process that uses it.
      - Of tools in an rslave volume only the selected containers' users are named, waited for or killed.
    type: str
    choices: [fail, wait, kill, lazy]
    default: fail
  busy_timeout:
    description:
      - How long O(busy=wait) and O(busy=kill) last for each container at most, for example V(30s) or V(5m).
    type: str
    default: 30s
seealso:
  - module: crashcart.fleet.crashcart_image
  - module: crashcart.fleet.crashcart_exec
"""

EXAMPLES = r"""
- name: Attach the default image to two containers
  crashcart.fleet.crashcart_attach:
    containers: [api, "worker-*"]
  become: true
  register: attached

- name: Say how to get a shell in each
  ansible.builtin.debug:
    msg: "{{ attached.attachments | map(attribute='shell') }}"

- name: Attach to every container of a compose project that has no health check
  crashcart.fleet.crashcart_attach:
    labels:
      com.docker.compose.project: shop
    query: "Config.Healthcheck == null"
  become: true

- name: Attach for two hours, whatever happens to this controller
  crashcart.fleet.crashcart_attach:
    containers: api
    ttl: 2h
  become: true

- name: Detach everything on the host
  crashcart.fleet.crashcart_attach:
    state: detached
  become: true
"""

RETURN = r"""
lines:
  description: A line for people for each of RV(attachments), with the container, when it ends by itself, and the line that gives a shell.
  returned: as RV(attachments)
  type: list
  elements: str
  sample: ["api, until 2026-09-21T14:13:20Z: docker exec -it 3f4e1c0c9b0b /dev/crashcart/bin/bash"]
attachments:
  description: The selected containers' attachments as they are after the task, also where it failed at some of them.
  returned: always, unless the task failed for all alike, as by its selection
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
      description: Its first process on the host.
      type: int
      sample: 4711
    path:
      description: Where the tools are in the container.
      type: str
      sample: /dev/crashcart
    image:
      description: Name of the image.
      type: str
      sample: default
    digest:
      description: The image's sha256.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    method:
      description: How it was attached.
      type: str
      sample: fsmount
    expires:
      description: When it goes away by itself, in seconds since the epoch by the host's clock; V(null) when it stays.
      type: float
      sample: 1790000000.25
    expires_at:
      description: The same for people, in UTC as ISO 8601 has it.
      type: str
      sample: "2026-09-21T14:13:20Z"
    shell:
      description: A line for the controller's terminal that gives an interactive shell in the container.
      type: str
      sample: ssh -t admin@web1 sudo docker exec -it 3f4e1c0c9b0b /dev/crashcart/bin/bash
selected:
  description: Names of the containers that the selection means here, also in check mode.
  returned: success, and where some of them failed
  type: list
  elements: str
  sample: [api, web]
not_found:
  description: Names and ids of the selection that no container here has; without O(allow_empty) that is an error, or a warning.
  returned: as RV(selected)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers that failed, each with the reason and the next step; the message of the task says the same.
    - In the others what was asked for is done.
  returned: always, unless the task failed for all alike, as by its selection
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
  description: Why this method was chosen for containers that lacked the image.
  returned: as RV(attachments), with O(state=attached)
  type: str
  sample: the kernel has detached mounts, which need nothing of the container
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach import (
    attach,
    attachments,
    expiry_watchdog,
    methods,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.attach.shells import shell_line
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_seconds


def run_detached(module, host, outcome):
    """See to it that the selected containers have nothing attached. With everything nobody waits for what users of the host have made."""
    parameters = module.params
    options.require_selection(module, "whatever is attached on the host")
    containers = options.select(module, host, required=False, missing_ok=True)
    busy = attachments.Busy(parameters["busy"], parse_seconds(parameters["busy_timeout"], "busy_timeout"))

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
    own = [one for one in containers if one.owner_uid is None]
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
        "attachments": [{**one.as_result(), "shell": shell_line(one, host)} for one in change.after],
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
