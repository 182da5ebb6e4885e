# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Arguments of system calls are shown as strace shows them."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names import arguments, signatures
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.arguments import format_arguments
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.uapi import TABLES
from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.path_calls import FAMILIES
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import syscall_names
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis.names.known_calls import (
    OTHER_IN_STRACE,
    SAME_IN_STRACE,
)

VERSION = "version 6.1"  # others may know other names
MAKE_CALLS = """
import ctypes, json, sys
libc = ctypes.CDLL(None)
for words in json.loads(sys.argv[1]):
    libc.syscall(*(ctypes.c_ulong(word % 2**64) for word in words))
"""
CWD = (1 << 32) - 100


def fill(words):
    """Return WORDS with zeros up to six, as the kernel gives them."""
    return [*words, *[0] * (6 - len(words))]


def sort_flags(text):
    """Return the arguments in TEXT, each with its flags sorted."""
    return ["|".join(sorted(word.split("|"))) for word in text.split(", ")]


@pytest.mark.parametrize(("call", "words", "expected"), SAME_IN_STRACE + OTHER_IN_STRACE)
def test_known_calls(call, words, expected):
    assert format_arguments(call, fill(words), "x86_64") == expected


def test_strace_shows_the_same(tmp_path):
    strace = shutil.which("strace")
    if platform.machine() != "x86_64" or not strace:
        pytest.skip("the numbers are those of x86_64, and strace has to be there")
    if VERSION not in subprocess.run([strace, "-V"], stdout=subprocess.PIPE, text=True, check=True).stdout:
        pytest.skip(f"strace is not of {VERSION}")
    try:
        made = [[syscall_names.find_number(call), *fill(words)] for call, words, _expected in SAME_IN_STRACE]
    except FleetError as error:
        pytest.skip(str(error))
    output = tmp_path / "strace"
    command = [strace, "-o", str(output), sys.executable, "-c", MAKE_CALLS, json.dumps(made)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    if "Operation not permitted" in done.stderr:
        pytest.skip("this user may not trace processes")
    found = re.findall(r"^(\w+)\((.*)\) += ", output.read_text(), re.MULTILINE)
    last = max(i for i, (call, _shown) in enumerate(found) if call == "exit_group")
    shown = found[last + 1 - len(made) : last + 1]
    assert [(call, sort_flags(text)) for call, text in shown] == [
        (call, sort_flags(expected)) for call, _words, expected in SAME_IN_STRACE
    ]


def test_every_kind_can_be_shown():
    by_command = [
        kinds
        for _position, _table, named, other in signatures._BY_COMMAND.values()
        for kinds in (*named.values(), other)
    ]
    different = [*signatures._DIFFERENT.values(), *signatures._DIFFERENT_IN_32_BITS.values()]
    for kinds in (*signatures.SIGNATURES.values(), *by_command, *different):
        assert len(kinds) <= 6
        for kind in kinds:
            assert kind == "-" or kind[:-1] in TABLES if kind[-1] in "|=-" else kind in arguments._SHOWERS, kind
    for _position, table, named, _other in signatures._BY_COMMAND.values():
        assert set(named) <= set(arguments.get_table(table))
    used = {kind for kinds in (*signatures.SIGNATURES.values(), *by_command, *different) for kind in kinds}
    assert set(arguments._SHOWERS) <= used
    assert set(arguments._FLAGS_OF_WORDS) <= used


def test_paths_are_where_they_are_recorded():
    for family in FAMILIES.values():
        for call, positions in family.calls.items():
            kinds = signatures.SIGNATURES[call]
            assert tuple(i for i, kind in enumerate(kinds) if kind == "path") == positions, call


def test_most_calls_are_listed():
    try:
        names = set(syscall_names.list_names().values())
    except FleetError as error:
        pytest.skip(str(error))
    assert len(names & set(signatures.SIGNATURES)) > 230
    assert all(signatures.find_kinds(name, (), "x86_64") == kinds for name, kinds in signatures.SIGNATURES.items())


@pytest.mark.parametrize(
    ("call", "words", "path", "expected"),
    [
        ("openat", (CWD, 16, 0), "/etc/passwd", 'AT_FDCWD, "/etc/passwd", O_RDONLY'),
        ("openat", (CWD, 16, 0), None, "AT_FDCWD, 0x10, O_RDONLY"),
        ("openat", (CWD, 16, 0), "", 'AT_FDCWD, "", O_RDONLY'),
        ("open", (16, 0), 'a", O_RDWR\\\n\x1b[2J\u202e\udcff', '"a\\", O_RDWR\\\\??[2J??", O_RDONLY'),
        ("rename", (16, 17), "/a -> /b", '"/a", "/b"'),
        ("rename", (16, 17), "/a -> /b -> /c", '"/a -> /b -> /c", 0x11'),
        ("rename", (16, 17), "/a", '"/a", 0x11'),
        ("renameat2", (CWD, 16, 5, 17, 1), "a -> b", 'AT_FDCWD, "a", 5, "b", RENAME_NOREPLACE'),
        ("stat", (16, 17), "/a -> /b", '"/a -> /b", 0x11'),
        ("read", (5, 16, 3), "/a", "5, 0x10, 3"),
        ("no_such_call", (1, 2), "/a", "0x1, 0x2"),
    ],
)
def test_paths(call, words, path, expected):
    assert format_arguments(call, words, "x86_64", path=path) == expected


def test_descriptors():
    texts = {3: "/etc/passwd", 4: "a\nb", 5: ""}
    show = {"fd_text": texts.get}
    assert format_arguments("read", (3, 16, 1), "x86_64", **show) == "3</etc/passwd>, 0x10, 1"
    assert format_arguments("dup2", (4, 9), "x86_64", **show) == "4<a?b>, 9"
    assert format_arguments("close", (5,), "x86_64", **show) == "5<>"
    assert format_arguments("unlinkat", (3, 16, 0), "x86_64", path="x", **show) == '3</etc/passwd>, "x", 0'
    # Of a word, the kernel takes 32 bits as a descriptor.
    assert format_arguments("close", (7 << 32 | 3,), "x86_64", **show) == "3</etc/passwd>"
    assert format_arguments("close", (-1,), "x86_64", fd_text=pytest.fail) == "-1"
    assert format_arguments("mkdirat", (-100, 16, 0), "x86_64", fd_text=pytest.fail) == "AT_FDCWD, 0x10, 000"


@pytest.mark.parametrize(
    ("call", "words", "arch", "expected"),
    [
        ("openat", (CWD, 16, 0o40000), "aarch64", "AT_FDCWD, 0x10, O_RDONLY|O_DIRECTORY"),
        ("openat", (CWD, 16, 0o40000), "arm64", "AT_FDCWD, 0x10, O_RDONLY|O_DIRECTORY"),
        ("openat", (CWD, 16, 0o40000), "x86_64", "AT_FDCWD, 0x10, O_RDONLY|O_DIRECT"),
        ("openat", (CWD, 16, 0o40000), "riscv64", "AT_FDCWD, 0x10, O_RDONLY|O_DIRECT"),
        ("openat", (CWD, 16, 0o40000), "sparc64", "AT_FDCWD, 0x10, O_RDONLY|O_DIRECT"),
        ("clone", (17, 1, 2, 3, 4), "x86_64", "SIGCHLD, 0x1, 0x2, 0x3, 0x4"),
        ("clone", (17, 0, 0, 0, 0), "aarch64", "SIGCHLD, NULL, NULL, 0, NULL"),
        ("clone", (0, 17, 0, 0, 0), "s390x", "NULL, SIGCHLD, NULL, NULL, 0"),
        ("mmap2", (0, 4096, 3, 2, 4, 2), "i686", "NULL, 4096, PROT_READ|PROT_WRITE, MAP_PRIVATE, 4, 0x2000"),
        ("mmap", (16, 0, 0, 0, 0, 0), "i386", "0x10"),
        ("fcntl64", (3, 13, 16), "i686", "3, F_SETLK64, 0x10"),
        ("fcntl", (3, 13, 16), "x86_64", "3, 13, 0x10"),
        ("stat64", (16, 17), "i686", "0x10, 0x11"),
        ("clock_nanosleep_time64", (1, 0, 16, 0), "armv7l", "CLOCK_MONOTONIC, 0, 0x10, NULL"),
        ("write", (3, 16, -1), "armv6l", "3, 0x10, 4294967295"),
        ("pread64", (3, 16, 1, 0, 5, 6), "i686", "3, 0x10, 1, 0, 0x5, 0x6"),
        ("newstat", (16, 17, 0, 0, 0, 0), "x86_64", "0x10, 0x11"),
        ("newuname", (16, 17, 0, 0, 0, 0), "x86_64", "0x10"),
    ],
)
def test_architectures(call, words, arch, expected):
    assert format_arguments(call, words, arch) == expected


WORDS = (0, 1, -1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, -(2**63), 2**200, -(2**200), 0x5555555555555555, True)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "i686", "armv7l", "s390x", "", "\n"])
def test_no_value_is_refused(arch):
    for call in (*signatures.SIGNATURES, "fcntl64", "nothing", "", "64", "new", "\n"):
        for word in WORDS:
            for count in range(8):
                text = format_arguments(call, [word] * count, arch, path='"\n', fd_text=lambda number: f"\n{number}")
                assert text.isprintable()
