# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount FUSE file systems that never answer in a container's mount namespace, as a hostile container could (fuse(4))."""

from __future__ import annotations

import os
import select
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ansible_collections.crashcart.fleet.plugins.module_utils.linux import mounts, syscalls
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.namespaces import (
    MountNamespace,
    enter_mount_namespace,
)

INIT = 26
_HEAD = struct.Struct("=IIQQIIII")  # struct fuse_in_header: len, opcode, unique, …
_MAX_REQUEST = 1 << 17


class Hung:
    """A mount that never answers. REQUESTS holds the opcodes of the requests that were read."""

    def __init__(self) -> None:
        self.requests: list[int] = []


@contextmanager
def hang(pid: int, path: str, *, takes_requests: bool = False) -> Iterator[Hung]:
    """Mount a file system that never answers on PATH of the container with first process PID.

    With TAKES_REQUESTS the file system reads its requests: a process that waits for the answer then cannot even be killed.
    """
    with ExitStack() as stack:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        place = os.stat(f"/proc/{pid}/root{path}")
        mode = "40755" if stat.S_ISDIR(place.st_mode) else "100644"
        mount_fd = mounts.mount_create("fuse", fd=str(fd), rootmode=mode, user_id="0", group_id="0")
        _move(mount_fd, pid, path)
        os.close(mount_fd)
        stack.callback(_unmount, pid, path)
        hung = Hung()
        stopped, stop = os.pipe()
        thread = threading.Thread(target=_serve, args=(fd, stopped, hung, takes_requests))
        thread.start()
        try:
            yield hung
        finally:
            os.close(stop)
            thread.join()
            os.close(stopped)
            os.close(fd)  # ends the connection, and with it the wait of all processes


def _serve(fd: int, stopped: int, hung: Hung, takes_requests: bool) -> None:
    poll = select.poll()
    poll.register(stopped, select.POLLIN)
    if takes_requests:
        poll.register(fd, select.POLLIN)
    while True:
        if any(ready == stopped for ready, _event in poll.poll()):
            return
        request = os.read(fd, _MAX_REQUEST)
        _size, kind, unique = _HEAD.unpack_from(request)[:3]
        if kind != INIT:
            hung.requests.append(kind)
            continue
        answer = struct.pack("=IIIIHHII", 7, 31, 0, 0, 12, 9, 65536, 1).ljust(64, b"\0")
        os.write(fd, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)


def _in_container(pid: int, function: Callable[..., object], *arguments: object) -> None:
    namespace_fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            enter_mount_namespace(MountNamespace(namespace_fd, root_fd))
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    os.close(namespace_fd)
    os.close(root_fd)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _move(mount_fd: int, pid: int, path: str) -> None:
    def move() -> None:
        syscalls.move_mount(mount_fd, os.open(path, os.O_PATH))

    _in_container(pid, move)


def _unmount(pid: int, path: str) -> None:
    if os.path.exists(f"/proc/{pid}/ns/mnt"):
        _in_container(pid, syscalls.umount2, path, syscalls.MNT_DETACH)
