# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's side of the supervisor: its start, and the descriptors that it gets for each command."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Iterator, Mapping

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import command, filter_cache, supervisor
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import CONTAINER, Job
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import Target
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, capabilities, processes, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.read_only import enter_read_only_view
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN

_FILTERS = os.path.join(RUN, "seccomp")


_KEPT_VARIABLES = ("LD_LIBRARY_PATH",)  # some Pythons need it to find their own library


class Server:
    """The supervisor of commands, a small process of its own; a context manager, to be entered before other threads are started.

    The supervisor's children enter containers, where a process that may trace them (CAP_SYS_PTRACE) reaches all that they have. So the
    supervisor sees the host's files read-only, and has neither the caller's variables nor its descriptors.
    """

    def __enter__(self) -> Server:
        self._control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._filters_fd = filter_cache.open_folder(_FILTERS)
        with far_control, enter_read_only_view():
            fd = far_control.fileno()
            self._process = subprocess.Popen(
                background.make_command(supervisor.serve, fd),
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # a signal to the caller's group must not kill it before it has ended the commands
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self._control.close()
        os.close(self._filters_fd)
        self._process.wait()

    def send(self, fds: Mapping[str, int]) -> None:
        """Have the supervisor start a command with the descriptors FDS."""
        given = {**fds, command.FILTERS: self._filters_fd}
        message = json.dumps(list(given)).encode("ascii")
        self._control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given.values()))])


@contextmanager
def open_descriptors(job: Job) -> Iterator[dict[str, int]]:
    """Yield the descriptors that a process needs to enter the container of JOB, and the order, by the names in command.py."""
    process = job.target.process
    with ExitStack() as stack:
        far = {"image": job.mount_fd, **{command.JOIN + name: fd for name, fd in job.groups.items()}}
        for name in job.command.namespaces:
            # The kernel refuses to enter the user namespace in which the process already is; time namespaces need Linux 5.6.
            if name not in ("user", "time") or _has_own(job, name):
                far[name] = process.open(f"ns/{name}")
                stack.callback(os.close, far[name])
        if "mnt" in far:
            far["root"] = process.open("root", os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, far["root"])
        far[command.FIRST_PROCESS] = syscalls.pidfd_open(process.pid)
        stack.callback(os.close, far[command.FIRST_PROCESS])
        process.read_start_ticks()  # raises ProcessGone if the pid may have been another process's
        far["order"] = _write_order(job)
        stack.callback(os.close, far["order"])
        yield far


def _has_own(job: Job, name: str) -> bool:
    try:
        return job.target.process.namespace(name) != os.readlink(f"/proc/self/ns/{name}")
    except FileNotFoundError:
        return False


def _may_unmount(target: Target) -> bool:
    """Return True if processes of TARGET may unmount in its mount namespace.

    The first process may have given up rights that others still have, so its bounding set alone does not tell.
    """
    sets = capabilities.parse_sets(processes.parse_status(target.process.read("status")))
    return target.container.may_mount or bool(sets.bounding & capabilities.parse_names(["SYS_ADMIN"]))


def _write_order(job: Job) -> int:
    """Return a memory file with the part of the order that is not in descriptors."""
    order = {
        "program": job.program,
        "argv": job.command.argv,
        "environment": job.environment,
        "chdir": job.command.chdir,
        "rights": asdict(job.rights),
        "prefix": job.prefix,
        "view": {"names_must_hold": job.command.rights != CONTAINER, "may_unmount": _may_unmount(job.target)},
    }
    fd = os.memfd_create("crashcart-order")
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(order).encode("ascii"))  # json.dump takes ten times as long
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
