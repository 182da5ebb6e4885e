#!/usr/bin/python
# Copyright: The crashcart.fleet contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: crashcart_exec
short_description: Run a command of a tool image in running containers
description:
  - Runs a command in the namespaces of each selected container, all of them side by side.
  - Nothing has to be attached. The tools are mounted in a private copy of the container's mount namespace, which its own
    processes do not see and which ends with the command. Where an image is attached, that one is used.
  - The command has the privileges of the host's root unless O(user) says otherwise, and it runs outside the container's
    control groups, seccomp filter and security labels, which is what C(strace), C(gdb) and C(tcpdump) need.
  - Whatever the command leaves running is ended when the command itself ends.
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
    details: Needs root on the host.
  check_mode:
    support: partial
    details: In check mode the containers and the image are looked for, and no command is run.
  delegation:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details: A command is run each time.
  platform:
    platforms: linux
    support: full
options:
  argv:
    description:
      - The command as a list. A bare name is looked for in the image only, never in the container; a path is taken as it is.
      - Exactly one of O(argv) and O(cmd) is needed.
    type: list
    elements: str
  cmd:
    description:
      - The command as a string, split into words as a shell would, but run without a shell.
      - For pipes and the like give a shell in O(argv), V([bash, -c, "ss -tnp | head"]).
    type: str
  env:
    description:
      - Environment variables. The command has these, what the image sets for its tools, C(HOME), C(LANG), C(PATH) and C(TERM), and nothing else.
    type: dict
    default: {}
  stdin:
    description:
      - Text for the command's standard input. Without it the input is empty.
    type: str
  chdir:
    description:
      - Folder of the container to run in.
    type: str
    default: /
  user:
    description:
      - Whom to run as, a name of the container's C(/etc/passwd), or numbers as V(1000) or V(1000:1000).
    type: str
  timeout:
    description:
      - After this time the command is killed with everything that it has started, for example V(30s) or V(10m); a plain number means seconds.
      - Without it the command may run for ever.
    type: str
  image:
    description:
      - Name of the image in the host's store. Without it, the one that is attached, else V(default).
    type: str
seealso:
  - module: crashcart.fleet.crashcart_attach
"""

EXAMPLES = r"""
- name: See who talks to whom
  crashcart.fleet.crashcart_exec:
    containers: api
    argv: [ss, -tnp]
  become: true
  register: sockets

- name: Show it
  ansible.builtin.debug:
    msg: "{{ sockets.results[0].stdout_lines }}"

- name: Trace file access of the first process for five seconds
  crashcart.fleet.crashcart_exec:
    containers: "api-*"
    argv: [timeout, "5", strace, -f, -e, trace=file, -p, "1"]
    timeout: 20s
  become: true
"""

RETURN = r"""
results:
  description: How the command ended in each container, in the order of the engine's list.
  returned: always, unless the selection failed or in check mode
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
    rc:
      description: The command's exit code, 128 + n if signal n ended it.
      type: int
      sample: 0
    stdout:
      description: What it wrote to its standard output, at most 4 MiB.
      type: str
      sample: State Recv-Q Send-Q
    stdout_lines:
      description: The same as a list of lines.
      type: list
      elements: str
      sample: ["State Recv-Q Send-Q"]
    stdout_truncated:
      description: Whether there was more.
      type: bool
      sample: false
    stderr:
      description: What it wrote to its standard error, at most 4 MiB.
      type: str
      sample: ""
    stderr_truncated:
      description: Whether there was more.
      type: bool
      sample: false
    timed_out:
      description: Whether it was killed because its time was over; the module fails then.
      type: bool
      sample: false
    start:
      description: When it was started, in seconds since the epoch by the host's clock.
      type: float
      sample: 1790000000.25
    end:
      description: When it had ended.
      type: float
      sample: 1790000000.5
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import NAMESPACES, Output
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.sessions import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes, parse_seconds


def run(module):
    require_root()
    parameters = module.params
    command = execution.parse_command(
        argv=parameters["argv"],
        cmd=parameters["cmd"],
        env=parameters["env"],
        stdin=parameters["stdin"],
        chdir=parameters["chdir"],
        timeout_s=parse_seconds(parameters["timeout"], "timeout"),
        namespaces=parameters["namespaces"],
        confined=parameters["confined"],
        chosen=parameters["capabilities"],
    )
    max_output = parameters["max_output"]
    output = Output(
        max_bytes=None if max_output is None else parse_bytes(max_output, "max_output"),
        encoding=parameters["encoding"],
        dest=parameters["dest"],
    )
    with Server() as server:  # which starts while the engine answers
        containers = options.select(module, options.open_host(module), required=True)
        results = execution.execute(
            containers, command, parameters["user"], parameters["image"], server, output, check_mode=module.check_mode
        )
    return {"changed": True, "results": results}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            argv=dict(type="list", elements="str"),
            cmd=dict(type="str"),
            env=dict(type="dict", default={}),
            stdin=dict(type="str"),
            chdir=dict(type="str", default="/"),
            user=dict(type="str"),
            timeout=dict(type="str"),
            image=dict(type="str"),
            confined=dict(type="bool", default=False),
            capabilities=dict(type="list", elements="str"),
            namespaces=dict(type="list", elements="str", choices=list(NAMESPACES)),
            max_output=dict(type="str"),
            encoding=dict(type="str", default="text", choices=["text", "base64"]),
            dest=dict(type="path"),
        ),
        mutually_exclusive=[("argv", "cmd")],
        required_one_of=[("argv", "cmd")],
        supports_check_mode=True,
    )
    run_module(module, run)


if __name__ == "__main__":
    main()
