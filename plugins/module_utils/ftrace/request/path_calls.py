# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List the system calls that take paths, and the arguments that are paths: one table for host and controller. Pure.

The calls of a family do the same, and a C library makes any of them. So a recorded path belongs to a family. In its thread it belongs to
the next call of that family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Tuple

Positions = Tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """System calls that do the same, and the functions of C libraries that make them.

    CALLS, FUNCTIONS: name → positions, from 0, of the arguments that are paths.
    """

    calls: Mapping[str, Positions]
    functions: Mapping[str, Positions]


_FIRST, _SECOND, _THIRD = (0,), (1,), (2,)


def _place(positions: Positions, *names: str) -> dict[str, Positions]:
    return dict.fromkeys(names, positions)


FAMILIES = {
    "open": Family(
        {**_place(_FIRST, "open", "creat"), **_place(_SECOND, "openat", "openat2")},
        {
            **_place(_FIRST, "open", "open64", "creat", "creat64", "fopen", "fopen64", "opendir"),
            **_place(_SECOND, "openat", "openat64"),
        },
    ),
    "stat": Family(
        {**_place(_FIRST, "stat", "lstat"), **_place(_SECOND, "newfstatat", "statx")},
        {
            **_place(_FIRST, "stat", "stat64", "lstat", "lstat64"),
            **_place(_SECOND, "fstatat", "fstatat64", "statx"),
            # The functions of glibc before 2.33, whose first argument is a version.
            **_place(_SECOND, "__xstat", "__xstat64", "__lxstat", "__lxstat64"),
            **_place(_THIRD, "__fxstatat", "__fxstatat64"),
        },
    ),
    "access": Family(
        {**_place(_FIRST, "access"), **_place(_SECOND, "faccessat", "faccessat2")},
        {**_place(_FIRST, "access"), **_place(_SECOND, "faccessat")},
    ),
    "readlink": Family(
        {**_place(_FIRST, "readlink"), **_place(_SECOND, "readlinkat")},
        {**_place(_FIRST, "readlink"), **_place(_SECOND, "readlinkat")},
    ),
    "execve": Family(
        {**_place(_FIRST, "execve"), **_place(_SECOND, "execveat")},
        {**_place(_FIRST, "execve"), **_place(_SECOND, "execveat")},
    ),
    "unlink": Family(
        {**_place(_FIRST, "unlink", "rmdir"), **_place(_SECOND, "unlinkat")},
        {**_place(_FIRST, "unlink", "rmdir", "remove"), **_place(_SECOND, "unlinkat")},
    ),
    "mkdir": Family(
        {**_place(_FIRST, "mkdir"), **_place(_SECOND, "mkdirat")},
        {**_place(_FIRST, "mkdir"), **_place(_SECOND, "mkdirat")},
    ),
    "rename": Family(
        {**_place((0, 1), "rename"), **_place((1, 3), "renameat", "renameat2")},
        {**_place((0, 1), "rename"), **_place((1, 3), "renameat", "renameat2")},
    ),
    "link": Family(
        {**_place((0, 1), "link"), **_place((1, 3), "linkat")},
        {**_place((0, 1), "link"), **_place((1, 3), "linkat")},
    ),
    "symlink": Family(
        {**_place((0, 1), "symlink"), **_place((0, 2), "symlinkat")},
        {**_place((0, 1), "symlink"), **_place((0, 2), "symlinkat")},
    ),
    "chdir": Family(_place(_FIRST, "chdir"), _place(_FIRST, "chdir")),
    "chmod": Family(
        {**_place(_FIRST, "chmod"), **_place(_SECOND, "fchmodat", "fchmodat2")},
        {**_place(_FIRST, "chmod"), **_place(_SECOND, "fchmodat")},
    ),
    "chown": Family(
        {**_place(_FIRST, "chown", "lchown"), **_place(_SECOND, "fchownat")},
        {**_place(_FIRST, "chown", "lchown"), **_place(_SECOND, "fchownat")},
    ),
    "truncate": Family(_place(_FIRST, "truncate"), _place(_FIRST, "truncate", "truncate64")),
    "statfs": Family(_place(_FIRST, "statfs"), _place(_FIRST, "statfs", "statfs64")),
    "utimes": Family(
        {**_place(_FIRST, "utimes", "utime"), **_place(_SECOND, "utimensat")},
        {**_place(_FIRST, "utimes", "utime"), **_place(_SECOND, "utimensat")},
    ),
}
FAMILY_OF_CALL = {call: name for name, family in FAMILIES.items() for call in family.calls}
FAMILY_OF_FUNCTION = {function: name for name, family in FAMILIES.items() for function in family.functions}
# Calls whose event and function have another name in the kernel.
_KERNEL_NAMES = {"stat": "newstat", "lstat": "newlstat"}
CALL_OF_KERNEL_NAME = {name: call for call, name in _KERNEL_NAMES.items()}


def name_in_kernel(call: str) -> str:
    """Return the name that the kernel gives to CALL in the names of its event and of its function."""
    return _KERNEL_NAMES.get(call, call)


def find_positions(call: str) -> Positions:
    """Return the positions, from 0, of the arguments of CALL that are paths."""
    return FAMILIES[FAMILY_OF_CALL[call]].calls[call]


def name_paths(count: int) -> list[str]:
    """Return the names of the fields for COUNT paths of one call: path, path2 and so on."""
    return ["path", *(f"path{number}" for number in range(2, count + 1))]
