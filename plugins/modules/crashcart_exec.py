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
  - Runs a command in the namespaces of each selected container, in all containers at the same time.
  - No image has to be attached. The tools are mounted in a private copy of the container's mount namespace, which the container's own
    processes do not see and which ends with the command. An image that is attached is used, unless the container has moved it.
  - The command is in the container's control groups and shares their limits. When the container runs out of memory, the kernel kills the
    command first.
  - By default the command may do what the container's first process may, and has the two capabilities that C(strace), C(gdb), C(lsof),
    C(ss -p) and C(tcpdump) need. O(rights) gives it less or more.
  - All processes that the command has started are killed when the command ends, or when the container does.
  - A command that ends with another exit code than 0 fails the task at its end, as with M(ansible.builtin.command). The message has the
    exit code and the last line of the standard error. Use C(failed_when) to accept other exit codes, see the examples.
  - A container in which the command cannot be run does not stop the others. The task fails at its end, and says which containers failed
    and in which the command ran. RV(failed_containers) has the reasons.
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
    details: The module needs root on the host. A failure names the capabilities that are missing.
  check_mode:
    support: partial
    details: Check mode looks for the containers and the image, but runs no command and writes no file.
  delegation:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    details: The command is run each time.
  platform:
    platforms: linux
    support: full
