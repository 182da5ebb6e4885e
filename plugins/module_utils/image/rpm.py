# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the header of an rpm. Source: the description of the file format in rpm's manual."""

from __future__ import annotations

import struct
from typing import IO

_LEAD_SIZE = 96
_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_PREAMBLE = struct.Struct(">4s4xII")  # magic, number of entries, size of the store
_ENTRY = struct.Struct(">IIII")  # tag, type, offset, count
_MAX_SIZE = 64 << 20
_STRING = 6
_TAGS = {1000: "name", 1001: "version", 1002: "release", 1022: "arch", 1044: "source"}


def read_facts(file: IO[bytes]) -> dict[str, str]:
    """Return name, version, release, arch and source of the rpm FILE. Raises ValueError where its headers are damaged."""
    file.seek(_LEAD_SIZE)
    size = len(b"".join(_read_header(file)))  # the signatures
    file.seek(-size % 8, 1)
    entries, store = _read_header(file)
    facts = dict.fromkeys(_TAGS.values(), "")
    for tag, kind, offset, _count in _ENTRY.iter_unpack(entries):
        if tag in _TAGS and kind == _STRING and offset < len(store):
            facts[_TAGS[tag]] = store[offset:].split(b"\0", 1)[0].decode("utf-8", "replace")
    if not facts["name"]:
        raise ValueError("it has no name")
    return facts


def _read_header(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the entries and the store of the header that begins at FILE's current position."""
    preamble = file.read(_PREAMBLE.size)
    if len(preamble) != _PREAMBLE.size or not preamble.startswith(_HEADER_MAGIC):
        raise ValueError("an rpm header is missing")
    _magic, count, size = _PREAMBLE.unpack(preamble)
    if count * _ENTRY.size + size > _MAX_SIZE:
        raise ValueError("a header of an impossible size")
    entries, store = file.read(count * _ENTRY.size), file.read(size)
    if len(entries) + len(store) != count * _ENTRY.size + size:
        raise ValueError("it ends too early")
    return entries, store
