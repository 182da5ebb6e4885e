# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the guard of traces (guard.py) for something, by a socket that only root can reach.

A guard has all code of a finish in memory. To ask it takes a host a quarter of the time that it takes to read that code once more. So this
file imports next to nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from contextlib import suppress
from typing import Any, Collection

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.own_files import make_folder
from ansible_collections.crashcart.fleet.plugins.module_utils.names import RUN

FOLDER = os.path.join(RUN, "guards")
_TIMEOUT_S = 20.0
_BLOCK = 1 << 16


def find_path(ids: Collection[str]) -> str:
    """Return the path of the socket on which the guard of the traces of the containers with IDS listens."""
    return os.path.join(FOLDER, hashlib.sha256(",".join(sorted(ids)).encode("utf-8")).hexdigest()[:16])


def listen(ids: Collection[str]) -> socket.socket:
    """Return a socket for a guard of the containers with IDS, in place of one that a killed guard left. Raises OSError or FleetError."""
    make_folder(FOLDER)
    with suppress(FileNotFoundError):
        os.unlink(find_path(ids))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(find_path(ids))  # only root can reach the folder
    server.listen(1)
    return server


def ask(ids: Collection[str], request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the answer to REQUEST of the guard of the containers with IDS; None if there is no guard, or if it ends meanwhile."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client, suppress(OSError, ValueError):
        client.connect(find_path(ids))
        client.sendall(json.dumps(request).encode("utf-8"))
        client.shutdown(socket.SHUT_WR)
        answer = json.loads(receive(client))
        return answer if isinstance(answer, dict) else None
    return None


def receive(connection: socket.socket) -> bytes:
    """Return all that comes through CONNECTION until the other side has sent everything. Raises OSError."""
    blocks = []
    while block := connection.recv(_BLOCK):
        blocks.append(block)
    return b"".join(blocks)


def accept(server: socket.socket) -> tuple[socket.socket, dict[str, Any]]:
    """Return the connection of the next client of SERVER, and its request. Raises OSError, and ValueError for what is no request."""
    connection, _address = server.accept()
    connection.settimeout(_TIMEOUT_S)
    request = json.loads(receive(connection))
    if not isinstance(request, dict):
        raise ValueError("a request is an object")
    return connection, request
