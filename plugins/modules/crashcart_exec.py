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
    processes do not see and which ends with the command. Where an image is attached, that one is used, unless the container has moved it.
  - The command is in the container's control groups, so it shares its limits; where the container's memory ends the command is the first
    to be killed.
  - By default it may do what the container's first process may, and has the two capabilities besides that C(strace), C(gdb), C(lsof),
    C(ss -p) and C(tcpdump) need. O(rights) makes that less or more.
  - Whatever the command leaves running is ended when the command itself ends, or when the container does.
  - A command that ends with another exit code than 0 makes the task fail at its end, as M(ansible.builtin.command) does. Its message has the
    exit code and the last line of the standard error. C(failed_when) accepts other exit codes, see the examples.
  - A container in which the command cannot be run costs no other. The others are served, and the task fails at its end and names both.
    RV(failed_containers) says why.
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
    support: full
  become:
    support: full
    details: Needs root on the host. A failure names the capabilities that are missing.
  check_mode:
    support: partial
    details: In check mode the containers and the image are looked for, no command is run and no file is written.
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
      - Everybody on the host can read a command line while it runs, and it stands in the host's log. Give secrets in O(env) or O(stdin).
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
      - A value that is no text becomes one as YAML spells it, such as V(true) or V(1.1). Quotes keep V("yes") or V("1.10") as they are written.
        Lists and dictionaries are refused.
      - C(HOME) is the home that the container's C(/etc/passwd) gives to the command's user, and C(/) where it gives none.
      - Their values stand neither in the host's log nor in a result's C(invocation). What the command itself writes is returned as it is.
    type: dict
    default: {}
  stdin:
    description:
      - Text for the command's standard input. Without it the input is empty.
      - It stands neither in the host's log nor in a result's C(invocation).
    type: str
  chdir:
    description:
      - Folder of the container to run in, which the command's user must be allowed to enter.
    type: str
    default: /
  user:
    description:
      - Whom to run as, by the rules of C(docker exec). V(USER) or V(USER:GROUP), each of them a name of the container's C(/etc/passwd) and
        C(/etc/group), or a number. In a user namespace numbers are its own.
      - Without a group it is that of the user's entry, with the groups of C(/etc/group) that name this user, also for a number that
        has an entry. A number without an entry has the group 0. With a group there are no others. What C(docker run --group-add) added is
        for the container's first process only.
      - Without it the command runs as the container's first process does, or, with O(rights=host), as the host's root.
      - With O(rights=host) any other user than root has no capabilities but those in O(capabilities), and no setuid program gives it more.
        A name other than V(root) that the container's C(/etc/passwd) makes number 0 is refused then.
    type: str
  rights:
    description:
      - What the command may do.
      - With V(container) it may do what the container's own first process may, as C(docker exec) has it. It has that process's user and
        groups, all five capability sets, C(no_new_privs), AppArmor profile or SELinux context, seccomp filters, resource limits, and all of
        its namespaces. As another O(user) it has the capabilities that an C(execve) of that user would have there. This goes with
        neither O(capabilities) nor O(namespaces).
      - With V(tools) it has C(CAP_SYS_PTRACE) and C(CAP_NET_RAW) besides, also as a user who is not root, and C(ptrace) and
        C(process_vm_readv) pass the container's seccomp filters. The call fails for a container in whose pid or network namespace there are
        others, such as the host (C(--pid=host), C(--network=host)) or the other containers of a pod. The capabilities would act on those, too.
      - With V(host) it has the host root's capabilities, no seccomp filter, no label and no limits of the container. A tool that a
        container has taken over could do with the host what it likes, so ask for it only where a tool needs it, such as C(mount).
      - A program that is not of the image, named by its path in the container, is run with V(container) whatever is said here. The result's
        RV(results[].rights) tells.
      - To read a container's seccomp filters its first process is stopped by C(ptrace) for some ten microseconds, once for each start of
        the container. A system call that cannot be restarted, such as C(epoll_wait), may return C(EINTR) there, as after C(SIGSTOP) and
        C(SIGCONT). The kernel needs C(CONFIG_CHECKPOINT_RESTORE), and nobody else may trace that process.
    type: str
    choices: [container, tools, host]
    default: tools
    version_added: 0.1.0
  trust_container:
    description:
      - Whether O(rights=host) is allowed with an image whose programs may load code of the container (C(sealed=false) in its manifest).
      - Such are images of others' making, and some of container images. Code of the container then has the rights of
        the host's root.
    type: bool
    default: false
  confined:
    description:
      - The old name for O(rights=container).
    type: bool
    default: false
  capabilities:
    description:
      - Names of capabilities, for example V(NET_RAW) or V(CAP_SYS_PTRACE); an empty list means none.
      - With O(rights=tools) these are given instead of the two. One that does not act on a process, a network or IPC namespace alone, such
        as V(SYS_ADMIN), is given only where the container has a user namespace of its own.
      - With O(rights=host) they are the only ones that the command has. Without it root has all that the host's root has.
    type: list
    elements: str
  namespaces:
    description:
      - Which of the container's namespaces to enter. By default all of them, and with O(rights=host) C(mnt), C(pid), C(net), C(ipc) and C(uts).
      - With O(rights=tools) V(mnt) and V(pid) have to be among them, and V(user) is always entered. In a network or IPC namespace of the
        host the command has no capabilities that act on it.
      - Without V(mnt) the command sees the host's files, with the image at its prefix beside them; V([net]) is the case of C(nsenter -n),
        where a bare name is the image's program and a path the host's. O(user) is then a user of the host. C(/proc) is the host's, too,
        also with V(pid).
    type: list
    elements: str
    choices: [mnt, pid, net, ipc, uts, cgroup, time, user]
  timeout:
    description:
      - After this time the command is killed with everything that it has started, for example V(30s) or V(10m); a plain number means seconds.
      - Without it the command may run for ever.
    type: str
  image:
    description:
      - Name of the image in the host's store. Without it, the one that is attached, else V(default).
    type: str
  max_output:
    description:
      - How much of each output stream of a container is kept, for example V(100B), V(512KiB) or V(64MiB). The rest is counted and dropped.
      - By default V(4MiB) in results, and all of it in files (O(dest)).
    type: str
  encoding:
    description:
      - How results carry the output. With V(text) bytes that are not UTF-8 are replaced; V(base64) is for any bytes.
    type: str
    choices: [text, base64]
    default: text
  dest:
    description:
      - A folder on the host for the output, as files C(CONTAINER-ID.stdout) and C(CONTAINER-ID.stderr), where ID are twelve digits of the
        container's id and other characters of its name than letters, digits, C(.), C(_) and C(-) are replaced. Only root can read them.
      - The folder is made when it is missing. A file that is there already is never written to; the module fails.
    type: path
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

