# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The supervisor's other end: how the module starts it, and what it hands over for each command."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import command, supervisor
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.image_mounts import NO_DETACHED_MOUNTS
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import Job
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, syscalls


class Server:
    """The supervisor of a module's commands, a small process of its own. Use as a context manager."""

    def __enter__(self) -> Server:
        self._control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_control, _open_read_only(sys.executable) as python:
            fd = far_control.fileno()
            self._process = subprocess.Popen(
                background.make_command(supervisor.serve, fd),
                executable=f"/proc/self/fd/{python}",
                pass_fds=[fd, python],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what kills the module's group must leave it time to end the commands
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()
        self._process.wait()

    def send(self, fds: Mapping[str, int], *, confined: bool) -> None:
        """Have a command started with the descriptors FDS."""
        message = json.dumps({"confined": confined, "names": list(fds)}).encode("ascii")
        self._control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds.values()))])


@contextmanager
def _open_read_only(program: str) -> Iterator[int]:
    """A descriptor of PROGRAM by a read-only mount of its own.

    Processes that were started by it enter containers, and /proc/PID/exe is a way to the file: whoever may trace them there
    (CAP_SYS_PTRACE) must not be able to write to it.
    """
    try:
        fd = syscalls.open_tree(-1, os.path.realpath(program), syscalls.OPEN_TREE_CLONE)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise FleetError(NO_DETACHED_MOUNTS) from error
        raise
    try:
        syscalls.mount_setattr(fd, give=syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before Linux 5.12
            os.close(fd)
            raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_descriptors(job: Job) -> Iterator[dict[str, int]]:
    """What is needed to enter the container of JOB, and the order, by the names that command.py tells."""
    process = job.target.process
    with ExitStack() as stack:
        far = {"image": job.mount_fd, **{command.JOIN + name: fd for name, fd in job.groups.items()}}
        for name in job.command.namespaces:
            # The kernel refuses to enter the user namespace that one is in; time namespaces came with Linux 5.6.
            if name not in ("user", "time") or _has_own(job, name):
                far[name] = process.open(f"ns/{name}")
                stack.callback(os.close, far[name])
        if "mnt" in far:
            far["root"] = process.open("root", os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, far["root"])
        far[command.FIRST_PROCESS] = syscalls.pidfd_open(process.pid)
        stack.callback(os.close, far[command.FIRST_PROCESS])
        process.read_start_ticks()  # raises when the pid was somebody else's by now
        far["order"] = _write_order(job)
        stack.callback(os.close, far["order"])
        yield far


def _has_own(job: Job, name: str) -> bool:
    try:
        return job.target.process.namespace(name) != os.readlink(f"/proc/self/ns/{name}")
    except FileNotFoundError:
        return False


def _write_order(job: Job) -> int:
    """A memory file with what has to be known beside the descriptors."""
    order = {
        "program": job.program,
        "argv": job.command.argv,
        "environment": job.environment,
        "chdir": job.command.chdir,
        "confined": job.command.confined,
        "rights": asdict(job.rights),
        "prefix": job.prefix,
        "first_process": job.target.process.pid,
    }
    fd = os.memfd_create("crashcart-order")
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(order).encode("ascii"))  # json.dump takes ten times as long
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
