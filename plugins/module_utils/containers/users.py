# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a command in a container runs as, by `docker exec`'s rules: the container's own files say it, which may be hostile.

Source: `docker exec --user`, moby/sys/user (GetExecUser). Unlike there a line without numbers is no user, and not root.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

from ansible_collections.crashcart.fleet.plugins.module_utils.containers.container import ContainerError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import bounded, strange_files

_NO_ID = 2**32 - 1
_MAX_BYTES = 1 << 20
_HOME_S = 1.0  # for what a command can be run without
NO_HOME = "/"
_ADVICE = "give numbers as UID:GID, which need no file"
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
    """Whom a command runs as, in numbers, and the folder that is this user's."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = NO_HOME


def find_users(spec: str, root_fds: Sequence[int]) -> list[User | UserError | UserFileError]:
    """Whom SPEC means in each of the containers at ROOT_FDS, or why that is not known.

    Their files are read by a child that can be killed: what a container serves itself may never answer.
    """

    def look(index: int) -> Any:
        try:
            user = find_user(spec, root_fds[index])
        except UserError as error:
            return {"unknown": str(error)}
        except UserFileError as error:
            return {"unreadable": str(error)}
        return [user.uid, user.gid, user.groups, user.home]

    # What needs no file of the container is known also where these are unreadable or do not have it.
    known = User(groups=(0,)) if spec == "root" else _find_numbers(spec)
    outcomes = bounded.run(len(root_fds), look, root_fds, _HOME_S if known else strange_files.TIMEOUT_S)
    found = list(map(_parse_outcome, outcomes))
    return [known if known and not isinstance(one, User) else one for one in found]


def _parse_outcome(outcome: Any) -> User | UserError | UserFileError:
    if isinstance(outcome, OSError):
        return UserFileError(f"its /etc/passwd and /etc/group cannot be read: {outcome.strerror}; {_ADVICE}")
    if isinstance(outcome, dict):
        return UserError(outcome["unknown"]) if "unknown" in outcome else UserFileError(outcome["unreadable"])
    uid, gid, groups, home = outcome
    return User(uid, gid, tuple(groups), home)


def find_homes(uids: Sequence[int], root_fds: Sequence[int]) -> list[str]:
    """The home of each of UIDS in its container of ROOT_FDS, which has a second for it; '/' where that is not known."""

    def look(index: int) -> Any:
        try:
            entry = _find_entry(root_fds[index], lambda one: one.uid == uids[index])
        except UserFileError:
            return NO_HOME
        return entry.home if entry else NO_HOME

    outcomes = bounded.run(len(root_fds), look, root_fds, _HOME_S)
    return [one if isinstance(one, str) else NO_HOME for one in outcomes]


def find_user(spec: str, root_fd: int) -> User:
    """Whom SPEC means in the container at ROOT_FD: USER or USER:GROUP, each of them a name or a number.

    A number is never a name, and need not be in the container's files. The group is GROUP, or that of the user's entry, or 0; it is also
    the first of the supplementary groups. The others are those that name the user, unless GROUP is given.
    """
    name, colon, group = spec.partition(":")
    entry = None
    if name and (group or not colon):
        is_meant = (lambda one: one.uid == int(name)) if is_id(name) else (lambda one: one.name == name)
        entry = _find_entry(root_fd, is_meant)
    if entry is None and (not is_id(name) or (colon and not group)):
        raise UserError(f"no user is called {spec!r} in its /etc/passwd; give a name or a number as USER or USER:GROUP")
    uid, home = (entry.uid, entry.home) if entry else (int(name), NO_HOME)
    if group:
        gid = _find_group(group, root_fd)
        return User(uid, gid, (gid,), home)
    if entry is None:
        return User(uid, 0, (0,), home)
    groups = [one.gid for one in _gen_groups(root_fd) if entry.name in one.members]
    return User(uid, entry.gid, tuple(dict.fromkeys([entry.gid, *groups])), home)


def _find_numbers(spec: str) -> User | None:
    uid, _colon, gid = spec.partition(":")
    return User(int(uid), int(gid), (int(gid),)) if is_id(uid) and is_id(gid) else None


@dataclass(frozen=True)
class _Entry:
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class _Group:
    """A line of /etc/group."""

    name: str
    gid: int
    members: tuple[str, ...]


def _find_entry(root_fd: int, is_meant: Callable[[_Entry], bool]) -> _Entry | None:
    """The first entry of the container's passwd that IS_MEANT."""
    for line in _read_lines(root_fd, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and is_id(fields[2]) and is_id(fields[3]):
            home = fields[5] if len(fields) > 5 and "\0" not in fields[5] else ""
            entry = _Entry(fields[0], int(fields[2]), int(fields[3]), home or NO_HOME)
            if is_meant(entry):
                return entry
    return None


def _find_group(group: str, root_fd: int) -> int:
    """The number of GROUP, a number or a name."""
    if is_id(group):
        return int(group)
    for one in _gen_groups(root_fd):
        if one.name == group:
            return one.gid
    raise UserError(f"no group is called {group!r} in its /etc/group; give a number")


def _gen_groups(root_fd: int) -> Iterator[_Group]:
    for line in _read_lines(root_fd, "etc/group"):
        fields = line.split(":")
        if len(fields) == 4 and is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), tuple(fields[3].split(",")))


def is_id(text: str) -> bool:
    """Whether TEXT is a user or group number; the highest one means 'no change' to the kernel, so it is none."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_ID


def _read_lines(root_fd: int, path: str) -> list[str]:
    """Lines of a small file of the container, none where it has none; its symlinks lead nowhere outside."""
    try:
        data = strange_files.read_regular(root_fd, path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, strange_files.StrangeFile) as error:
        raise UserFileError(f"its /{path} cannot be read: {_explain(error)}; {_ADVICE}") from error
    return data.decode("utf-8", "surrogateescape").split("\n")


def _explain(error: OSError | strange_files.StrangeFile) -> str:
    if isinstance(error, OSError):
        return _HINTS.get(error.errno or 0) or os.strerror(error.errno or 0)
    return str(error)
