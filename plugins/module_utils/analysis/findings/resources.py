# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the limits of a container and of its processes, as the host found them at the beginning and at the end of a capture."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, NamedTuple


class Pair(NamedTuple):
    """A number at the beginning and at the end of a capture; None where it is not known, or where there is no limit."""

    first: int | None
    last: int | None

    @property
    def known(self) -> int | None:
        """Return the later one that is known."""
        return self.first if self.last is None else self.last

    @property
    def growth(self) -> int:
        """Return by how much the number has grown; 0 where that is not known."""
        return 0 if self.first is None or self.last is None else self.last - self.first


class Mount(NamedTuple):
    """A file system with a size. Sizes are bytes; None is for no limit."""

    path: str
    filesystem: str
    size: int | None
    free: int | None
    files: int | None
    free_files: int | None


class Resources:
    """The resource_limits of MANIFEST, which may be missing."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        table = manifest.get("resource_limits") or {}
        self._ends: list[Mapping[str, Any]] = [table.get(when) or {} for when in ("first", "last")]

    def find_group(self, name: str) -> Pair:
        """Return the number NAME of the control group, such as pids.max."""
        return Pair(*((end.get("group") or {}).get(name) for end in self._ends))

    def has_group(self, name: str) -> bool:
        """Return True if the control group's NAME was read; its value may be None, for no limit."""
        return any(name in (end.get("group") or {}) for end in self._ends)

    def find_process(self, pid: int, name: str) -> Pair:
        """Return NAME (nofile, nproc or open) of process PID, a number on the host."""
        return Pair(*(self._find(end, pid, name) for end in self._ends))

    def guess_limit(self, name: str) -> int | None:
        """Return the limit NAME where all processes have the same one; None where they differ, or have none."""
        found = {process.get(name) for end in self._ends for process in end.get("processes") or ()}
        return found.pop() if len(found) == 1 else None

    def find_mount(self, path: str) -> Mount | None:
        """Return the file system of PATH: the mount with the longest path above it; None where it is not known."""
        above = [mount for mount in self.list_mounts() if _is_below(path, mount.path)]
        return max(above, key=lambda mount: len(mount.path), default=None)

    def list_mounts(self) -> list[Mount]:
        """Return the file systems with a size, as they were at the end, or else at the beginning."""
        return list(self._gen_mounts(self._ends[1]) or ()) or list(self._gen_mounts(self._ends[0]))

    def _gen_mounts(self, end: Mapping[str, Any]) -> Iterator[Mount]:
        for mount in end.get("mounts") or ():
            yield Mount(mount["path"], mount["filesystem"], *(mount.get(name) for name in Mount._fields[2:]))

    def _find(self, end: Mapping[str, Any], pid: int, name: str) -> int | None:
        return next((one.get(name) for one in end.get("processes") or () if one.get("pid") == pid), None)


def _is_below(path: str, mount: str) -> bool:
    return path == mount or path.startswith(mount.rstrip("/") + "/")
