# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The beginning of the start hook's program, which is all that a usual start of a container runs: it tells the recorder of the container.

Each start waits for it, so it imports next to nothing, not even json: the recorder reads the container's state as the runtime has written it.
What is not usual is for program.py, which is imported then.
"""

from __future__ import annotations

import _socket  # socket takes as long to import as all else here
import os
import select
import sys
import time

_WAIT_S = 2.0  # no container waits longer for its trace
_SOCKET = "/run/crashcart/recorder/.socket-3"  # names.RECORDER_SOCKET
_PREFIX = "start-hook:"  # names.HOOK_RULE_PREFIX
_MAX_STATE_BYTES = 1 << 20
_MAX_REPLY_BYTES = 1 << 16


def main() -> None:
    """Run as the program's command line says, and end this process with 0."""
    state = reply = b""
    deadline = time.monotonic() + _WAIT_S
    words = sys.argv[1:]
    try:
        if words[:1] == ["create"]:
            state = _read_state(deadline)
        elif words[:1] == ["created"]:
            with open(words[3], encoding="ascii") as file:
                state = f'{{"id": "{words[2]}", "pid": {int(file.read())}}}'.encode()
        if state:
            reply = _ask(words[1], state, deadline)
    except Exception:  # pylint: disable=broad-exception-caught # program.py says what is wrong
        pass
    try:
        if not reply.startswith(b'{"ok"'):
            from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.hook import program

            program.run(words, state, reply, deadline)
    finally:
        os._exit(0)  # without the clean-up of modules, which could fail, too


def _read_state(deadline: float) -> bytes:
    """Return what the runtime has written to stdin until DEADLINE (by time.monotonic()), or until it has closed that."""
    state = b""
    while len(state) < _MAX_STATE_BYTES:
        if not select.select([0], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(0, 1 << 16)
        if not piece:
            break
        state += piece
    return state


def _ask(profile: str, state: bytes, deadline: float) -> bytes:
    """Return what the recorder answers about the container with STATE, of PROFILE; raises OSError if it does not."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    connection.connect(_SOCKET)
    connection.send(b'{"do": "start", "name": "%s%s", "state": %s}' % (_PREFIX.encode(), profile.encode(), state))
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    return connection.recv(_MAX_REPLY_BYTES)
