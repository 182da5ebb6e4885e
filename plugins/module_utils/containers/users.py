# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a command in a container runs as: names are looked up in the container's own files, which may be hostile."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscalls

_NO_ID = 2**32 - 1


class UserError(ContainerError):
    """There is no such user in the container."""


@dataclass(frozen=True)
class User:
    """Whom a command runs as, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def find_user(spec: str, root_fd: int) -> User:
    """Whom SPEC means in the container at ROOT_FD: a name of its /etc/passwd, or numbers as UID or UID:GID."""
    uid, colon, gid = spec.partition(":")
    if _is_id(uid) and (_is_id(gid) or not colon):
        return User(int(uid), int(gid) if colon else int(uid))
    for line in _read_lines(root_fd, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] == spec and _is_id(fields[2]) and _is_id(fields[3]):
            return User(int(fields[2]), int(fields[3]), _find_groups(spec, root_fd))
    raise UserError(f"no user is called {spec!r} in its /etc/passwd; give numbers as UID or UID:GID")


def _is_id(text: str) -> bool:
    """Whether TEXT is a user or group number; the highest one means 'no change' to the kernel, so it is none."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_ID


def _find_groups(name: str, root_fd: int) -> tuple[int, ...]:
    groups = []
    for line in _read_lines(root_fd, "etc/group"):
        fields = line.split(":")
        if len(fields) == 4 and _is_id(fields[2]) and name in fields[3].split(","):
            groups.append(int(fields[2]))
    return tuple(groups)


def _read_lines(root_fd: int, path: str) -> list[str]:
    """Lines of a small file of the container; its symlinks lead nowhere outside, and a pipe cannot block us."""
    resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        fd = syscalls.openat2(root_fd, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, resolve)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return []
        return os.read(fd, 1 << 20).decode("utf-8", "replace").split("\n")
    finally:
        os.close(fd)
