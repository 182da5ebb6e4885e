# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guard the traces of a call whose controller may be gone before it finishes them.

The guard is a fork of the module, in a session of its own: neither a broken connection nor a killed module ends it. It finishes its traces
when it is asked to (requests.py), or else when their time is over, and ends as soon as they are removed.
"""

from __future__ import annotations

import gc
import json
import os
import select
import socket
from contextlib import suppress
from typing import Any, Callable, Collection, Dict, NoReturn, Optional

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.calls import requests
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import background, boot, processes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.bounded import close_all_but
from ansible_collections.crashcart.fleet.plugins.module_utils.names import GUARD_TITLE

_LOOK_S = 0.25
# Finishes the traces for a request, or by itself without one (None), and returns the answer. IS_ALONE() says if the asker is gone.
Finish = Callable[[Optional[Dict[str, Any]], Callable[[], bool]], Dict[str, Any]]


def start_guard(
    paths: Collection[str], ids: Collection[str], seconds: float, finish: Finish, silence_s: float | None = None
) -> None:
    """Start a process that calls FINISH when asked to, or after SECONDS, and ends when the instances with PATHS in tracefs are removed.

    IDS are those of all containers of the call, by which the guard is found. FINISH may import nothing, since Ansible removes the
    module's files. With SILENCE_S, the guard also finishes the traces when nobody has asked for anything so long, in seconds.
    Raises OSError or FleetError where no process can be started.
    """
    inodes = {path: _read_inode(path) for path in paths}
    with requests.listen(ids) as server:
        if os.fork() == 0:
            _become_guard(inodes, server, boot.read_clock() + seconds, finish, silence_s)


def _become_guard(
    inodes: dict[str, int | None], server: socket.socket, deadline: float, finish: Finish, silence_s: float | None
) -> NoReturn:
    """Be the guard of the instances INODES (path → inode) until DEADLINE, in seconds of CLOCK_BOOTTIME, with requests through SERVER.

    With SILENCE_S, a silence of so many seconds is an end, too.
    """
    try:
        # The objects of the module own descriptors by numbers that belong to the guard's own files from now on.
        gc.freeze()
        os.setsid()
        close_all_but({server.fileno()})
        for fd in (0, 1, 2):
            _open_null(fd)
        os.chdir("/")
        processes.set_title(GUARD_TITLE)
        background.leave_control_groups()
        asked = boot.read_clock()
        while any(inode is not None and _read_inode(path) == inode for path, inode in inodes.items()):
            now = boot.read_clock()
            if now >= deadline or (silence_s is not None and now - asked >= silence_s):
                finish(None, lambda: True)
                break
            if select.select([server], [], [], _LOOK_S)[0]:
                _answer(server, finish)
                asked = boot.read_clock()
    finally:
        with suppress(OSError):
            os.unlink(server.getsockname())
        os._exit(0)


def _open_null(fd: int) -> None:
    """Make the closed descriptor FD, the lowest one, that of /dev/null, whatever else is open."""
    null_fd = os.open(os.devnull, os.O_RDWR)
    if null_fd != fd:
        os.dup2(null_fd, fd)
        os.close(null_fd)


def _answer(server: socket.socket, finish: Finish) -> None:
    """Answer the next client of SERVER by what FINISH returns for its request."""
    with suppress(OSError, ValueError):  # the client is gone, or has sent no request
        connection, request = requests.accept(server)
        with connection:
            answer = finish(request, lambda: _has_hung_up(connection.fileno()))
            connection.sendall(json.dumps(answer).encode("utf-8"))


def _read_inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def is_alone() -> bool:
    """Return True if nobody reads this process's output any more, because the connection to the controller broke."""
    return _has_hung_up(1)


def _has_hung_up(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _fd, events in poller.poll(0))
