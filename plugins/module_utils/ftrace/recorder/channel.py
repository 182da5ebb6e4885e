# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Send messages between modules and the recorder: JSON with descriptors, through a socket that only root can reach.

A module sends these requests:

take NAME         take on the order for instance NAME as it is now; until `done` the module changes the instance's settings
change NAME       until `done`, or until the module ends, it changes the settings of instance NAME
done              the module's changes are finished
lend NAME, cpus   lend descriptors of trace_pipe_raw of these CPUs; the reply has the reasons why the trace so far is not complete
account NAME      after all was read, reply with these reasons again
settle NAME       the reasons are in a capture that is safe
drain NAME        write to the recording what the buffers hold now

A start hook sends this one:

start NAME, state     trace the container with this state (as OCI runtimes give it to hooks) by the rule called NAME
"""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import ExitStack, suppress
from typing import Any, Dict, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RECORDER_SOCKET_NAME

MAX_FDS = 200
_MAX_BYTES = 1 << 16
_TIMEOUT_S = 20.0
Message = Dict[str, Any]


def find_path() -> str:
    """Return the path of the recorder's socket."""
    return os.path.join(orders.FOLDER, RECORDER_SOCKET_NAME)


def listen() -> socket.socket:
    """Return a socket on which the recorder listens, in place of one that a killed recorder left.

    The caller holds the recorder's lock.
    """
    with suppress(FileNotFoundError):
        os.unlink(find_path())
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    server.bind(find_path())  # only root can reach the folder, so the mode before chmod does no harm
    os.chmod(find_path(), 0o600)
    server.listen(128)
    return server


def connect() -> socket.socket:
    """Return a connection to the recorder; raises OSError if none listens."""
    with ExitStack() as undo:
        client = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        client.settimeout(_TIMEOUT_S)
        client.connect(find_path())
        undo.pop_all()
    return client


def send(connection: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send MESSAGE with at most MAX_FDS descriptors FDS; raises OSError."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([json.dumps(message).encode("utf-8")], rights)


def receive(connection: socket.socket) -> tuple[Message, list[int]]:
    """Return the next message and its descriptors, which are close-on-exec; an empty message if the other end is gone.

    Raises OSError, and ValueError for a message that is no JSON.
    """
    numbers = array.array("i")
    size = socket.CMSG_SPACE(MAX_FDS * numbers.itemsize)
    data, rights, _flags, _address = connection.recvmsg(_MAX_BYTES, size, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    message: Message = json.loads(data) if data else {}
    return message, list(numbers)
