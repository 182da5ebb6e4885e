# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes between a module and its commands in containers: a server, and for each command a supervisor.

The server is a small program of its own: to fork the module, with all of Ansible and an engine's SDK in it, takes several
times as long. A supervisor lives in the container's pid namespace and the host's mount namespace, and the command is its
child. Whatever the command starts and leaves comes back to it (it is a subreaper), wherever that has moved. It reaps all of
it, and when the command has ended, or the module asks, or the module is gone, it kills what is left.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
from typing import Any, NoReturn

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.private_view import enter_private_copy
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import MountNamespace, close_all_but

# The descriptors that come with an order: namespaces by their names in /proc/PID/ns, the container's root, the image's mount,
# a memory file with the order itself, the command's stdin, stdout and stderr, and the channel to the module; where the order
# has a scratch folder, its mount.
DESCRIPTORS = (
    "pid",
    "net",
    "ipc",
    "uts",
    "mnt",
    "root",
    "image",
    "order",
    "stdin",
    "stdout",
    "stderr",
    "channel",
    "scratch",
)
_TITLE = "crashcart"
_ENTERED = {"net": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC, "uts": syscalls.CLONE_NEWUTS}
_KILL_S = 0.01  # between two rounds of killing


def serve(control_fd: int) -> None:
    """Start a supervisor for each message of DESCRIPTORS that comes through CONTROL_FD, until that is closed."""
    gc.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors answer through their channels
    control = socket.socket(fileno=control_fd)
    while True:
        fds = array.array("i")
        message, ancillary, _flags, _address = control.recvmsg(
            1, socket.CMSG_SPACE(len(DESCRIPTORS) * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return
        for _level, _type, data in ancillary:
            fds.frombytes(data)
        start(dict(zip(DESCRIPTORS, fds)))
        for fd in fds:
            os.close(fd)


def start(given: dict[str, int]) -> None:
    """Start a supervisor with the descriptors GIVEN; its pid, or why there is none, goes through the channel."""
    try:
        syscalls.setns(given["pid"], syscalls.CLONE_NEWPID)  # for children only
        pid = os.fork()
        if pid == 0:
            _supervise(given)
        _say(given["channel"], {"pid": pid})
    except OSError as error:  # ENOMEM: a pid namespace whose first process has ended takes no more
        _say(given["channel"], {"error": f"cannot enter the container, it may have just ended: {error}"})


def _supervise(given: dict[str, int]) -> NoReturn:
    """Start the ordered command and see it to its end; the channel takes lines of JSON: ready (with the private mount
    namespace), rc (when nothing of it is left) or error."""
    channel = given["channel"]
    try:
        os.setsid()
        close_all_but(set(given.values()))
        woken, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        syscalls.set_child_subreaper()
        processes.set_title(_TITLE)
        with open(given["order"], encoding="ascii") as file:
            order = json.load(file)
        command = os.fork()
        if command == 0:
            _become_command(given, order)
        close_all_but({channel, woken, waker})
        _say(channel, {"rc": _wait_for_all(command, channel, woken)})
    except BaseException as error:
        _say(channel, {"error": str(error)})
    finally:
        os._exit(0)


def _wait_for_all(command: int, channel: int, woken: int) -> int:
    """Reap until no child is left; how COMMAND ended, as shells tell it: the exit code, or 128 + the signal."""
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
            select.select([woken], [], [], _KILL_S)
        else:
            ready, _write, _error = select.select([woken, channel], [], [])
            ending = channel in ready  # the module has closed its end, or a half of it
        try:
            os.read(woken, 4096)
        except BlockingIOError:
            continue


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


def _become_command(given: dict[str, int], order: dict[str, Any]) -> NoReturn:
    """Enter the container, build the private view of it, and run the command."""
    channel = given["channel"]
    try:
        os.setsid()  # so that its `kill 0` is its own affair
        for wanted, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(given[name], wanted)
        for name, kind in _ENTERED.items():
            syscalls.setns(given[name], kind)
        own_namespaces = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # as the host sees them
        namespace = MountNamespace(given["mnt"], given["root"])
        enter_private_copy(namespace, given["image"], order["prefix"], given.get("scratch"))
        os.chdir(order["chdir"])
        uid, gid, groups = order["user"]
        if (uid, gid) != (0, 0) or groups:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            # The container's setuid programs would get the host's capabilities, not the container's.
            syscalls.set_no_new_privileges()
        # Should somebody kill the supervisor, the command goes with it; after the change of user, which would undo this.
        syscalls.set_parent_death_signal(signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores these, and a command would inherit that
        _say(channel, {"ready": os.readlink("mnt", dir_fd=own_namespaces)})
        os.execve(order["program"], order["argv"], order["environment"])
    except BaseException as error:
        _say(channel, {"error": f"cannot run {order['program']}: {error}"})
    finally:
        os._exit(127)


def _say(channel: int, message: dict[str, Any]) -> None:
    try:
        os.write(channel, json.dumps(message).encode("ascii") + b"\n")
    except OSError:
        return  # the module is gone
