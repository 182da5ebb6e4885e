# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chunks that are compressed and come back, or are refused; a few bytes never become more memory than they say."""

from __future__ import annotations

import random
import zlib

import pytest

from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format import compression
from ansible_collections.crashcart.fleet.plugins.module_utils.ftrace.format.compression import CompressionError

METHODS = [compression.NONE, *compression.list_available()]


def test_this_machine_has_zstd():
    """Else half of what follows would test nothing."""
    assert compression.list_available() == [compression.ZSTD, compression.ZLIB]


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_what_is_compressed_comes_back(method, kind):
    compress = compression.make_compressor(method)
    source = random.Random(1)
    for content in (b"", b"x", bytes(4096), bytes(source.randrange(256) for _index in range(70000)), b"page" * 65536):
        packed = compress(kind(content))
        assert isinstance(packed, bytes)
        assert compression.decompress(method, packed, len(content)) == content


@pytest.mark.parametrize("method", compression.list_available())
def test_every_damaged_byte_is_found_or_changes_the_content_only(method):
    content = b"".join(b"%d " % number for number in range(400))
    packed = compression.make_compressor(method)(content)
    refused = 0
    for place in range(len(packed)):
        data = bytearray(packed)
        data[place] ^= 0x41
        try:
            assert len(compression.decompress(method, bytes(data), len(content))) == len(content)
        except CompressionError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("method", METHODS)
def test_cut_short_anywhere(method):
    content = b"some content " * 30
    packed = compression.make_compressor(method)(content)
    for length in range(len(packed)):
        with pytest.raises(CompressionError):
            compression.decompress(method, packed[:length], len(content))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 1, 99, 101, 1 << 20])
def test_another_size_than_is_said_is_refused(method, size):
    packed = compression.make_compressor(method)(b"x" * 100)
    with pytest.raises(CompressionError):
        compression.decompress(method, packed, size)


@pytest.mark.sweep
def test_a_stream_that_goes_on_for_ever_ends_at_its_size():
    packed = zlib.compress(bytes(64 << 20))
    with pytest.raises(CompressionError, match="bytes instead of 100"):
        compression.decompress(compression.ZLIB, packed, 100)


def test_a_method_that_nobody_knows():
    with pytest.raises(CompressionError, match="'lzma' is not known"):
        compression.decompress("lzma", b"", 0)


def test_where_there_is_no_libzstd_zlib_serves(monkeypatch):
    monkeypatch.setattr(compression, "_library", [])
    monkeypatch.setattr(compression, "_LIBRARY", "libnonesuch.so.1")
    monkeypatch.setattr(compression.ctypes.util, "find_library", lambda _name: None)
    assert compression.list_available() == [compression.ZLIB]
    with pytest.raises(CompressionError, match="install the package libzstd1"):
        compression.decompress(compression.ZSTD, b"", 0)
