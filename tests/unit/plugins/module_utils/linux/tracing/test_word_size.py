# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""64-bit and 32-bit programs are told apart by their auxiliary vectors."""

from __future__ import annotations

import os
import struct

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.linux.tracing import word_size

ENTRIES = ((33, 0xF7F6E000), (16, 0x178BFBFF), (6, 4096), (17, 100), (0, 0))


def pack(code):
    return b"".join(struct.pack(code, *entry) for entry in ENTRIES)


@pytest.mark.parametrize(("code", "is_compat"), [("<QQ", False), (">QQ", False), ("=II", True)])
def test_words(code, is_compat):
    assert word_size.is_compat_auxv(pack(code)) == is_compat


@pytest.mark.parametrize("auxv", [b"", b"\0\0\0", b"\6\0\0\0"])
def test_none_and_damage_are_not_32_bit(auxv):
    assert not word_size.is_compat_auxv(auxv)


def test_this_process_and_one_that_is_not():
    assert not word_size.is_compat(os.getpid())
    assert not word_size.is_compat(1 << 30)
