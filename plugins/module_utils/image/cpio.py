# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of cpio in the form newc, which is what an rpm holds. Source: cpio(5).

tar has no place for what an rpm does with a file of several names: the content comes with the last of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, Any, Iterator, cast

_MAGICS = (b"070701", b"070702")
_FIELDS = 13
_HEADER = 6 + 8 * _FIELDS
_LAST = "TRAILER!!!"
_MAX_NAME = 65536


@dataclass(frozen=True)
class Member:
    """One name in an archive. MODE has the kind of file, INODE says which names are one file; CONTENT is to be read at once."""

    name: str
    mode: int
    inode: int
    links: int
    size: int
    content: IO[bytes]


class _Content(io.RawIOBase):
    """The next SIZE bytes of STREAM."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """At most SIZE bytes, all that are left for -1."""
        part = _read(self._stream, self._left if size < 0 else min(size, self._left))
        self._left -= len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def gen_members(stream: IO[bytes]) -> Iterator[Member]:
    """The members of the archive STREAM; raises ValueError where it is damaged."""
    while True:
        header = _read(stream, _HEADER)
        if header[:6] not in _MAGICS:
            raise ValueError("what should be a header of cpio is none")
        numbers = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(_FIELDS)]
        inode, mode, _uid, _gid, links, _time, size, *_devices, name_size, _check = numbers
        if not 0 < name_size <= _MAX_NAME:
            raise ValueError(f"a name of {name_size} bytes")
        name = _read(stream, name_size)[:-1].decode("utf-8", "surrogateescape")
        _read(stream, -(_HEADER + name_size) % 4)
        if name == _LAST:
            return
        content = _Content(stream, size)
        yield Member(name, mode, inode, links, size, cast("IO[bytes]", content))
        while content.read(1 << 20):
            pass
        _read(stream, -size % 4)


def _read(stream: IO[bytes], size: int) -> bytes:
    """SIZE bytes of STREAM, whole."""
    parts = []
    while size:
        part = stream.read(min(size, 1 << 20))
        if not part:
            raise ValueError("it ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