options:
  argv:
    description:
      - The command as a list of words. A bare name is looked up in the image only, never in the container. A path is used as it is.
      - Exactly one of O(argv) and O(cmd) is required.
      - Every user of the host can read the words while the command runs, and the host's log has them. Pass secrets by O(env) or O(stdin).
    type: list
    elements: str
  cmd:
    description:
      - The command as a string. It is split into words as a shell would, and run without a shell.
      - To use pipes and other features of a shell, run one by O(argv), for example V([bash, -c, "ss -tnp | head"]).
    type: str
  env:
    description:
      - Environment variables of the command. It has these, those that the image sets for its tools, C(HOME), C(LANG), C(PATH) and C(TERM),
        and no others.
      - Values that are no text are converted to YAML's spelling, for example V(true) or V(1.1). Quote V("yes") or V("1.10") to keep the
        spelling. Lists and dictionaries are an error.
      - C(HOME) is the home of the command's user in the container's C(/etc/passwd), or C(/) where the user has none.
      - Values appear neither in the host's log nor in the C(invocation) of a result. What the command itself prints is returned unchanged.
    type: dict
    default: {}
  stdin:
    description:
      - Text for the command's standard input. By default the input is empty.
      - The text appears neither in the host's log nor in the C(invocation) of a result.
    type: str
  chdir:
    description:
      - Folder of the container to run the command in. The command's user must be allowed to enter it.
    type: str
    default: /
  user:
    description:
      - User to run the command as, by the rules of C(docker exec). The form is V(USER) or V(USER:GROUP), each a name in the container's
        C(/etc/passwd) and C(/etc/group), or a number. In a user namespace numbers are those of the namespace.
      - The default is the user of the container's first process. With O(rights=host) the default is the host's root.
      - Without a group, the group is that of the user's entry in C(/etc/passwd), with the supplementary groups that C(/etc/group) has for
        this user. A number without an entry has the group 0. With a group there are no supplementary groups. Those that
        C(docker run --group-add) added belong to the container's first process only.
      - With O(rights=host) a user other than root has no capabilities except those in O(capabilities), and setuid programs give it no others. A
        name other than V(root) that the container's C(/etc/passwd) maps to number 0 is an error.
    type: str
  rights:
    description:
      - What the command may do.
      - With V(container) it may do what the container's first process may, as with C(docker exec). It has that process's user and
        groups, all five capability sets, C(no_new_privs), AppArmor profile or SELinux context, seccomp filters, resource limits and all
        namespaces. As another O(user) it has the capabilities that an C(execve) by that user would give. O(capabilities) and
        O(namespaces) cannot be used.
      - With V(tools) it also has C(CAP_SYS_PTRACE) and C(CAP_NET_RAW), for users other than root as well, and the container's seccomp filters
        let C(ptrace) and C(process_vm_readv) pass. It fails for a container that shares its pid or network namespace with the host
        (C(--pid=host), C(--network=host)) or with other containers, such as those of its pod, or that has the host's C(/proc) mounted,
        because the capabilities would act on these, too.
      - With V(host) it has the capabilities of the host's root, and no seccomp filter, label or limits of the container. Use it only
        where a tool needs it, such as C(mount), because a container that takes over the tool can do anything on the host.
      - A program of the container, named by its path, always runs with V(container). RV(results[].rights) shows what was used.
      - To read a container's seccomp filters the module stops its first process by C(ptrace) for some ten microseconds, once for each start
        of the container. A system call that cannot be restarted, such as C(epoll_wait), may return C(EINTR) then, as after C(SIGSTOP) and
        C(SIGCONT). This requires C(CONFIG_CHECKPOINT_RESTORE) in the kernel, and that nobody else traces the process.
    type: str
    choices: [container, tools, host]
    default: tools
    version_added: 0.1.0
  trust_container:
    description:
      - Allow O(rights=host) with an image whose programs may load code from the container (C(sealed=false) in its manifest). That code then
        has the rights of the host's root.
      - Images that others have made, and some that are built from container images, need it.
    type: bool
    default: false
  confined:
    description:
      - The old name of O(rights=container).
    type: bool
    default: false
  capabilities:
    description:
      - Names of capabilities, for example V(NET_RAW) or V(CAP_SYS_PTRACE). An empty list means none.
      - With O(rights=tools) they replace the two default ones. A capability that acts on more than a process, a network namespace or an IPC
        namespace, such as V(SYS_ADMIN), is given only where the container has a user namespace of its own.
      - With O(rights=host) the command has these only. By default root has all capabilities of the host's root.
    type: list
    elements: str
  namespaces:
    description:
      - Namespaces of the container to enter. The default is all of them, and C(mnt), C(pid), C(net), C(ipc) and C(uts) with O(rights=host).
      - With O(rights=tools) V(mnt) and V(pid) are required, and V(user) is always entered. Where V(net) or V(ipc) is left out, the command has
        no capabilities that act on the host's namespace.
      - Without V(mnt) the command sees the host's files and C(/proc), even with V(pid), and the image at its prefix. A bare name is then a
        program of the image, a path a program of the host, and O(user) a user of the host. V([net]) corresponds to C(nsenter -n).
    type: list
    elements: str
    choices: [mnt, pid, net, ipc, uts, cgroup, time, user]
  timeout:
    description:
      - Time after which the command and everything that it has started are killed, for example V(30s) or V(10m). A plain number means
        seconds. By default there is no limit.
    type: str
  image:
    description:
      - Name of the image in the host's store. The default is the attached image, or V(default) where none is attached.
    type: str
  max_output:
    description:
      - How much of each output stream of a container is kept, for example V(100B), V(512KiB) or V(64MiB). The rest is counted and dropped.
      - The default is V(4MiB) for output in results, and no limit for output in files (O(dest)).
    type: str
  encoding:
    description:
      - How results contain the output. V(text) replaces bytes that are not UTF-8. V(base64) keeps all bytes.
    type: str
    choices: [text, base64]
    default: text
  dest:
    description:
      - Folder on the host to write the output to, as files C(CONTAINER-ID.stdout) and C(CONTAINER-ID.stderr). ID is the first twelve digits of
        the container's id. Characters of the name other than letters, digits, C(.), C(_) and C(-) are replaced. Only root can read the files.
      - The folder is created where it is missing. A file that exists already is an error and is not overwritten.
    type: path
seealso:
  - module: crashcart.fleet.crashcart_attach
"""

EXAMPLES = r"""
- name: List the connections of a container with their processes
  crashcart.fleet.crashcart_exec:
    containers: api
    argv: [ss, -tnp]
  become: true
  register: sockets

