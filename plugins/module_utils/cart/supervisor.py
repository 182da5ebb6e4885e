# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process that stands between a module and a command in a container.

It lives in the container's pid namespace and the host's mount namespace, and the command is its child. Whatever the command
starts and leaves comes back to it (it is a subreaper), wherever that has moved. It reaps all of it, and when the command has
ended, or the module asks, or the module is gone, it kills what is left.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Job
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.private_view import enter_private_copy
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.programs import find_program, read_environment
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    close_all_but,
    open_mount_namespace,
)

# The module's word that the command has to end.
END_SIGNAL = signal.SIGUSR1
_TITLE = "crashcart"
_NAMESPACES = {"net": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}
_LOOK_S = 0.2  # between looks whether the module is still there
_KILL_S = 0.01  # between two rounds of killing


def supervise(job: Job, stdio: tuple[int, int, int], channel: int) -> NoReturn:
    """Start JOB's command on STDIO and see it to its end; CHANNEL takes lines of JSON: ready, rc or error."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, END_SIGNAL})
        os.setsid()
        syscalls.set_child_subreaper()
        processes.set_title(_TITLE)
        environment = {**read_environment(job.mount_fd, job.prefix), **job.command.env}
        program = find_program(job.command.argv[0], job.mount_fd, job.prefix)
        namespaces = [(job.target.process.open(f"ns/{name}"), kind) for name, kind in _NAMESPACES.items()]
        mount_namespace = open_mount_namespace(job.target.process)
        kept = {fd for fd, _kind in namespaces} | {mount_namespace.namespace_fd, mount_namespace.root_fd, job.mount_fd}
        # Ends of other commands' pipes are here, too, and would keep them open.
        close_all_but(kept | {*stdio, channel})
        command = os.fork()
        if command == 0:
            _become_command(job, stdio, channel, namespaces, mount_namespace, program, environment)
        close_all_but({channel})
        _say(channel, {"rc": _wait_for_all(command, channel)})
    except BaseException as error:
        _say(channel, {"error": str(error)})
    finally:
        os._exit(0)


def _wait_for_all(command: int, channel: int) -> int:
    """Reap until no child is left; how COMMAND ended, as shells tell it: the exit code, or 128 + the signal."""
    os.set_blocking(channel, False)
    status = 0
    ending = False
    while True:
        try:
            pid, one_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if pid == command:
            status = one_status
            ending = True
        if pid:
            continue
        if ending:
            _kill_children()
        received = signal.sigtimedwait({signal.SIGCHLD, END_SIGNAL}, _KILL_S if ending else _LOOK_S)
        if received is not None and received.si_signo == END_SIGNAL:
            ending = True
        ending = ending or _is_closed(channel)


def _is_closed(channel: int) -> bool:
    try:
        return os.read(channel, 1) == b""
    except BlockingIOError:
        return False


def _kill_children() -> None:
    """Kill every child; theirs become ours and are killed the next time."""
    own = int(os.readlink("/proc/self"))  # the host's number of this process: /proc is the host's
    for pid in processes.read_pids():
        if processes.read_parent(pid) != own:
            continue
        try:
            with processes.Process(pid) as child:
                if processes.read_parent(pid) == own:
                    child.kill(signal.SIGKILL)
        except processes.ProcessGone:
            continue


def _become_command(
    job: Job,
    stdio: tuple[int, int, int],
    channel: int,
    namespaces: list[tuple[int, int]],
    mount_namespace: MountNamespace,
    program: str,
    environment: dict[str, str],
) -> NoReturn:
    """Enter the container, build the private view of it, and run the command."""
    try:
        os.setsid()  # so that its `kill 0` is its own affair
        for wanted, fd in enumerate(stdio):
            os.dup2(fd, wanted)
        for fd, kind in namespaces:
            syscalls.setns(fd, kind)
        enter_private_copy(mount_namespace, job.mount_fd, job.prefix)
        os.chdir(job.command.chdir)
        user = job.user
        if (user.uid, user.gid) != (0, 0) or user.groups:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        # Should somebody kill the supervisor, the command goes with it; after the change of user, which would undo this.
        syscalls.set_parent_death_signal(signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores these, and a command would inherit that
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        _say(channel, {"ready": True})
        os.execve(program, job.command.argv, environment)
    except BaseException as error:
        _say(channel, {"error": f"cannot run {program}: {error}"})
    finally:
        os._exit(127)


def _say(channel: int, message: dict[str, Any]) -> None:
    try:
        os.write(channel, json.dumps(message).encode("ascii") + b"\n")
    except OSError:
        return  # the module is gone