- name: Look for a word, and take it as no failure that it is not there (exit code 1)
  crashcart.fleet.crashcart_exec:
    containers: "api-*"
    argv: [grep, -rl, debug, /etc/app]
  become: true
  register: found
  failed_when: found.results is not defined or found.results | map(attribute='rc') | difference([0, 1]) | length > 0

- name: Fail only where the command cannot be run, whatever its exit code is
  crashcart.fleet.crashcart_exec:
    containers: "api-*"
    argv: [pgrep, -a, java]
  become: true
  register: found
  failed_when: found.results is not defined or found.failed_containers | length > 0

- name: Trace file access of the first process for five seconds, after which timeout ends with exit code 124
  crashcart.fleet.crashcart_exec:
    containers: "api-*"
    argv: [timeout, "5", strace, -f, -e, trace=file, -p, "1"]
    timeout: 20s
  become: true
  register: traced
  failed_when: traced.results is not defined or traced.results | map(attribute='rc') | difference([124]) | length > 0

- name: What the application itself could open
  crashcart.fleet.crashcart_exec:
    containers: api
    argv: [cat, /etc/app/secret.key]
    rights: container
  become: true

- name: Capture a minute of its packets, with no capability but those that takes, to a file on the host
  crashcart.fleet.crashcart_exec:
    containers: api
    argv: [timeout, --preserve-status, "60", tcpdump, -Z, root, -i, any, -U, -w, "-"]
    rights: host
    capabilities: [NET_RAW, NET_ADMIN, SETGID]
    namespaces: [net]
    dest: /var/tmp/packets
  become: true
