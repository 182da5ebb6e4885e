# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a command in a container runs as: names are looked up in the container's own files, which may be hostile."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, strange_files

_NO_ID = 2**32 - 1
_MAX_BYTES = 1 << 20
_HINTS = {
    errno.ENOSYS: "it takes openat2 (Linux 5.6)",
    errno.ELOOP: "too many symbolic links, or one of /proc, and none of those is followed",
}


class UserError(ContainerError):
    """There is no such user in the container."""


class UserFileError(ContainerError):
    """A file of the container that would say who its users are cannot be read."""


@dataclass(frozen=True)
class User:
    """Whom a command runs as, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


def find_users(spec: str, root_fds: Sequence[int]) -> list[User | UserError | UserFileError]:
    """Whom SPEC means in each of the containers at ROOT_FDS, or why that is not known.

    Their files are read by a child that can be killed: what a container serves itself may never answer.
    """
    if _find_number(spec) is not None:
        return [find_user(spec, root_fd) for root_fd in root_fds]

    def look(index: int) -> Any:
        try:
            user = find_user(spec, root_fds[index])
        except UserError as error:
            return {"unknown": str(error)}
        except UserFileError as error:
            return {"unreadable": str(error)}
        return [user.uid, user.gid, user.groups]

    outcomes = bounded.run(len(root_fds), look, root_fds, strange_files.TIMEOUT_S)
    found = list(map(_parse_outcome, outcomes))
    # The number 0 has this name also where no file of the container says so.
    return [User() if spec == "root" and not isinstance(one, User) else one for one in found]


def _parse_outcome(outcome: Any) -> User | UserError | UserFileError:
    if isinstance(outcome, OSError):
        return UserFileError(
            f"its /etc/passwd and /etc/group cannot be read: {outcome.strerror}; give numbers as UID or UID:GID"
        )
    if isinstance(outcome, dict):
        return UserError(outcome["unknown"]) if "unknown" in outcome else UserFileError(outcome["unreadable"])
    uid, gid, groups = outcome
    return User(uid, gid, tuple(groups))


def find_user(spec: str, root_fd: int) -> User:
    """Whom SPEC means in the container at ROOT_FD: a name of its /etc/passwd, or numbers as UID or UID:GID."""
    user = _find_number(spec)
    if user is not None:
        return user
    for line in _read_lines(root_fd, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and fields[0] == spec and _is_id(fields[2]) and _is_id(fields[3]):
            return User(int(fields[2]), int(fields[3]), _find_groups(spec, root_fd))
    raise UserError(f"no user is called {spec!r} in its /etc/passwd; give numbers as UID or UID:GID")


def _find_number(spec: str) -> User | None:
    uid, colon, gid = spec.partition(":")
    if _is_id(uid) and (_is_id(gid) or not colon):
        return User(int(uid), int(gid) if colon else int(uid))
    return None


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
    """Lines of a small file of the container, none where it has none; its symlinks lead nowhere outside."""
    try:
        data = strange_files.read_regular(root_fd, path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, strange_files.StrangeFile) as error:
        raise UserFileError(f"its /{path} cannot be read: {_explain(error)}; give numbers as UID or UID:GID") from error
    return data.decode("utf-8", "replace").split("\n")


def _explain(error: OSError | strange_files.StrangeFile) -> str:
    if isinstance(error, OSError):
        return _HINTS.get(error.errno or 0) or os.strerror(error.errno or 0)
    return str(error)
