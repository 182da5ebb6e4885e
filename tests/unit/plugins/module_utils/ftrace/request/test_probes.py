# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Probes from a user's words to the kernel's, and what would become something else there."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request import probes
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.request.probes import ProbeRequest, parse_request
from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing.tracefs import TraceError

UPROBE = {"name": "open", "type": "uprobe", "binary": "/lib/libc.so.6", "symbol": "open64"}
KPROBE = {"name": "vfs", "type": "kprobe", "function": "vfs_write+0x10"}
EPROBE = {"name": "e", "type": "eprobe", "event": "syscalls:sys_enter_openat"}


@pytest.mark.parametrize(
    ("entry", "place", "line"),
    [
        (KPROBE, "vfs_write+0x10", "p:G/vfs vfs_write+0x10"),
        ({**KPROBE, "type": "kretprobe"}, "vfs_write+0x10", "r:G/vfs vfs_write+0x10"),
        ({**KPROBE, "function": "ext4:ext4_sync.isra.0"}, "ext4:ext4_sync.isra.0", "p:G/vfs ext4:ext4_sync.isra.0"),
        (
            {**EPROBE, "arguments": {"path": "+0($filename):ustring"}},
            "syscalls/sys_enter_openat",
            "e:G/e syscalls/sys_enter_openat path=+0($filename):ustring",
        ),
        ({**UPROBE, "arguments": {"a": "%di", "b": "%si:x8"}}, "", "p:G/open FILE:0x12 a=%di b=%si:x8"),
        ({**UPROBE, "type": "uretprobe", "arguments": {"r": "$retval"}}, "", "r:G/open FILE:0x12 r=$retval"),
    ],
)
def test_a_definition_is_what_the_kernel_takes(entry, place, line):
    request = parse_request(entry)
    assert request.place == place
    definition = probes.make_definition(request, place or "FILE:0x12", "8:1:0x12")
    assert definition.format("G") == line


def test_where_a_probe_of_a_program_sits():
    assert parse_request(UPROBE) == ProbeRequest(
        "open", "uprobe", binaries=("/lib/libc.so.6",), symbol="open64", arguments=(), filter=""
    )
    by_offset = parse_request({**UPROBE, "symbol": None, "offset": "0x1f0"})
    assert (by_offset.symbol, by_offset.offset) == ("", 0x1F0)
    # A path may hold what a definition cannot: it is in none.
    assert parse_request({**UPROBE, "binary": '/a b\n"c"'}).binaries == ('/a b\n"c"',)


def test_a_filter_is_on_one_line():
    assert parse_request({**KPROBE, "filter": " a == 1\n && b == 2"}).filter == "a == 1 && b == 2"


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({**KPROBE, "name": "a b"}, "'a b': a name is made of letters"),
        ({**KPROBE, "name": ""}, "a name is made of letters"),
        ({**KPROBE, "name": "../x"}, "a name is made of letters"),
        ({**KPROBE, "name": "x\n-:other/probe"}, "a name is made of letters"),
        ({**KPROBE, "name": "x" * 64}, "63 at most"),
        ({**KPROBE, "name": "1x"}, "a name is made of letters"),
        ({**KPROBE, "name": "path_open"}, "are those of the option paths"),
        ({**KPROBE, "function": "vfs_write\n-:other/probe"}, "needs function"),
        ({**KPROBE, "function": "vfs write"}, "needs function"),
        ({**KPROBE, "function": "/bin/sh:0"}, "needs function"),
        ({**KPROBE, "function": None}, "needs function"),
        ({**KPROBE, "symbol": "open"}, "symbol is not for a kprobe"),
        ({**UPROBE, "function": "open"}, "function is not for a uprobe"),
        ({**EPROBE, "event": "syscalls"}, "needs event, as system:name"),
        ({**EPROBE, "event": "a:b c"}, "needs event, as system:name"),
        ({**UPROBE, "binary": "lib/libc.so.6"}, "an absolute path inside the container"),
        ({**UPROBE, "binary": None}, "an absolute path inside the container"),
        ({**UPROBE, "binary": "/a\0b"}, "an absolute path inside the container"),
        ({**UPROBE, "symbol": None}, "either symbol"),
        ({**UPROBE, "offset": "8"}, "either symbol"),
        ({**UPROBE, "symbol": "a b"}, "no name of a function"),
        ({**UPROBE, "symbol": None, "offset": "-1"}, "no number of bytes"),
        ({**UPROBE, "symbol": None, "offset": "many"}, "no number of bytes"),
        ({**UPROBE, "symbol": None, "offset": str(1 << 63)}, "no number of bytes"),
        ({**KPROBE, "arguments": {"a b": "%di"}}, "no name for an argument"),
        ({**KPROBE, "arguments": {"a": "%di %si"}}, "no fetch argument"),
        ({**KPROBE, "arguments": {"a": "%di\n-:other/probe"}}, "no fetch argument"),
        ({**KPROBE, "arguments": {"a": "%di#"}}, "no fetch argument"),
        ({**KPROBE, "arguments": {"a": ""}}, "no fetch argument"),
        ({**KPROBE, "arguments": {"a": 5}}, "no fetch argument"),
        ({**KPROBE, "arguments": {"a": "é"}}, "no fetch argument"),
    ],
)
def test_what_the_kernel_would_take_for_something_else_is_refused(entry, wanted):
    with pytest.raises(TraceError, match=wanted):
        parse_request(entry)


def test_two_probes_of_one_name():
    with pytest.raises(TraceError, match="probe vfs: there are two"):
        probes.check_names([parse_request(KPROBE), parse_request({**KPROBE, "function": "vfs_read"})])


def test_a_definition_that_is_too_long():
    request = parse_request({**KPROBE, "arguments": {f"a{number}": "+0(%di):u64" for number in range(300)}})
    with pytest.raises(TraceError, match="longer than the kernel takes"):
        probes.make_definition(request, request.place, request.place)


def make(place="FD:0x1", identity="8:1:0x1", **changes):
    return probes.make_definition(parse_request({**UPROBE, **changes}), place, identity)


def test_a_group_says_what_is_in_it():
    group = probes.name_group("0123456789ab", [make()])
    assert group.startswith("crashcart_0123456789ab_")
    # The number of a descriptor is no difference, and a filter is not defined in the group.
    assert probes.name_group("0123456789ab", [make(place="FD2:0x1")]) == group
    assert probes.name_group("0123456789ab", [make(filter="a == 1")]) == group
    others = [
        [make(identity="8:2:0x1")],
        [make(name="other")],
        [make(arguments={"a": "%di"})],
        [make(type="uretprobe")],
        [make(), make(name="other")],
    ]
    assert len({group, *(probes.name_group("0123456789ab", one) for one in others)}) == 1 + len(others)


def test_a_group_is_a_name_that_the_kernel_takes():
    assert len(probes.name_group("0123456789ab", [make()])) < 64
