# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's half of the connection plugin: one command in one container, on the descriptors that ssh gave this process.

It is run as a program on the host, out of a folder that the plugin has put there. Its one argument is an Order as JSON.
What it has to say beside the command's own output goes to stderr as the last line, after a token that only the plugin knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import socket
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.cart import command as command_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.jobs import TOOLS, Job
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.private_view import SCRATCH_SUFFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.server import Server, open_descriptors
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerGoneError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector, select_containers
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import RUN, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import UserError
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

PREFIX = "/dev/crashcart"
SCRATCH = os.path.join(RUN, "scratch")
SCRATCH_PATH = PREFIX + SCRATCH_SUFFIX  # where commands see their connection's folder
_FORGOTTEN_S = 3600.0  # after which nobody comes back to a folder that no command uses
RC_OTHER = 254  # ssh keeps 255 for itself; with this one the last line of stderr tells the truth


@dataclass(frozen=True)
class Order:
    """What to do: run ARGV in CONTAINER (a name or an id) as USER.

    SCRATCH names the folder for temporary files of this connection. It is removed after the command unless KEEP says that another one
    needs what is in it; with ARGV empty that is all there is to do. SOURCE is a file of the host that is the command's stdin,
    SINK one that takes its stdout. TOKEN begins our own last line. Without a CONTAINER the running ones are listed, as JSON on stdout.
    """

    token: str
    container: str
    argv: list[str]
    image: str | None = None
    docker_host: str | None = None
    user: str | None = None
    scratch: str = ""
    keep: bool = False
    source: str = ""
    sink: str = ""
    rights: str = TOOLS
    trust_container: bool = False

    def as_json(self) -> str:
        """The argument for main."""
        return json.dumps(asdict(self))


def main() -> int:
    """Carry out the order in the first argument; the exit code is the command's."""
    order = Order(**json.loads(sys.argv[1]))
    try:
        require_root()
        rc = _carry_out(order)
    except (FleetError, OSError) as error:
        return _tell(order, {"error": str(error), "is_wish": isinstance(error, UserError)})
    return _tell(order, {"rc": rc}) if rc == 255 else rc


def _tell(order: Order, message: dict[str, Any]) -> int:
    sys.stderr.write(f"\n{order.token}{json.dumps(message)}")
    return RC_OTHER


def _carry_out(order: Order) -> int:
    if not order.container:
        json.dump(_list_containers(order), sys.stdout)
        return 0
    try:
        return _run(order) if order.argv else 0
    finally:
        if not order.keep:
            shutil.rmtree(os.path.join(SCRATCH, order.scratch), ignore_errors=True)


def _run(order: Order) -> int:
    command = execution.parse_command(
        argv=order.argv,
        cmd=None,
        env={"TMPDIR": SCRATCH_PATH},  # what modules unpack is not for the container's files
        stdin=None,
        chdir="/",
        timeout_s=None,
        rights=order.rights,
        trust_container=order.trust_container,
    )
    with Server() as server:  # which starts while the engine answers
        container = _find_container(order)
        check_running(container)
        with open_targets([container]) as targets:
            places, refusals = execution.choose_places(targets, command, order.user, order.image)
            with execution.open_jobs(places, command, refusals) as jobs:
                execution.raise_first(refusals)
                (job,) = jobs
                if job.prefix != PREFIX:
                    raise FleetError(
                        f"this connection needs an image that works at {PREFIX}, and this one works at {job.prefix}"
                    )
                return _run_job(job, order, server)


def _list_containers(order: Order) -> list[dict[str, Any]]:
    host = Host(order.docker_host)
    found = []
    for listed in host.list_containers():
        if listed.state != "running":
            continue
        with suppress(ContainerGoneError):
            networks = host.inspect(listed).get("NetworkSettings", {}).get("Networks") or {}
            found.append({**listed.as_result(), "labels": listed.labels, "networks": sorted(networks)})
    return found


def _find_container(order: Order) -> Container:
    host = Host(order.docker_host)
    if order.container.startswith("pid:"):
        return host.find_process(order.container)
    selector = Selector((order.container,), any_owner=order.docker_host is not None)
    listed = host.list_containers(users=selector.may_mean_users)
    return host.refresh(select_containers(selector, listed)[0])


def _run_job(job: Job, order: Order, server: Server) -> int:
    with ExitStack() as stack:
        far = stack.enter_context(open_descriptors(job))
        far.update(stdin=0, stdout=1, stderr=2)
        if order.source:
            far["stdin"] = os.open(order.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, far["stdin"])
        if order.sink:
            far["stdout"] = os.open(order.sink, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, far["stdout"])
        far["scratch"] = _open_scratch(order.scratch, job)
        stack.callback(os.close, far["scratch"])
        channel, far_channel = socket.socketpair()
        with far_channel:
            far[command_.CHANNEL] = far_channel.fileno()
            server.send(far)
        return _wait(channel)


def _open_scratch(name: str, job: Job) -> int:
    """A detached mount of the connection's folder, which only the host's root and the command's user can reach."""
    folder = os.path.join(SCRATCH, name)
    os.makedirs(SCRATCH, mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chown(folder, job.rights.uid, job.rights.gid)
    os.utime(folder)
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH)  # until this process ends
    _remove_forgotten()
    flags = syscalls.OPEN_TREE_CLONE | syscalls.AT_SYMLINK_NOFOLLOW
    return syscalls.open_tree(-1, folder, flags)


def _remove_forgotten() -> None:
    """Remove the folders of connections whose controller was killed: there is no other that would."""
    for name in os.listdir(SCRATCH):
        folder = os.path.join(SCRATCH, name)
        with suppress(OSError):  # in use, or gone
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(fd).st_mtime > _FORGOTTEN_S:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(fd)


def _wait(channel: socket.socket) -> int:
    """The command's exit code. When nobody reads its output any more (ssh has ended), it is told to end."""
    text = b""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(1, 0)  # errors and hang-ups are told without being asked for
    while True:
        for fd, _event in poll.poll():
            if fd == 1:
                poll.unregister(1)
                channel.shutdown(socket.SHUT_WR)
                continue
            part = channel.recv(65536)
            *lines, text = (text + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise FleetError(message["error"])
                if "rc" in message:
                    return int(message["rc"])
            if not part:
                raise FleetError("the supervisor of the command was killed")
