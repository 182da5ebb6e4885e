# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of an rpm."""

from __future__ import annotations

import io
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.image import rpm

FACTS = {
    1000: "perl-Git",
    1001: "2.49.0",
    1002: "1.fc42",
    1022: "noarch",
    1044: "git-2.49.0-1.fc42.src.rpm",
    1004: "text",
}


def make_header(facts):
    entries, store = b"", b""
    for tag, text in facts.items():
        entries += struct.pack(">IIII", tag, 6, len(store), 1)
        store += text.encode() + b"\0"
    return b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", len(facts), len(store)) + entries + store


def make_rpm(facts=None, signatures=("x", "xyz")):
    signature = make_header(dict(enumerate(signatures)))
    return bytes(96) + signature + bytes(-len(signature) % 8) + make_header(FACTS if facts is None else facts)


@pytest.mark.parametrize("signatures", [(), ("x",), ("xyz", "abcdefg")])
def test_facts(signatures):
    assert rpm.read_facts(io.BytesIO(make_rpm(signatures=signatures))) == {
        "name": "perl-Git",
        "version": "2.49.0",
        "release": "1.fc42",
        "arch": "noarch",
        "source": "git-2.49.0-1.fc42.src.rpm",
    }


@pytest.mark.parametrize("length", [0, 50, 96, 100, 115, 130, 170, 250])
def test_a_header_that_is_cut_is_no_header(length):
    with pytest.raises(ValueError, match="missing|early"):
        rpm.read_facts(io.BytesIO(make_rpm()[:length]))


def test_damaged_headers():
    impossible = bytes(96) + b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", 1 << 31, 5)
    for content in (b"x" * 500, impossible, make_rpm({})):
        with pytest.raises(ValueError, match="missing|impossible|no name"):
            rpm.read_facts(io.BytesIO(content))
    beyond = make_rpm().replace(struct.pack(">III", 1022, 6, 23), struct.pack(">III", 1022, 6, 1 << 30))
    assert rpm.read_facts(io.BytesIO(beyond))["arch"] == ""
