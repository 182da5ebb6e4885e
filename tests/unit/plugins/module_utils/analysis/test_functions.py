# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Functions of the kernel by name."""

from __future__ import annotations

import io
import struct

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.decode import Trace
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.formats import parse_format
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.functions import Symbols
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.syscalls import summarize
from ansible_collections.crashcart.fleet.tests.unit.plugins.module_utils.analysis import pages

FORMAT = (
    "name: function\nID: 1\n"
    "\tfield:unsigned long ip;\toffset:8;\tsize:8;\tsigned:0;\n"
    "\tfield:unsigned long parent_ip;\toffset:16;\tsize:8;\tsigned:0;\n"
)
SYMBOLS = b"ffffffff81000000 T vfs_read\nffffffff81000100 t vfs_write\t[mod]\ngarbage\nffffffff81000200 T after\n"


def count(*addresses, kallsyms=SYMBOLS):
    events = [pages.pack_event(pages.make_record(1, 5, struct.pack("QQ", address, 0))) for address in addresses]
    trace = Trace(io.BytesIO(pages.pack_trace([[pages.pack_page(100, events)]])))
    trace.formats = {"ftrace:function": parse_format(FORMAT, "ftrace")}
    trace.head.kallsyms = kallsyms
    return summarize(trace, {}).functions


def test_an_address_inside_a_function_is_the_functions():
    assert count(0xFFFFFFFF81000004, 0xFFFFFFFF81000104, 0xFFFFFFFF81000100) == {"vfs_write": 2, "vfs_read": 1}


def test_an_address_that_nobody_knows():
    assert count(0x1000) == {"0x1000": 1}
    assert count(0xFFFFFFFF81000000, kallsyms=b"") == {"0xffffffff81000000": 1}


def test_addresses_that_the_kernel_hides():
    assert count(0xFFFFFFFF81000000, kallsyms=b"0000000000000000 T vfs_read\n") == {"0xffffffff81000000": 1}


def test_no_functions():
    assert count() == {}


def test_an_address_is_told_with_its_place_in_the_function():
    symbols = Symbols(SYMBOLS)
    assert symbols.describe(0xFFFFFFFF81000000) == "vfs_read+0x0"
    assert symbols.describe(0xFFFFFFFF81000123) == "vfs_write+0x23"
    assert symbols.describe(0x1000) == "0x1000"
    assert Symbols(b"0000000000000000 T hidden\n").describe(0x1000) == "0x1000"
