# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user that a command in a container runs as, by the rules of `docker exec`.

The container's own /etc/passwd and /etc/group name the users, and these files may be hostile.
Source: `docker exec --user`, moby/sys/user (GetExecUser). There a line without numbers means root; here it names no user.
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
_HOME_S = 1.0  # short: a command can run without a home
NO_HOME = "/"
_ADVICE = "give numbers as UID:GID, which need no file"
_HINTS = {
    errno.ENOSYS: "it takes openat2 (Linux 5.6)",
    errno.ELOOP: "too many symbolic links, or one of /proc, and none of those is followed",
}


class UserError(ContainerError):
    """A user that the container does not have."""


class UserFileError(ContainerError):
    """A file of the container that names its users, and cannot be read."""


@dataclass(frozen=True)
class User:
    """The user that a command runs as, in numbers; HOME is the user's folder."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = NO_HOME


def find_users(spec: str, root_fds: Sequence[int]) -> list[User | UserError | UserFileError]:
    """Return the user that SPEC means in each of the containers at ROOT_FDS, or the error that says why the user is not known.

    A child that can be killed reads the files: a container may serve them itself and never answer.
    """

    def look(index: int) -> Any:
        try:
            user = find_user(spec, root_fds[index])
        except UserError as error:
            return {"unknown": str(error)}
        except UserFileError as error:
            return {"unreadable": str(error)}
        return [user.uid, user.gid, user.groups, user.home]

    # "root" and numbers need no file of the container, so an unreadable file or a missing entry does not matter.
    known = User(groups=(0,)) if spec == "root" else _find_numbers(spec)
    outcomes = bounded.run(len(root_fds), look, root_fds, _HOME_S if known else strange_files.TIMEOUT_S)
    found = list(map(_parse_outcome, outcomes))
    return [known if known and not isinstance(outcome, User) else outcome for outcome in found]


def _parse_outcome(outcome: Any) -> User | UserError | UserFileError:
    if isinstance(outcome, OSError):
        return UserFileError(f"its /etc/passwd and /etc/group cannot be read: {outcome.strerror}; {_ADVICE}")
    if isinstance(outcome, dict):
        return UserError(outcome["unknown"]) if "unknown" in outcome else UserFileError(outcome["unreadable"])
    uid, gid, groups, home = outcome
    return User(uid, gid, tuple(groups), home)


def find_homes(uids: Sequence[int], root_fds: Sequence[int]) -> list[str]:
    """Return the home of each of UIDS in the container at the same place of ROOT_FDS, '/' where the home is not known.

    The containers are read side by side, within one second.
    """

    def look(index: int) -> Any:
        try:
            entry = _find_entry(root_fds[index], lambda line: line.uid == uids[index])
        except UserFileError:
            return NO_HOME
        return entry.home if entry else NO_HOME

    outcomes = bounded.run(len(root_fds), look, root_fds, _HOME_S)
    return [home if isinstance(home, str) else NO_HOME for home in outcomes]


def find_user(spec: str, root_fd: int) -> User:
    """Return the user that SPEC means in the container at ROOT_FD: USER or USER:GROUP, each of them a name or a number.

    A number is never taken for a name, and the container's files need not have it. The group is GROUP, or the group of the user's entry, or 0.
    It is also the first supplementary group. Without GROUP, the groups that list the user as a member follow.
    Raises UserError where there is no such user or group, and UserFileError where a file cannot be read.
    """
    name, colon, group = spec.partition(":")
    entry = None
    if name and (group or not colon):
        is_meant = (lambda line: line.uid == int(name)) if is_id(name) else (lambda line: line.name == name)
        entry = _find_entry(root_fd, is_meant)
    if entry is None and (not is_id(name) or (colon and not group)):
        raise UserError(f"no user is called {spec!r} in its /etc/passwd; give a name or a number as USER or USER:GROUP")
    uid, home = (entry.uid, entry.home) if entry else (int(name), NO_HOME)
    if group:
        gid = _find_group(group, root_fd)
        return User(uid, gid, (gid,), home)
    if entry is None:
        return User(uid, 0, (0,), home)
    groups = [line.gid for line in _gen_groups(root_fd) if entry.name in line.members]
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
    """Return the first entry of the container's /etc/passwd for which IS_MEANT is true; None where there is none."""
    for line in _read_lines(root_fd, "etc/passwd"):
        fields = line.split(":")
        if len(fields) >= 4 and is_id(fields[2]) and is_id(fields[3]):
            home = fields[5] if len(fields) > 5 and "\0" not in fields[5] else ""
            entry = _Entry(fields[0], int(fields[2]), int(fields[3]), home or NO_HOME)
            if is_meant(entry):
                return entry
    return None


def _find_group(group: str, root_fd: int) -> int:
    """Return the number of GROUP, which is a number or a name."""
    if is_id(group):
        return int(group)
    for line in _gen_groups(root_fd):
        if line.name == group:
            return line.gid
    raise UserError(f"no group is called {group!r} in its /etc/group; give a number")


def _gen_groups(root_fd: int) -> Iterator[_Group]:
    for line in _read_lines(root_fd, "etc/group"):
        fields = line.split(":")
        if len(fields) == 4 and is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), tuple(fields[3].split(",")))


def is_id(text: str) -> bool:
    """Return True if TEXT is the number of a user or a group.

    The highest number does not count: to the kernel it means "no change".
    """
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _NO_ID


def _read_lines(root_fd: int, path: str) -> list[str]:
    """Return the lines of a small file of the container, none where the file is missing; symbolic links never lead out of the container."""
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
