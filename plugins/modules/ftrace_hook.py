#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ftrace_hook
short_description: Have containers traced that ask for it when they are created
description:
  - Installs a program that a container runtime runs when it starts a container, and that has the container traced before its first
    instruction. A container asks for it when it is created, for example with C(docker run --device crashcart.fleet/trace=startup).
  - A standing rule (M(crashcart.fleet.ftrace_instance) with C(state=awaiting)) needs none of this, and is the better way where names or labels
    tell which containers to trace. The hook is for a choice at C(docker run), and for a start that waits until its trace is on.
  - The container starts whatever becomes of its trace, after 2 seconds at the latest. Only where the shell that is the hook's first process is
    killed with C(SIGKILL) does the runtime give up the start.
  - Engines read a device's description from a file (Container Device Interface). Docker does so from version 28.2 on. An older Docker gets
    runtimes, which its daemon learns of by a reload. No daemon is restarted.
  - The role P(crashcart.fleet.start_hook#role) calls this module.
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
    description:
      - Whether the hook is to be on the host.
      - V(absent) lists the containers, stopped ones, too, that were created with a device or runtime of the hook and could not start without
        it, and fails where there are any, or where an engine does not say, unless O(force) or O(keep_stub) is set.
    type: str
    choices: [present, absent]
    default: present
  profiles:
    description:
      - What containers can ask for. Each is a device C(crashcart.fleet/trace=NAME), the value of the annotation C(crashcart.trace) for Podman
        and CRI-O, and the runtime C(crashcart-NAME) of an older Docker. The first is also the runtime C(crashcart).
      - All containers of a profile that run at the same time share one trace instance, whose events are sorted by container when they are
        fetched. Options without a description here are those of M(crashcart.fleet.ftrace_instance).
    type: list
    elements: dict
    default: [{name: startup}]
    suboptions:
      name:
        description: Name of the profile, of small letters, digits and C(-).
        type: str
        required: true
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
        description:
          - How much is kept on the host of the trace that runs, and how much of earlier ones. What is older is removed. V(256MiB) by default.
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
        description: How many containers are traced at once. What starts beyond that is not traced, which is noted.
        type: int
        default: 20
      max_time:
        description: How long each container is traced from its start on, for example V(30s). By default until it ends.
        type: str
      idle:
        description:
          - How long the trace goes on where none of its containers runs. While any system call is traced on a host, all processes there enter
            system calls more slowly. The first start after that waits some tenths of a second longer.
        type: str
        default: 10m
  ways:
    description:
      - How engines run the hook. V(cdi) is a file in C(/etc/cdi). V(hooks) are files in C(/usr/share/containers/oci/hooks.d), which Podman and
        CRI-O read. V(runtime) are runtimes in the configuration of Docker's daemon.
      - By default V(cdi), V(hooks) where Podman or CRI-O is installed, and V(runtime) where the installed Docker is older than 28.2.
    type: list
    elements: str
    choices: [cdi, hooks, runtime]
  docker_host:
    description: The Docker engine for O(ways=runtime), as in C(DOCKER_HOST).
    type: str
  docker_config:
    description:
      - The configuration file of Docker's daemon. All else in it is kept. V(absent) finds a file elsewhere that this module has changed on this
        host.
    type: path
    default: /etc/docker/daemon.json
  docker_pidfile:
    description: The file with the pid of Docker's daemon, which is told to read its configuration again.
    type: path
    default: /run/docker.pid
  keep_stub:
    description: With O(state=absent), leave devices and runtimes that trace nothing, so that containers that were created with them can start.
    type: bool
    default: false
  force:
    description:
      - Remove what containers need all the same. These do not start any more. Runtimes by which containers run stay until they have ended, and
        go with the next call.
    type: bool
    default: false
seealso:
  - module: crashcart.fleet.ftrace_instance
  - module: crashcart.fleet.ftrace_fetch
"""

EXAMPLES = r"""
- name: Let containers be traced from their first instruction if they ask for it
  crashcart.fleet.ftrace_hook:
    profiles:
      - name: startup
      - name: diagnose
        profile: diagnose
        max_containers: 5
        max_time: 5m
  become: true

- name: Take the hook away, and let containers start that were created with its device
  crashcart.fleet.ftrace_hook:
    state: absent
    keep_stub: true
  become: true
"""

RETURN = r"""
changes:
  description: The files that were changed or, in check mode, would be.
  returned: success
  type: list
  elements: str
  sample: [/usr/libexec/crashcart/start-hook, /etc/crashcart/start-hook.json, /etc/cdi/crashcart.fleet-trace.json]
ways:
  description: How engines run the hook. Empty with O(state=absent).
  returned: success
  type: list
  elements: str
  sample: [cdi, hooks]
lines:
  description: How a container asks for its trace, a line for each profile and way.
  returned: success
  type: list
  elements: str
  sample: ["startup: docker run --device crashcart.fleet/trace=startup"]
users:
  description:
    - The containers that were created with a device or a runtime of the hook, stopped ones, too, each with C(name), C(id), C(engine), C(state),
      C(by), C(restarts) and C(error).
    - C(is_hindered) is V(true) where the engine was to start the container again by itself, and could not.
  returned: success
  type: list
  elements: dict
  sample:
    - name: api
      id: 3f4e1c0c9b0b
      engine: docker
      state: running
      by: [crashcart.fleet/trace=startup]
      restarts: true
      error: ""
      is_hindered: false
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.docker_engine import DockerEngine
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import setup, users, wiring
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook.daemon_file import find_files
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.installed.steps import changing, take
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import tracefs
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape

_PROFILE = dict(
    name=dict(type="str", required=True),
    **arguments.OF_RULES,
    max_containers=dict(type="int", default=20),
    max_time=dict(type="str"),
    idle=dict(type="str", default="10m"),
)


def find_docker(module, ways, has_runtimes):
    """Return the Docker daemon that gets runtimes, or has them; None where neither is so."""
    chosen = module.params
    if wiring.RUNTIMES not in ways and not has_runtimes:
        return None
    try:
        engine = DockerEngine(chosen["docker_host"])
    except ContainerError:
        if wiring.RUNTIMES in ways:
            raise
        engine = None  # what is not there has read nothing
    return setup.Docker(engine, chosen["docker_config"], chosen["docker_pidfile"])


def describe_use(names, ways):
    found = []
    for name in names:
        if wiring.CDI in ways:
            found.append(
                f"{name}: docker run --device {wiring.KIND}={name} (Docker 28.2 or later), podman run --device {wiring.KIND}={name}"
            )
        if wiring.HOOKS in ways:
            found.append(f"{name}: podman run --annotation {wiring.ANNOTATION}={name}")
        if wiring.RUNTIMES in ways:
            found.append(f"{name}: docker run --runtime {wiring.RUNTIME}-{name}")
    return found


def plan(module, found, troubles):
    """Return the names of the profiles that are left, the ways, and the steps.

    FOUND are the containers that need the hook, and TROUBLES say of which others that is not known.
    """
    chosen = module.params
    used = setup.list_used(found)
    if chosen["state"] == "absent":
        chosen["docker_config"], chosen["docker_pidfile"] = find_files(
            chosen["docker_config"], chosen["docker_pidfile"]
        )
    has_runtimes = setup.has_runtimes(chosen["docker_config"])
    if chosen["state"] == "present":
        wanted = setup.complete_profiles(chosen["profiles"], tracefs.find_for(module))
        ways = chosen["ways"] or setup.choose_ways(has_runtimes)
        docker = find_docker(module, ways, has_runtimes)
        names = list(wanted)
        kept = [
            *(wiring.name_devices(names) if wiring.CDI in ways else ()),
            *(wiring.name_runtimes(names) if wiring.RUNTIMES in ways else ()),
        ]
        before = {*wiring.name_devices(setup.list_devices()), *setup.list_runtimes(docker)}
        if not before <= set(kept) and not chosen["force"]:
            setup.check_users(found, troubles, kept)
        return names, ways, setup.plan_presence(wanted, ways, docker, used)
    docker = find_docker(module, [], has_runtimes)
    if chosen["keep_stub"]:
        return [], [], setup.plan_stub(docker, used)
    if not chosen["force"]:
        setup.check_users(found, troubles, [])
    return [], [], setup.plan_absence(docker, used)


def list_users(module, host):
    """Return the containers that need the hook, and texts that say of which others that is not known, of which there is a warning."""
    # Descriptions of devices are for all engines of the host, also where one is named.
    hosts = [host]
    if module.params["docker_host"] is not None:
        hosts.append(Host(None))
        hosts[1].errors.pop("docker", None)  # it is at docker_host
    found, troubles = {}, []
    for one in hosts:
        users_of_one, troubles_of_one = users.list_users(one)
        found.update((user.id, user) for user in users_of_one)
        troubles += troubles_of_one
    if troubles:
        module.warn(escape(f"which containers need the hook is not known: {'; '.join(troubles)}"))
    return list(found.values()), troubles


def run(module):
    require_root()
    host = options.open_host(module)
    with changing(check_mode=module.check_mode):
        found, troubles = list_users(module, host)
        names, ways, steps = plan(module, found, troubles)
        changes = take(steps, check_mode=module.check_mode)
    return {
        "changed": bool(changes),
        "changes": changes,
        "ways": ways,
        "lines": describe_use(names, ways),
        "users": [{**vars(user), "is_hindered": user.is_hindered} for user in found],
        "diff": {"before": "", "after": "".join(f"{what}\n" for what in changes)},
    }


def main():
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=["present", "absent"], default="present"),
            profiles=dict(type="list", elements="dict", options=_PROFILE, default=[{"name": "startup"}]),
            ways=dict(type="list", elements="str", choices=list(wiring.WAYS)),
            docker_host=dict(type="str"),
            docker_config=dict(type="path", default="/etc/docker/daemon.json"),
            docker_pidfile=dict(type="path", default="/run/docker.pid"),
            keep_stub=dict(type="bool", default=False),
            force=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
