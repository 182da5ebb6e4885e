# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of constants agree with Python's own, which come from this machine's C library."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import resource
import select
import signal
import socket
import stat
import termios
import time

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import (
    decode_flags,
    find_machine,
    get_table,
    name_value,
)
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi import TABLES
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi_differences import DIFFERENCES

# Of these, the C library gives programs other values than the kernel: on 64 bits all files are large, and it uses two signals itself.
OTHER_IN_LIBRARY = ("O_LARGEFILE", "SIGRTMIN")


# Each with the lowest number of names that every Python since 3.8 has.
@pytest.mark.parametrize(
    ("table", "module", "least"),
    [
        ("open", os, 12),
        ("access_mode", os, 3),
        ("access", os, 4),
        ("seek", os, 3),
        ("flock", fcntl, 4),
        ("fcntl", fcntl, 10),
        ("lease", fcntl, 3),
        ("descriptor", fcntl, 1),
        ("notify", fcntl, 6),
        ("file_type", stat, 7),
        ("prot", mmap, 3),
        ("map", mmap, 1),
        ("map_type", mmap, 2),
        ("madvise", mmap, 8),
        ("wait", os, 3),
        ("waitid_type", os, 3),
        ("signal", signal, 29),
        ("sigmask", signal, 3),
        ("itimer", signal, 3),
        ("priority", os, 3),
        ("sched", os, 3),
        ("fadvise", os, 6),
        ("rlimit", resource, 14),
        ("rusage", resource, 2),
        ("clock", time, 5),
        ("poll", select, 6),
        ("epoll", select, 6),
        ("epoll_create", select, 1),
        ("family", socket, 15),
        ("socket_type", socket, 5),
        ("socket_flag", socket, 2),
        ("level", socket, 4),
        ("level_socket", socket, 1),
        ("shutdown", socket, 3),
        ("msg", socket, 10),
        ("so", socket, 15),
        ("protocol", socket, 15),
        ("tcp", socket, 10),
        ("ip", socket, 10),
        ("ipv6", socket, 10),
        ("ioctl", termios, 20),
        ("error", errno, 100),
    ],
)
def test_constants_are_those_of_this_machine(table, module, least):
    own = get_table(table, platform.machine())
    names = [name for name in own if hasattr(module, name) and name not in OTHER_IN_LIBRARY]
    assert {name: own[name] for name in names} == {name: int(getattr(module, name)) for name in names}
    assert len(names) >= least


def test_each_value_has_one_name():
    for arch in ("x86_64", *DIFFERENCES):
        for table in TABLES:
            values = list(get_table(table, arch).values())
            assert len(values) == len(set(values)) > 0, (arch, table)


def test_architectures_differ():
    assert get_table("open", "x86_64")["O_DIRECTORY"] == get_table("open", "s390x")["O_DIRECTORY"] == 0o200000
    assert get_table("open", "aarch64")["O_DIRECTORY"] == get_table("open", "armv7l")["O_DIRECTORY"] == 0o40000
    assert "MAP_32BIT" in get_table("map") and "MAP_32BIT" not in get_table("map", "aarch64")
    assert get_table("open", "loongarch64") == get_table("open")
    with pytest.raises(KeyError):
        get_table("no_such_table")


@pytest.mark.parametrize(
    ("arch", "machine"),
    [("arm64", "aarch64"), ("armv6l", "armv7l"), ("i386", "i686"), ("amd64", "x86_64"), ("mips", "mips"), ("", "")],
)
def test_machines(arch, machine):
    assert find_machine(arch) == machine


FLAGS = {"NONE": 0, "A": 1, "B": 2, "AB4": 7, "C": 8, "HIGH": 1 << 40, "MINUS": -1}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "NONE"),
        (3, "A|B"),
        (7, "AB4"),
        (15, "AB4|C"),
        (6, "B|0x4"),
        (16, "0x10"),
        (1 << 40 | 1, "A|HIGH"),
        (-1, "AB4|C|HIGH|0xfffffefffffffff0"),
        (1 << 64, "NONE"),
    ],
)
def test_flags(value, text):
    assert decode_flags(value, FLAGS) == text
    assert decode_flags(0, {"A": 1}) == "0"


def test_names_of_values():
    assert name_value(2, FLAGS) == "B"
    assert name_value(-1, FLAGS) == "MINUS"
    assert name_value(99, FLAGS) is None
