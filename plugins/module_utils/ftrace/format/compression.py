# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compress and decompress the chunks of a capture: with zstd by the host's own libzstd, or with zlib on a host without it.

Debian's trace-cmd and KernelShark read zstd only, and zstd takes a fifth of zlib's time. Both libraries let other threads run meanwhile.
Source: zstd.h, RFC 8878.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import zlib
from typing import Any, Callable, Union

NONE, ZSTD, ZLIB = "none", "zstd", "zlib"
_LIBRARY = "libzstd.so.1"
_LEVEL = 1
Data = Union[bytes, bytearray, memoryview]
_library: list[ctypes.CDLL] = []


class CompressionError(ValueError):
    """An error for compressed data that are damaged or of another size than stated, and for a missing library."""


def _load() -> ctypes.CDLL:
    if not _library:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            path = ctypes.util.find_library("zstd")
            if path is None:
                raise CompressionError(
                    f"{_LIBRARY} is missing here: install the package libzstd1 (or libzstd)"
                ) from error
            library = ctypes.CDLL(path)
        for name in ("ZSTD_createCCtx", "ZSTD_getErrorName"):
            getattr(library, name).restype = ctypes.c_void_p if name == "ZSTD_createCCtx" else ctypes.c_char_p
        for name in ("ZSTD_compressBound", "ZSTD_compressCCtx", "ZSTD_decompress"):
            getattr(library, name).restype = ctypes.c_size_t
        _library.append(library)
    return _library[0]


def list_available() -> list[str]:
    """Return the methods of compression that work on this host, the best first."""
    try:
        _load()
    except (CompressionError, OSError, AttributeError):
        return [ZLIB]
    return [ZSTD, ZLIB]


def make_compressor(name: str) -> Callable[[Data], bytes]:
    """Return a function that compresses a chunk by the method NAME; only one thread may use it.

    Raises CompressionError if NAME is zstd and the library is missing.
    """
    if name == NONE:
        return bytes
    if name == ZLIB:
        return lambda data: zlib.compress(data, _LEVEL)
    return _Zstd().compress


class _Zstd:
    """A context of libzstd with its output buffer."""

    def __init__(self) -> None:
        self._library = _load()
        self._context = ctypes.c_void_p(self._library.ZSTD_createCCtx())
        self._room: Any = ctypes.create_string_buffer(0)

    def __del__(self) -> None:
        self._library.ZSTD_freeCCtx(self._context)

    def compress(self, data: Data) -> bytes:
        """Return DATA as one zstd frame."""
        bound = self._library.ZSTD_compressBound(ctypes.c_size_t(len(data)))
        if len(self._room) < bound:
            self._room = ctypes.create_string_buffer(bound)
        # A writable buffer is passed without a copy.
        source = data if isinstance(data, bytes) else (ctypes.c_char * len(data)).from_buffer(data)
        size = self._library.ZSTD_compressCCtx(
            self._context, self._room, ctypes.c_size_t(bound), source, ctypes.c_size_t(len(data)), ctypes.c_int(_LEVEL)
        )
        _check(self._library, size)
        return bytes(memoryview(self._room)[:size])


def _check(library: ctypes.CDLL, size: int) -> None:
    if library.ZSTD_isError(ctypes.c_size_t(size)):
        text = library.ZSTD_getErrorName(ctypes.c_size_t(size)).decode("ascii", "replace")
        raise CompressionError(f"zstd: {text}")


def decompress(name: str, data: bytes, size: int) -> bytes:
    """Return the SIZE bytes that DATA, compressed by the method NAME, hold; no more memory than SIZE is used.

    Raises CompressionError if DATA are damaged or hold another number of bytes, and if the method is not known or its library is missing.
    """
    if name == NONE:
        found = data
    elif name == ZLIB:
        found = _inflate(data, size)
    elif name == ZSTD:
        library = _load()
        room = ctypes.create_string_buffer(size)
        count = library.ZSTD_decompress(room, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data)))
        _check(library, count)
        found = bytes(memoryview(room)[:count])
    else:
        raise CompressionError(f"compression by {name!r} is not known")
    if len(found) != size:
        raise CompressionError(f"the data hold {len(found)} bytes instead of {size}")
    return found


def _inflate(data: bytes, size: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        found = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise CompressionError(f"zlib: {error}") from error
    if not decompressor.eof and len(found) <= size:
        raise CompressionError("zlib: the data are cut short")
    return found