- name: Show the list
  ansible.builtin.debug:
    msg: "{{ sockets.results[0].stdout_lines }}"

- name: Search for a word, and accept that no file has it (exit code 1)
  crashcart.fleet.crashcart_exec:
    containers: "api-*"
    argv: [grep, -rl, debug, /etc/app]
  become: true
  register: found
  failed_when: found.results is not defined or found.results | map(attribute='rc') | difference([0, 1]) | length > 0

- name: Accept every exit code, and fail only where the command cannot be run
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

- name: Check whether the application itself can read a file
  crashcart.fleet.crashcart_exec:
    containers: api
    argv: [cat, /etc/app/secret.key]
    rights: container
  become: true

- name: Capture packets for a minute to a file on the host, with only the capabilities that this needs
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
  description: Names of the selected containers, also in check mode.
  returned: always, unless the task failed before it served any container
  type: list
  elements: str
  sample: [api, web]
not_found:
  description: Names and ids of the selection that match no container of this host. They fail the task unless O(allow_empty) accepts them.
  returned: as RV(selected)
  type: list
  elements: str
  sample: []
failed_containers:
  description:
    - The containers in which the command could not be run, or was killed by O(timeout), each with the reason and the next step.
    - Containers in which the command ended with another exit code than 0 are not listed. RV(results[].rc) has the code, and the message of
      the task names all of them.
  returned: as RV(selected)
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
  description: How the command ended in each container, in the order of the engine's list. Where it could not be run there is no output.
  returned: as RV(selected), but empty in check mode
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
      description: Exit code of the command. 128 + n if signal n ended it, -1 if it could not be run.
      type: int
      sample: 0
    msg:
      description: Why the command could not be run, or its output not be kept. Only there in these cases.
      type: str
      sample: "container api (3f4e1c0c9b0b) is exited: start it first"
    stdout:
      description: Standard output of the command in O(encoding), at most O(max_output). Not there with O(dest).
      type: str
      sample: State Recv-Q Send-Q
    stdout_lines:
      description: Lines of RV(results[].stdout). Only with O(encoding=text) and without O(dest).
      type: list
      elements: str
      sample: ["State Recv-Q Send-Q"]
    stdout_path:
      description: File on the host with the standard output. Only with O(dest).
      type: str
      sample: /var/tmp/packets/api-3f4e1c0c9b0b.stdout
    stdout_size:
      description: Bytes written to the standard output, including those that were dropped.
      type: int
      sample: 21
    stdout_truncated:
      description: Whether bytes of the standard output were dropped.
      type: bool
      sample: false
    stderr:
      description: Standard error of the command in O(encoding), at most O(max_output). Not there with O(dest).
      type: str
      sample: ""
    stderr_lines:
      description: Lines of RV(results[].stderr). Only with O(encoding=text) and without O(dest).
      type: list
      elements: str
      sample: []
    stderr_path:
      description: File on the host with the standard error. Only with O(dest).
      type: str
      sample: /var/tmp/packets/api-3f4e1c0c9b0b.stderr
    stderr_size:
      description: Bytes written to the standard error, including those that were dropped.
      type: int
      sample: 0
    stderr_truncated:
      description: Whether bytes of the standard error were dropped.
      type: bool
      sample: false
    timed_out:
      description: Whether O(timeout) killed the command. The task fails then.
      type: bool
      sample: false
    oom_killed:
      description:
        - Whether the kernel killed the command because the memory that it may use was used up. The task fails then, and says whose limit it was.
        - A command dies before the processes of the container do, and counts against the container's memory.
      type: bool
      sample: false
    rights:
      description: The O(rights) that the command had.
      type: str
      sample: tools
    start:
      description: When the command was started, in seconds since the epoch by the host's clock.
      type: float
      sample: 1790000000.25
    end:
      description: When the command ended, in seconds since the epoch by the host's clock.
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
    with Server() as server:  # started first: it gets ready while the engine answers
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