"""

RETURN = r"""
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
    - The containers in which the command could not be run, or was killed as its time was over, each with the reason and the next step.
    - The command ran in the others. Those in which it ended with another exit code than 0 are not among these; RV(results[].rc) has it,
      and the message of the task names all.
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
results:
  description: How the command ended in each container, in the order of the engine's list.
  returned: always, unless the task failed for all alike, as by its selection, or in check mode
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
      description: The command's exit code, 128 + n if signal n ended it; -1 where it could not be run.
      type: int
      sample: 0
    stdout:
      description: What it wrote to its standard output, at most O(max_output), in O(encoding). Not with O(dest).
      type: str
      sample: State Recv-Q Send-Q
    stdout_lines:
      description: The same as a list of lines; in text only.
      type: list
      elements: str
      sample: ["State Recv-Q Send-Q"]
    stdout_path:
      description: With O(dest), the file that has it.
      type: str
      sample: /var/tmp/packets/api-3f4e1c0c9b0b.stdout
    stdout_size:
      description: How many bytes it wrote, also those that were dropped.
      type: int
      sample: 21
    stdout_truncated:
      description: Whether some were dropped.
      type: bool
      sample: false
    stderr:
      description: What it wrote to its standard error, at most O(max_output), in O(encoding). Not with O(dest).
      type: str
      sample: ""
    stderr_lines:
      description: The same as a list of lines; in text only.
      type: list
      elements: str
      sample: []
    stderr_path:
      description: With O(dest), the file that has it.
      type: str
      sample: /var/tmp/packets/api-3f4e1c0c9b0b.stderr
    stderr_size:
      description: How many bytes it wrote, also those that were dropped.
      type: int
      sample: 0
    stderr_truncated:
      description: Whether some were dropped.
      type: bool
      sample: false
    timed_out:
      description: Whether it was killed because its time was over; the module fails then.
      type: bool
      sample: false
    rights:
      description: What the command could do, as O(rights) has it.
      type: str
      sample: tools
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

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import NAMESPACES, RIGHTS, Output
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server
from ansible_collections.crashcart.fleet.plugins.module_utils.containers import options
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root, run_module
from ansible_collections.crashcart.fleet.plugins.module_utils.units import parse_bytes, parse_seconds


def run(module):
    require_root()
    parameters = module.params
    if parameters["confined"] and parameters["rights"] == "host":
        raise FleetError("confined is the old name for rights=container, and rights is host: leave confined out")
    wanted = CommandOptions(
        argv=parameters["argv"],
        cmd=parameters["cmd"],
        env=parameters["env"],
        stdin=parameters["stdin"],
        chdir=parameters["chdir"],
        timeout_s=parse_seconds(parameters["timeout"], "timeout"),
        namespaces=parameters["namespaces"],
        rights="container" if parameters["confined"] else parameters["rights"],
        capabilities=parameters["capabilities"],
        trust_container=parameters["trust_container"],
        user=parameters["user"],
        image=parameters["image"],
    )
    command = parse_command(wanted)
    max_output = parameters["max_output"]
    output = Output(
        max_bytes=None if max_output is None else parse_bytes(max_output, "max_output"),
        encoding=parameters["encoding"],
        dest=parameters["dest"],
    )
    with Server() as server:  # which starts while the engine answers
        outcome = Outcome()
        containers = options.select(module, options.open_host(module), required=True, refuse=outcome.fail)
        results = execution.execute(
            containers,
            outcome,
            command,
            server,
            output,
            check_mode=module.check_mode,
        )
    is_run = module.check_mode or any(report["start"] for report in results)
    result = {"results": results, **options.describe_selection(module, containers)}
    outcome.check(containers, "run", changed=is_run, **result)
    return {"changed": True, **result, "failed_containers": []}


def main():
    module = AnsibleModule(
        argument_spec=dict(
            options.ARGUMENTS,
            argv=dict(type="list", elements="str"),
            cmd=dict(type="str"),
            env=dict(type="dict", default={}, no_log=True),
            stdin=dict(type="str", no_log=True),
            chdir=dict(type="str", default="/"),
            user=dict(type="str"),
            timeout=dict(type="str"),
            image=dict(type="str"),
            rights=dict(type="str", default="tools", choices=list(RIGHTS)),
            trust_container=dict(type="bool", default=False),
            confined=dict(
                type="bool",
                default=False,
                removed_in_version="0.2.0",
                removed_from_collection="crashcart.fleet",
            ),
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
    run_module(module, run, hidden=("env", "stdin"))


if __name__ == "__main__":
    main()
