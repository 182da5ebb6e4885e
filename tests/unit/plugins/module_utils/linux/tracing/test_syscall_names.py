# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names and numbers of system calls, as the library on this machine knows them."""

from __future__ import annotations

import ctypes
import os
import platform

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names

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


def test_numbers_of_globs():
    names = syscall_names.list_names()
    found = syscall_names.find_numbers(["open*", "read"], compat=False)
    assert {names[number] for number in found.native} == {
        name for name in names.values() if name.startswith("open")
    } | {"read"}
    assert found.compat == ()
    assert syscall_names.find_numbers(["open*", "*"], compat=True) == syscall_names.SyscallNumbers()


def test_numbers_of_the_32_bit_architecture():
    if platform.machine() != "x86_64":
        pytest.skip("the numbers are those of x86")
    found = syscall_names.find_numbers(["connect", "open", "getpid"], compat=True)
    # asm/unistd_32.h: open 5, getpid 20, connect 362, and socketcall 102, by which old programs connect.
    assert (found.native, found.compat) == ((2, 39, 42), (5, 20, 102, 362))
    assert syscall_names.find_numbers(["mmap2"], compat=True).compat == (192,)
    with pytest.raises(FleetError, match="only 32-bit programs have mmap2"):
        syscall_names.find_numbers(["mmap2"], compat=False)
    with pytest.raises(FleetError, match="no system call of zz1, zz2"):
        syscall_names.find_numbers(["zz1", "zz2"], compat=True, missing_ok=True)


def test_of_a_name_that_is_missing_near_ones_are_named():
    with pytest.raises(FleetError, match=r"no system call 'opnat'; near ones: openat"):
        syscall_names.find_numbers(["opnat"], compat=True)
    with pytest.raises(FleetError, match="no system call 'zz"):
        syscall_names.find_numbers(["zz*"], compat=True)


def test_all_of_several_wishes():
    join, numbers = syscall_names.join_numbers, syscall_names.SyscallNumbers
    assert join([numbers((1, 3), (2,)), numbers((1, 2), ())]) == numbers((1, 2, 3), (2,))
    assert join([numbers((1,), ()), numbers()]) == numbers()
