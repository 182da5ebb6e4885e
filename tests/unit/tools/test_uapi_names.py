# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the kernel's constants are what the generator writes, from headers as they are on this machine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names import uapi, uapi_differences
from ansible_collections.crashcart.fleet.plugins.module_utils.analysis.names.tables import get_table
from ansible_collections.crashcart.fleet.tools.generate_uapi_names import (
    ABSENT,
    BASE,
    HEADERS_OF_BASE,
    MACHINES,
    TABLES,
    Table,
    find_differences,
    gen_differences,
    gen_tables,
    read_constants,
)

VERSION = re.findall(r"headers of Linux ([\d.]+):", uapi.__doc__)[0]
HAS_HEADERS = shutil.which("gcc") and all((folder / "asm").exists() for folder in HEADERS_OF_BASE[:1])
needs_headers = pytest.mark.skipif(not HAS_HEADERS, reason="gcc and the package linux-libc-dev of x86_64 are not here")


def parse(tables):
    """Return the constants in the texts of TABLES, with None for those that are absent."""
    words = {table: [word.split("=") for word in text.split()] for table, text in tables.items()}
    return {
        table: {name: None if number == ABSENT else int(number, 0) for name, number in pairs}
        for table, pairs in words.items()
    }


def test_nobody_edited_the_files():
    assert "".join(gen_tables(VERSION, parse(uapi.TABLES))) == Path(uapi.__file__).read_text(encoding="utf-8")
    changes = {machine: parse(tables) for machine, tables in uapi_differences.DIFFERENCES.items()}
    assert "".join(gen_differences(VERSION, changes)) == Path(uapi_differences.__file__).read_text(encoding="utf-8")
    assert list(uapi.TABLES) == list(TABLES)
    assert list(changes) == list(MACHINES)


@needs_headers
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("open", "tcp", "futex") else pytest.mark.sweep) for name in TABLES]
)
def test_headers_have_the_same_values(name):
    table = TABLES[name]
    found = read_constants(table, BASE, () if table.is_libc else HEADERS_OF_BASE)
    known = get_table(name)
    common = found.keys() & known.keys()  # headers may be newer or older
    assert {constant: found[constant] for constant in common} == {constant: known[constant] for constant in common}
    assert len(common) > 0.9 * len(known)


@needs_headers
def test_a_name_that_is_no_number_or_has_no_value_of_its_own_is_refused():
    with pytest.raises(RuntimeError, match="several of"):
        read_constants(Table(r"O_(NONBLOCK|NDELAY)", "asm/fcntl.h"), BASE, HEADERS_OF_BASE)
    with pytest.raises(RuntimeError, match="gcc refuses"):
        read_constants(Table(r"__kernel_old_uid_t", "asm/posix_types.h"), BASE, HEADERS_OF_BASE)
    with pytest.raises(RuntimeError, match="no values"):
        read_constants(Table(r"NOTHING", "asm/fcntl.h"), BASE, HEADERS_OF_BASE)


def test_differences():
    base = {"a": {"X": 1, "Y": 2}, "b": {"Z": 3}, "of_libc": {"L": 1}}
    own = {"a": {"X": 1, "Y": 4, "NEW": 5}, "b": {}}
    assert find_differences(base, own) == {"a": {"Y": 4, "NEW": 5}, "b": {"Z": None}}
    assert find_differences(base, base) == {}
