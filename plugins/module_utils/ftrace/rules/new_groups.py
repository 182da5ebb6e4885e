# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Learn of control groups as they come into being, anywhere on the host, by inotify on all folders of one hierarchy."""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from typing import Iterator

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.follow import following
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.specification import is_runtimes
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import cgroups, processes, syscalls

_EVENTS = syscalls.IN_CREATE | syscalls.IN_DELETE
# A group with an engine's id in its name is a container's. What it makes below is the container's own, and is not watched.
_CONTAINERS_GROUP = re.compile(r"(?:^|[^0-9a-f])([0-9a-f]{64})(?:$|[^0-9a-f])")
# conmon, the process that watches over a container of Podman or CRI-O, has a group with the container's id.
_MONITOR = "conmon"
# Users make as many groups as they like below the group of their own service manager, and their containers are not awaited.
_USERS_GROUP = re.compile(r"user@[1-9][0-9]*\.service\Z")
_PODMANS_GROUP = "libpod_parent"
_OVERFLOW = "more control groups came into being at once than could be watched"
_NO_ROOM = "the host's limit of watches is reached (sysctl fs.inotify.max_user_watches): containers in new control groups may be missed"


def find_engine_id(path: str) -> str | None:
    """Return the engine's id in the last part of PATH, a control group's; None if it has none, or is a monitor's or a pod's."""
    name = os.path.basename(path)
    match = _CONTAINERS_GROUP.search(name)
    return match.group(1) if match and _MONITOR not in name and not _is_pod(path) else None


def _is_pod(path: str) -> bool:
    """Return True if PATH is a group of Podman that has an id, too, and the groups of containers below it.

    systemd puts processes into scopes and services only. Without it the containers of Podman have a prefix.
    """
    folder, name = os.path.split(path)
    return name.endswith(".slice") or (os.path.basename(folder) == _PODMANS_GROUP and not name.startswith("libpod-"))


class GroupWatcher:
    """A watch of all control groups below the folder TOP that exist now or come into being, except within containers and of users.

    Without WATCHES it watches none.

    TROUBLES: what prevents that groups are seen, in words. MISSED: the number of containers' groups that were gone before they were seen.
    """

    def __init__(self, top: str, *, watches: bool = True) -> None:
        self.troubles: list[str] = []
        self.missed = 0
        self._top = top
        self._folders: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._closed: dict[str, int] = {}  # groups that are not watched, with their inodes
        self.fd = syscalls.inotify_init()
        for _path in self._watch(top) if watches else ():
            pass  # what is there already does not start

    def _watch(self, path: str) -> Iterator[str]:
        """Watch the group PATH and all below it that may have containers, and yield those below it that were not known."""
        left = [path]
        while left:
            folder = left.pop()
            if folder.count("/") - self._top.count("/") > cgroups.MAX_DEPTH or not self._watch_one(folder):
                continue
            # A group may have come into being before its parent was watched, so the parent's folder is read after that.
            for name in cgroups.list_children(folder):
                below = os.path.join(folder, name)
                if self._is_new(below):
                    yield below
                if not _is_closed(below):
                    left.append(below)

    def _is_new(self, path: str) -> bool:
        """Return True if the group PATH was not known, and note it if it is not watched: one that was made anew has another inode."""
        if path in self._numbers:
            return False
        if not _is_closed(path):
            return True
        try:
            inode = os.stat(path).st_ino
        except OSError:
            return True
        known = self._closed.get(path)
        self._closed[path] = inode
        return known != inode

    def _watch_one(self, path: str) -> bool:
        try:
            number = syscalls.inotify_add_watch(self.fd, path, _EVENTS)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._tell(_NO_ROOM)
            return False  # or the group is gone
        self._folders[number] = path
        self._numbers[path] = number
        return True

    def _tell(self, trouble: str) -> None:
        if trouble not in self.troubles:
            self.troubles.append(trouble)

    def read(self) -> Iterator[tuple[str, bool]]:
        """Yield (path, True) for each group that is new since the last call, and (path, False) for each that is gone.

        A group that came into being just now may be yielded twice.
        """
        for number, events, name in syscalls.inotify_read(self.fd):
            folder = self._folders.get(number)
            if events & syscalls.IN_IGNORED:
                self._folders.pop(number, None)
                if folder is not None and self._numbers.get(folder) == number:
                    del self._numbers[folder]
            elif events & syscalls.IN_Q_OVERFLOW:
                self._tell(_OVERFLOW)
                for below in self._watch(self._top):
                    yield below, True
            elif folder is not None and name:
                path = os.path.join(folder, name)
                if events & syscalls.IN_DELETE:
                    self._closed.pop(path, None)
                    yield path, False
                elif not os.path.isdir(path):
                    self.missed += find_engine_id(path) is not None
                else:
                    self._is_new(path)
                    yield path, True
                    if not _is_closed(path):
                        for below in self._watch(path):
                            yield below, True

    def forget_below(self, path: str) -> None:
        """Stop watching the group PATH, which was found to be a container's, and all below it."""
        for below in [known for known in self._numbers if known == path or known.startswith(path + "/")]:
            number = self._numbers.pop(below)
            self._folders.pop(number, None)
            with suppress(OSError):
                syscalls.inotify_rm_watch(self.fd, number)

    def close(self) -> None:
        """End the watch."""
        os.close(self.fd)


def _is_closed(path: str) -> bool:
    """Return True if nothing is awaited below the group PATH."""
    return is_container(path) or bool(_USERS_GROUP.match(os.path.basename(path)))


def is_container(path: str) -> bool:
    """Return True if the last part of PATH shows that the group is a container's or its monitor's."""
    return bool(_CONTAINERS_GROUP.search(os.path.basename(path))) and not _is_pod(path)


def is_within_container(process_cgroup: bytes) -> bool:
    """Return True if PROCESS_CGROUP, the text of a process's /proc/PID/cgroup, shows that it is in a container with an engine's id."""
    for membership in cgroups.parse_cgroup(process_cgroup):
        parts = membership.path.split("/")
        if any(find_engine_id("/".join(parts[:count])) for count in range(2, len(parts) + 1)):
            return True
    return False


def may_start(group: str, pids: list[int]) -> bool:
    """Return True if one of PIDS, the processes in GROUP, is a runtime's or a container's first one."""
    comms = {processes.read_comm(pid) for pid in pids} - {""}
    # Of those that have ended since the look nothing is known.
    return not comms or any(map(is_runtimes, comms)) or following.find_starting(group, 0)[0] is not None
