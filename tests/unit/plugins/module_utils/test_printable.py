# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that others have given are shown, and no terminal obeys them."""

from __future__ import annotations

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.errors import FleetError
from ansible_collections.crashcart.fleet.plugins.module_utils.image.errors import BuildError
from ansible_collections.crashcart.fleet.plugins.module_utils.printable import escape, escape_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00e4\u4e2d 'x'", "plain \u00e4\u4e2d 'x'"),
        ("one\n\tTASK [two]", r"one\n\tTASK [two]"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x00\x7f\x9b", r"a\rb\x00\x7f\x9b"),
        ("\u202egnp.\u2066\u200b\ufeff", r"\u202egnp.\u2066\u200b\ufeff"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("\u2028", r"\u2028"),
        (r"\x1b", r"\x1b"),
    ],
)
def test_escape(text, shown):
    assert escape(text) == shown
    assert escape(shown) == shown


def test_what_a_program_says_keeps_its_lines():
    assert escape_lines("E: one\n\ttwo \x1b[2J\r\u2028") == "E: one\n\ttwo " + r"\x1b[2J\r\u2028"
    assert str(BuildError("apt-get failed: E: one\nE: two")) == "apt-get failed: E: one\nE: two"


def test_an_error_is_printable():
    assert str(FleetError("no container is called '\x1b[31m'")) == r"no container is called '\x1b[31m'"
    assert str(FleetError("a mount of x\nfatal: all is lost")) == r"a mount of x\nfatal: all is lost"
