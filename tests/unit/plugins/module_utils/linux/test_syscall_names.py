# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and numbers of system calls, as the library on this machine knows them."""

from __future__ import annotations

import ctypes
import os
import platform

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux import syscall_names

try:
    ctypes.CDLL("libseccomp.so.2")
except OSError:
    pytest.skip("libseccomp is not on this machine", allow_module_level=True)

# asm/unistd.h of the architecture: read, execve, exit_group.
KNOWN = {"x86_64": (0, 59, 231), "aarch64": (63, 221, 94)}


def test_numbers_are_those_of_this_machine():
    libc = ctypes.CDLL(None)
    assert libc.syscall(ctypes.c_long(syscall_names.find_number("getpid"))) == os.getpid()
    if platform.machine() in KNOWN:
        names = ("read", "execve", "exit_group")
        assert tuple(map(syscall_names.find_number, names)) == KNOWN[platform.machine()]


def test_every_listed_name_has_its_number():
    names = syscall_names.list_names()
    assert len(names) > 250
    assert {number: syscall_names.find_number(name) for number, name in names.items()} == {
        number: number for number in names
    }


# "breakpoint" is a system call of 32-bit ARM only: the library knows it by a negative number elsewhere.
@pytest.mark.parametrize("name", ["", "no_such_call", "READ", "read ", "r\xe9ad", "1", "breakpoint"])
def test_a_name_that_this_machine_does_not_have(name):
    with pytest.raises(FleetError, match="no system call"):
        syscall_names.find_number(name)
