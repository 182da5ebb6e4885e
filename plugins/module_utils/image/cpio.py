# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read cpio archives in the format newc, the payload of an rpm. Source: cpio(5).

tar cannot express an rpm's hard links: where a file has several names, the content comes with the last one.
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
    """One name in an archive."""

    name: str
    mode: int  # st_mode: the kind of file and its permissions
    inode: int  # the same for all names of one file
    links: int  # names of the file
    size: int  # bytes of CONTENT
    content: IO[bytes]  # to be read before the next member is asked for


class _Content(io.RawIOBase):
    """The next SIZE bytes of STREAM."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Return at most SIZE bytes, or all that are left for -1."""
        part = _read(self._stream, self._left if size < 0 else min(size, self._left))
        self._left -= len(part)
        return part

    def readinto(self, buffer: Any) -> int:
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)


def gen_members(stream: IO[bytes]) -> Iterator[Member]:
    """Yield the members of the archive STREAM. Raises ValueError where it is damaged."""
    while True:
        header = _read(stream, _HEADER)
        if header[:6] not in _MAGICS:
            raise ValueError("a cpio header is missing")
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
    """Return exactly SIZE bytes of STREAM."""
    parts = []
    while size:
        part = stream.read(min(size, 1 << 20))
        if not part:
            raise ValueError("it ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
