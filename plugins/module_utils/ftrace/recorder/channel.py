# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How modules talk to the recorder: JSON messages with descriptors through a socket that root alone can reach.

take NAME     take on what the order for instance NAME says now; what its settings are until `done` is the module's doing
change NAME   until `done`, or until the module is gone, its settings are the module's doing
done
lend NAME, cpus       descriptors of trace_pipe_raw of these CPUs; the reply tells why the trace so far is not complete
account NAME          the same again, after all has been read
settle NAME           what was told is in a capture that is safe
"""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import ExitStack, suppress
from typing import Any, Dict, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.recorder import orders

# The number is the protocol's version: a recorder of another one is a stranger.
NAME = ".socket-1"
MAX_FDS = 200
_MAX_BYTES = 1 << 16
_TIMEOUT_S = 20.0
Message = Dict[str, Any]


def find_path() -> str:
    """Return where the recorder listens."""
    return os.path.join(orders.FOLDER, NAME)


def listen() -> socket.socket:
    """Return the recorder's end, in the place of one that a killed recorder has left. The caller holds the recorder's lock."""
    with suppress(FileNotFoundError):
        os.unlink(find_path())
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    server.bind(find_path())  # in a folder that is root's alone
    os.chmod(find_path(), 0o600)
    server.listen(128)
    return server


def connect() -> socket.socket:
    """Return a connection to the recorder; raises OSError where none listens."""
    with ExitStack() as undo:
        client = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        client.settimeout(_TIMEOUT_S)
        client.connect(find_path())
        undo.pop_all()
    return client


def send(connection: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send MESSAGE with FDS, MAX_FDS at most."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([json.dumps(message).encode("utf-8")], rights)


def receive(connection: socket.socket) -> tuple[Message, list[int]]:
    """Return the next message and its descriptors, which do not survive an exec; an empty message when the other end is gone."""
    numbers = array.array("i")
    size = socket.CMSG_SPACE(MAX_FDS * numbers.itemsize)
    data, rights, _flags, _address = connection.recvmsg(_MAX_BYTES, size, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in rights:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    message: Message = json.loads(data) if data else {}
    return message, list(numbers)
