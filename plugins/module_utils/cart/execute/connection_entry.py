# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's half of the connection plugin: it runs one command in one container, on the descriptors that ssh gave this process.

The plugin puts this program into a folder on the host and runs it there. Its stdin begins with an Order, as everybody on the
host may read arguments, and a task's command may hold secrets. The command reads the rest of stdin.
The program's own message goes to stderr as the last line, after a token that only the plugin knows.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import command as command_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import execution
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute import scratch as scratch_
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.command_options import (
    CommandOptions,
    parse_command,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.jobs import TOOLS, Job
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.private_view import SCRATCH_SUFFIX
from ansible_collections.crashcart.fleet.plugins.module_utils.cart.execute.server import Server, open_descriptors
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import (
    Container,
    ContainerError,
    ContainerGoneError,
    check_running,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.host import Host
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.outcomes import Outcome
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.selection import Selector, select_one
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.targets import TIMEOUT_S, open_targets
from ansible_collections.crashcart.fleet.plugins.module_utils.containers.users import UserError
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError, require_root

PREFIX = "/dev/crashcart"
SCRATCH_PATH = PREFIX + SCRATCH_SUFFIX  # the connection's folder for temporary files, as its commands see it
_PART = 1 << 16  # bytes that are copied at once
RC_OTHER = 254  # the last line of stderr tells more; 255 is ssh's own


@dataclass(frozen=True)
class Order:
    """A request to run ARGV with ENV in CONTAINER (a name or an id) as USER.

    TOKEN: begins this program's own last line. SOURCE: a file of the host as the command's stdin. SINK: a file that takes its stdout.
    SCRATCH: the name of the connection's folder for temporary files, which holds SCRATCH_BYTES at most. The folder is removed afterwards, unless
    KEEP says that another command needs its content; with ARGV empty nothing else is done.
    Without a CONTAINER the running ones are listed, as JSON on stdout, with a text about runtimes that do not answer (`silence`).
    """

    token: str
    container: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    docker_host: str | None = None
    user: str | None = None
    scratch: str = ""
    scratch_bytes: int = scratch_.MAX_BYTES
    keep: bool = False
    source: str = ""
    sink: str = ""
    rights: str = TOOLS
    trust_container: bool = False

    def pack(self) -> bytes:
        """Return the beginning of main's stdin: a line with the length of the following JSON, and the JSON."""
        text = json.dumps(asdict(self)).encode("ascii")
        return b"%d\n%s" % (len(text), text)


def main() -> int:
    """Carry out the order at the beginning of stdin, and return the command's exit code."""
    order = read_order(0)
    try:
        require_root()
        rc = _carry_out(order)
    except (FleetError, OSError) as error:
        return _tell(order, {"error": str(error), "is_wish": isinstance(error, UserError)})
    return _tell(order, {"rc": rc}) if rc == 255 else rc


def read_order(fd: int) -> Order:
    """Return the Order at the beginning of FD, and leave the rest of FD unread."""
    digits = b""
    while not digits.endswith(b"\n"):
        digits += _read_all(fd, 1)
    return Order(**json.loads(_read_all(fd, int(digits))))


def _read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise SystemExit("the order is cut short")
        data += part
    return data


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
            scratch_.remove(order.scratch)


def _run(order: Order) -> int:
    wanted = CommandOptions(
        argv=order.argv,
        env={"TMPDIR": SCRATCH_PATH, **order.env},  # modules must not unpack anything into the container's files
        rights=order.rights,
        trust_container=order.trust_container,
        user=order.user,
        image=order.image,
    )
    command = parse_command(wanted)
    with Server() as server:  # first, so that it starts while the engine answers
        container = _find_container(order)
        check_running(container)
        outcome = Outcome()
        with open_targets([container]) as targets:
            places = execution.choose_places(targets, outcome, command)
            with execution.open_jobs(places, outcome, command) as jobs:
                outcome.raise_first()
                (job,) = jobs
                if job.prefix != PREFIX:
                    raise FleetError(
                        f"this connection needs an image that works at {PREFIX}, and this one works at {job.prefix}"
                    )
                return _run_job(job, order, server)


def _list_containers(order: Order) -> dict[str, Any]:
    host = Host(order.docker_host)
    found = []
    for listed in host.list_containers():
        if listed.state != "running":
            continue
        with suppress(ContainerGoneError):
            networks = host.inspect(listed).get("NetworkSettings", {}).get("Networks") or {}
            found.append({**listed.as_result(), "labels": listed.labels, "networks": sorted(networks)})
    return {"containers": found, "silence": host.describe_silence()}


def _find_container(order: Order) -> Container:
    host = Host(order.docker_host)
    if order.container.startswith("pid:"):
        return host.find_process(order.container)
    pattern, any_owner = host.find_meant(order.container), order.docker_host is not None
    users = Selector((pattern,), any_owner=any_owner).may_mean_users
    listed = host.list_containers(users=users)
    try:
        container = select_one(pattern, listed, any_owner=any_owner)
    except ContainerError as error:
        raise host.explain(error) from error
    return host.refresh(container)


def _run_job(job: Job, order: Order, server: Server) -> int:
    with ExitStack() as stack:
        far = stack.enter_context(open_descriptors(job))
        far.update(stdin=0, stdout=1, stderr=2)
        # Files of the host go through pipes: a process that may trace the command could open its descriptors anew, for writing.
        pumps = []
        if order.source:
            far["stdin"], writer = os.pipe2(os.O_CLOEXEC)
            source = os.open(order.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            pumps.append(_Pump(source, writer, far["stdin"]))
        if order.sink:
            reader, far["stdout"] = os.pipe2(os.O_CLOEXEC)
            os.fchown(far["stdout"], job.rights.uid, job.rights.gid)
            sink = os.open(order.sink, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            pumps.append(_Pump(reader, sink, far["stdout"]))
        far["scratch"] = scratch_.open_scratch(order.scratch, job.rights.uid, job.rights.gid, order.scratch_bytes)
        stack.callback(os.close, far["scratch"])
        channel, far_channel = socket.socketpair()
        with far_channel:
            far[command_.CHANNEL] = far_channel.fileno()
            server.send(far)
        for pump in pumps:
            pump.start()
        rc = _wait(channel)
        why = job.explain_kill(rc)
        if why:
            sys.stderr.write(f"crashcart: {why}\n")
        for pump in pumps:
            pump.finish()
        return rc


class _Pump(threading.Thread):
    """A thread that copies READER to WRITER and closes both; CHILD_END is the command's end of the pipe."""

    def __init__(self, reader: int, writer: int, child_end: int) -> None:
        super().__init__(daemon=True)
        self._reader, self._writer, self._child_end = reader, writer, child_end
        self._error: OSError | None = None

    def start(self) -> None:
        """Close the command's end, which the command has by now, and begin to copy."""
        os.close(self._child_end)
        super().start()

    def run(self) -> None:
        """Copy until either side ends."""
        try:
            while True:
                part = os.read(self._reader, _PART)
                if not part:
                    return
                while part:
                    part = part[os.write(self._writer, part) :]
        except BrokenPipeError:  # the command has read enough
            return
        except OSError as error:
            self._error = error
        finally:
            os.close(self._reader)
            os.close(self._writer)

    def finish(self) -> None:
        """Wait for the rest of the copy; raises OSError where it could not be written."""
        self.join()
        if self._error is not None:
            raise self._error


def _wait(channel: socket.socket) -> int:
    """Return the command's exit code; the command is told to end when nobody reads its output any more, as when ssh has ended."""
    text = b""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(1, 0)  # poll always reports errors and hang-ups
    # Entering has a limit, as a container may serve its /dev by a process that hangs.
    deadline: float | None = time.monotonic() + TIMEOUT_S
    while True:
        ready = poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            channel.shutdown(socket.SHUT_WR)
            raise FleetError(f"entering the container took more than {TIMEOUT_S:g} s")
        for fd, _event in ready:
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
                if "ready" in message:
                    deadline = None
                if "rc" in message:
                    return int(message["rc"])
            if not part:
                raise FleetError("the supervisor of the command was killed")
